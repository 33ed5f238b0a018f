//! Packs container images from files of this machine, as an OCI image layout on disk.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::ids::digest_of;

/// An image with one layer, or more.
#[derive(Debug, Clone, Default)]
pub struct ImagePack {
    entries: Vec<Entry>,
    /// What is above this layer, from below to above. Their own layers and configurations do not count.
    above: Vec<ImagePack>,
    /// The `config` object of the image configuration: `Cmd`, `Env`, `User`, ...
    pub config: Value,
}

#[derive(Debug, Clone)]
struct Entry {
    path: String,
    kind: Kind,
    mode: u32,
}

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Link(String),
}

/// Names under which the busybox image offers its one program.
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "sleep", "ls", "env", "id", "hostname", "true", "false", "kill", "ps", "seq",
    "head", "tail", "wc", "yes", "dd", "mkdir", "touch", "rm", "pwd", "stty", "tty", "nc", "wget", "httpd",
    "mount", "grep", "sed", "date", "nslookup", "ping", "ip", "printf", "test", "stat", "free", "md5sum",
    "timeout",
];

impl ImagePack {
    /// Debian's static busybox with its usual names, and users `root` and `web`.
    pub fn busybox() -> Result<Self> {
        let program = fs::read("/bin/busybox").context("read /bin/busybox (package busybox-static)")?;
        let mut pack =
            Self { config: json!({ "Cmd": ["sh"], "Env": ["FROM_IMAGE=yes"] }), ..Self::default() };
        for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "root"] {
            pack = pack.directory(directory);
        }
        pack = pack.file("bin/busybox", 0o755, program);
        for applet in APPLETS {
            pack = pack.link(&format!("bin/{applet}"), "busybox");
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/:/bin/sh\n";
        let group = "root:x:0:\nweb:x:102:\nlogs:x:103:web\n";
        Ok(pack.file("etc/passwd", 0o644, passwd).file("etc/group", 0o644, group))
    }

    pub fn directory(mut self, path: &str) -> Self {
        self.entries.push(Entry { path: format!("{path}/"), kind: Kind::Directory, mode: 0o755 });
        self
    }

    pub fn file(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.entries.push(Entry { path: path.into(), kind: Kind::File(content.into()), mode });
        self
    }

    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.entries.push(Entry { path: path.into(), kind: Kind::Link(target.into()), mode: 0o777 });
        self
    }

    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// With the files of another pack as a layer above all that are there.
    pub fn layer(mut self, files: ImagePack) -> Self {
        self.above.push(files);
        self
    }

    /// Writes the image as an OCI image layout into `directory`, tagged `tag`. Returns the digest of its
    /// lowest layer.
    pub fn write_layout(&self, directory: &Path, tag: &str) -> Result<String> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let blob = |bytes: &[u8]| -> Result<String> {
            let digest = digest_of(bytes);
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)?;
            Ok(digest)
        };
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for pack in [self].into_iter().chain(&self.above) {
            let tar = pack.tar();
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&tar)?;
            let layer = encoder.finish()?;
            diff_ids.push(digest_of(&tar));
            layers.push((blob(&layer)?, layer.len()));
        }
        let config = json!({
            "architecture": crate::image::config::architecture(),
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = serde_json::to_vec(&config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": blob(&config)?,
                "size": config.len(),
            },
            "layers": layers.iter().map(|(digest, size)| json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": digest,
                "size": size,
            })).collect::<Vec<_>>(),
        });
        let manifest = serde_json::to_vec(&manifest)?;
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": blob(&manifest)?,
                "size": manifest.len(),
                "platform": { "os": "linux", "architecture": crate::image::config::architecture() },
                "annotations": { "org.opencontainers.image.ref.name": tag },
            }],
        });
        fs::write(directory.join("index.json"), serde_json::to_vec(&index)?)?;
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(layers.swap_remove(0).0)
    }

    /// The layer, uncompressed: POSIX ustar, the same bytes every time.
    fn tar(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        for entry in &self.entries {
            let (type_flag, content, target) = match &entry.kind {
                Kind::Directory => (b'5', &[][..], ""),
                Kind::File(content) => (b'0', &content[..], ""),
                Kind::Link(target) => (b'2', &[][..], target.as_str()),
            };
            tar.extend(header(&entry.path, entry.mode, content.len(), type_flag, target));
            tar.extend(content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }
}

fn header(path: &str, mode: u32, size: usize, type_flag: u8, target: &str) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put =
        |offset: usize, text: &str| header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    // The checksum is taken with its own field full of spaces.
    put(148, "        ");
    put(157, target);
    put(257, "ustar");
    put(263, "00");
    header[156] = type_flag;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}
