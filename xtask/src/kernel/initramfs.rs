//! The guest's files: the tests, the programs that they call with their libraries, the kernel's modules, and the scripts
//! that run all.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use super::{debian::Kernel, plan::Plan};
use crate::command::{output, run as run_command};

/// The first is what the kernel starts.
const SCRIPTS: [(&str, &str); 2] =
    [("init", include_str!("init.sh")), ("run-test", include_str!("run-test.sh"))];

/// What tests call; the scripts call busybox.
const PROGRAMS: &[&str] = &["ip", "tc", "bridge", "nft", "bpftool"];

/// Folders of modules that tests can need: interfaces, queueing disciplines, classifiers, netfilter. The kernel
/// loads them itself when it is asked for such a thing, as on any machine.
const MODULES: &[&str] = &["net", "lib", "crypto", "drivers/net"];

/// Files that programs read.
const DATA: &[&str] = &["/etc/protocols"];

/// Packs them into an archive in `folder`, in the kernel's format
/// (`newc`: Documentation/driver-api/early-userspace/buffer-format.rst).
pub(super) fn pack(folder: &Path, kernel: &Kernel, plan: &Plan) -> anyhow::Result<PathBuf> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&root)?;
    for (name, text) in SCRIPTS {
        fs::write(root.join(name), text)?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
    }
    copy(&find_program("busybox")?, &root, "busybox")?;

    let mut executables = Vec::new();
    for name in PROGRAMS {
        let file = find_program(name)?;
        copy(&file, &root, format!("programs/{name}"))?;
        executables.push(file);
    }
    for binary in &plan.binaries {
        copy(&binary.file, &root, format!("tests/{}", binary.id))?;
        executables.push(binary.file.clone());
    }
    for file in libraries(&executables)?.iter().map(PathBuf::as_path).chain(DATA.iter().map(Path::new)) {
        copy(file, &root, file.strip_prefix("/")?)?;
    }
    let list: String = plan.tests().map(|test| format!("{test}\n")).collect();
    fs::write(root.join("tests/list"), list)?;
    copy_modules(kernel, &root)?;
    archive(&root, &folder.join("initramfs.cpio"))
}

fn find_program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("no program {name} on this machine"))
}

/// Copies a file to a place below `root`; links are followed.
fn copy(file: &Path, root: &Path, place: impl AsRef<Path>) -> anyhow::Result<()> {
    let place = root.join(place);
    let parent = place.parent().context("a file lies in a folder")?;
    fs::create_dir_all(parent)?;
    fs::copy(file, &place)
        .with_context(|| format!("cannot copy {} to {}", file.display(), place.display()))?;
    Ok(())
}

/// The shared libraries that the executables name, and the loader itself.
fn libraries(executables: &[PathBuf]) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for executable in executables {
        let text = output(Command::new("ldd").arg(executable))?;
        if text.contains("not found") {
            bail!("{} lacks libraries: {text}", executable.display());
        }
        found.extend(library_paths(&text).map(PathBuf::from));
    }
    Ok(found)
}

/// The paths in what `ldd` prints: `name => path (address)`, or `path (address)` for the loader.
fn library_paths(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// Copies the modules, and indexes them as the package's own script would.
fn copy_modules(kernel: &Kernel, root: &Path) -> anyhow::Result<()> {
    let target = root.join("lib/modules").join(&kernel.release);
    for folder in MODULES {
        let target = target.join("kernel").join(folder);
        fs::create_dir_all(&target)?;
        let source = kernel.modules.join("kernel").join(folder);
        run_command(Command::new("cp").arg("-a").arg(source.join(".")).arg(&target))?;
    }
    for name in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(kernel.modules.join(name), target.join(name))?;
    }
    run_command(Command::new("busybox").args(["depmod", "-b"]).arg(root).arg(&kernel.release))
}

fn archive(root: &Path, file: &Path) -> anyhow::Result<PathBuf> {
    let script = "find . | busybox cpio -o -H newc -F \"$0\"";
    let mut cpio = Command::new("sh");
    run_command(cpio.args(["-c", script]).arg(std::path::absolute(file)?).current_dir(root))?;
    Ok(file.to_owned())
}

#[cfg(test)]
mod tests {
    use super::library_paths;

    #[test]
    fn libraries_are_the_paths_that_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f1b)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f1b)\n";
        let found: Vec<&str> = library_paths(text).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }
}
