//! Debian 12's kernel and its modules, as the package has them: unpacked below `target`, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::command::{output, run as run_command, say};

/// The kernel for virtual machines: the same source as the other flavours', and a third of the download.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// What Debian 12 has; the oldest that is tested.
const SERIES: &str = "6.1.";

pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// The folder with the modules; its name is `release`.
    pub(super) modules: PathBuf,
    /// `uname -r` of it.
    pub(super) release: String,
}

/// Returns the kernel that is unpacked below `folder`, and downloads it where there is none.
pub(super) fn kernel(folder: &Path) -> anyhow::Result<Kernel> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the suite knows amd64 kernels only, and this machine's tests are for another processor");
    }
    let unpacked = folder.join("debian");
    if !unpacked.exists() {
        // Under another name until it is complete.
        let partial = folder.join("debian.partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        download(&partial)?;
        fs::rename(&partial, &unpacked)?;
    }
    find(&unpacked).with_context(|| format!("{} has no kernel; remove it", unpacked.display()))
}

fn download(folder: &Path) -> anyhow::Result<()> {
    let mut update = Command::new("apt-get");
    run_command(update.args(["-q", "update"]).stdout(std::io::stderr()))?;
    let depends = output(Command::new("apt-cache").args(["depends", PACKAGE]))?;
    let Some(package) = versioned_package(&depends) else {
        bail!("this system's {PACKAGE} is not Debian 12's, whose kernel is {SERIES}x: {}", depends.trim());
    };
    say(format!("downloading {package} from Debian, to boot it in an emulator; it is not installed"));
    let mut download = Command::new("apt-get");
    // As root: apt's own user need not be able to write here.
    download.args(["-q", "-o", "APT::Sandbox::User=root", "download", package]).current_dir(folder);
    run_command(download.stdout(std::io::stderr()))?;
    let archive = only_entry(folder)?;
    run_command(Command::new("dpkg").arg("-x").args([&archive, folder]))?;
    Ok(fs::remove_file(archive)?)
}

/// Finds the package of an image of the wanted series in what `apt-cache depends` prints.
fn versioned_package(depends: &str) -> Option<&str> {
    let packages = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    packages
        .into_iter()
        .find(|name| name.strip_prefix("linux-image-").is_some_and(|version| version.starts_with(SERIES)))
}

fn find(unpacked: &Path) -> anyhow::Result<Kernel> {
    let modules = only_entry(&unpacked.join("lib/modules"))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Kernel { image: unpacked.join("boot").join(format!("vmlinuz-{release}")), modules, release })
}

fn only_entry(folder: &Path) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let entries: Vec<_> = entries.collect::<Result<_, _>>()?;
    match entries.as_slice() {
        [entry] => Ok(entry.path()),
        _ => bail!("{} should have one entry, not {}", folder.display(), entries.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::versioned_package;

    #[test]
    fn package_of_another_series_is_none() {
        let depends = |name: &str| format!("linux-image-cloud-amd64\n  Depends: {name}\n");
        let cases = [
            ("linux-image-6.1.0-56-cloud-amd64", true),
            ("linux-image-6.12.57+deb13-cloud-amd64", false),
            ("linux-base", false),
        ];
        for (name, is_found) in cases {
            let depends = depends(name);
            assert_eq!(versioned_package(&depends), is_found.then_some(name), "{name}");
        }
    }
}
