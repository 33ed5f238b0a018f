//! Packs OCI images for tests and demos from what the machine has: a static busybox, and the demo program,
//! compiled here. Images are OCI image layouts (image-spec v1.1), one folder each, the same bytes every time.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{build, command, setup};

/// The demo image, and the one to update to.
pub(crate) const DEMO: &str = "demo/web:1";
pub(crate) const DEMO_NEXT: &str = "demo/web:2";

const BUSYBOX: &str = "demo/busybox:1";

/// An image with an entrypoint and a command that only speak, and the demo program with the set-user-ID bit.
const ECHO: &str = "demo/echo:1";

const LARGE: &str = "demo/large:1";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to put them
    #[arg(default_value = "target/images")]
    folder: PathBuf,
}

pub(crate) struct Image {
    /// Repository and tag, without a registry.
    pub(crate) reference: &'static str,
    /// The OCI layout's folder.
    pub(crate) layout: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::run(setup::Need { run: true, ..setup::Need::BUILD })?;
    for image in pack(&args.folder)? {
        println!("{}\toci:{}", image.reference, image.layout.display());
    }
    Ok(())
}

/// Packs all images into folders below `folder`.
pub(crate) fn pack(folder: &Path) -> anyhow::Result<Vec<Image>> {
    fs::create_dir_all(folder)?;
    let demo = compile_demo()?;
    let base = busybox_layer()?;
    let program = program_layer(&demo, 0o755)?;
    let web = |reference, version: &str| {
        let config = json!({
            "Entrypoint": ["/demo"],
            "Cmd": ["serve"],
            "Env": ["PATH=/bin", format!("VERSION={version}")],
            "ExposedPorts": { "8080/tcp": {}, "8080/udp": {} },
        });
        write_layout(folder, reference, &[&base, &program], &config)
    };
    let busybox = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] });
    let echo = json!({
        "Entrypoint": ["/bin/echo", "entrypoint"],
        "Cmd": ["of", "the", "image"],
        "Env": ["PATH=/bin"],
    });
    Ok(vec![
        web(DEMO, "1")?,
        web(DEMO_NEXT, "2")?,
        write_layout(folder, BUSYBOX, &[&base], &busybox)?,
        write_layout(folder, ECHO, &[&base, &program_layer(&demo, 0o4755)?], &echo)?,
    ])
}

/// An image of half a gigabyte in many files, of which half is noise: what pulling is measured with.
pub(crate) fn pack_large(folder: &Path) -> anyhow::Result<Image> {
    const FILES: usize = 5_000;
    const FILE_BYTES: usize = 100 << 10;
    let mut layer = Layer::new();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for number in 0..FILES {
        let content: Vec<u8> = (0..FILE_BYTES / 8)
            .flat_map(|_| {
                // xorshift64: the same image every time.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state & 0xFFFF_FFFF).to_le_bytes()
            })
            .collect();
        layer.file(&format!("var/large/{number}"), &content, 0o644)?;
    }
    fs::create_dir_all(folder)?;
    let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] });
    write_layout(folder, LARGE, &[&busybox_layer()?, &layer.finish()?], &config)
}

/// One static file, by the compiler alone; compiled anew where its source is newer.
pub(crate) fn compile_demo() -> anyhow::Result<PathBuf> {
    let source = build::workspace_root().join("tests/images/demo.rs");
    let binary = build::target_dir().join("images/demo");
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if modified(&binary).is_none_or(|built| modified(&source).is_none_or(|written| written > built)) {
        fs::create_dir_all(build::target_dir().join("images"))?;
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
            "-o",
        ]);
        command::run(rustc.arg(&binary).arg(&source).current_dir(build::workspace_root()))?;
    }
    Ok(binary)
}

/// Folders that programs expect, busybox, and a link for each of its commands.
fn busybox_layer() -> anyhow::Result<Vec<u8>> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|path| path.exists());
    let busybox = busybox.context("no busybox: install busybox-static")?;
    let mut layer = Layer::new();
    for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"] {
        layer.folder(folder, if folder == "tmp" { 0o1777 } else { 0o755 })?;
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    layer.file("etc/passwd", users.as_bytes(), 0o644)?;
    layer.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    layer.file("bin/busybox", &fs::read(busybox)?, 0o755)?;
    let applets = command::output(Command::new(busybox).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.finish()
}

fn program_layer(program: &Path, mode: u32) -> anyhow::Result<Vec<u8>> {
    let mut layer = Layer::new();
    layer.file("demo", &fs::read(program)?, mode)?;
    layer.finish()
}

/// A tar archive without times or owners, so that equal content has an equal digest.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_mtime(0);
        header
    }

    fn folder(&mut self, path: &str, mode: u32) -> anyhow::Result<()> {
        let mut header = Self::header(tar::EntryType::Directory, mode, 0);
        Ok(self.0.append_data(&mut header, format!("{path}/"), std::io::empty())?)
    }

    fn file(&mut self, path: &str, content: &[u8], mode: u32) -> anyhow::Result<()> {
        let mut header = Self::header(tar::EntryType::Regular, mode, content.len());
        Ok(self.0.append_data(&mut header, path, content)?)
    }

    fn link(&mut self, path: &str, to: &str) -> anyhow::Result<()> {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        Ok(self.0.append_link(&mut header, path, to)?)
    }

    fn finish(self) -> anyhow::Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

fn write_layout(
    folder: &Path,
    reference: &'static str,
    layers: &[&Vec<u8>],
    config: &Value,
) -> anyhow::Result<Image> {
    let layout = folder.join(reference.replace(['/', ':'], "-"));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let blob = |media_type: &str, content: &[u8]| -> anyhow::Result<Value> {
        let digest = hex(&Sha256::digest(content));
        fs::write(blobs.join(&digest), content)?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len() }))
    };
    let mut descriptors = Vec::new();
    for layer in layers {
        descriptors.push(blob("application/vnd.oci.image.layer.v1.tar", layer)?);
    }
    let diff_ids: Vec<&Value> = descriptors.iter().map(|descriptor| &descriptor["digest"]).collect();
    let image = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob("application/vnd.oci.image.config.v1+json", image.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": descriptors,
    });
    let manifest = blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    serde_json::to_writer(File::create(layout.join("index.json"))?, &index)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(Image { reference, layout })
}

/// The machine's architecture in Go's words, which OCI uses.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
