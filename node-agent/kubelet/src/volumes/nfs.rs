//! NFS exports, mounted by the system's own helper (`mount.nfs`), which knows the protocol's versions and locks.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::NFSVolumeSource;
use tokio::process::Command;

use super::{VolumeError, mounts};

/// Upstream's bound of a mount; a server that is away hangs for longer.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Mounts the export at `dir`, unless that is done.
pub(super) async fn mount(
    source: &NFSVolumeSource,
    options: &[String],
    dir: &Path,
) -> Result<(), VolumeError> {
    let io = |error| VolumeError::Io { path: dir.to_owned(), source: error };
    std::fs::create_dir_all(dir).map_err(io)?;
    if mounts::is_mount_point(dir).map_err(io)? {
        return Ok(());
    }
    let mut command = Command::new("mount");
    command.args(arguments(source, options)).arg(dir).kill_on_drop(true);
    let failed = |message: String| VolumeError::Nfs { export: export(source), message };
    match tokio::time::timeout(TIMEOUT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("not mounted within {TIMEOUT:?}"))),
    }
}

fn export(source: &NFSVolumeSource) -> String {
    // An IPv6 address has colons of its own.
    match source.server.contains(':') {
        true => format!("[{}]:{}", source.server, source.path),
        false => format!("{}:{}", source.server, source.path),
    }
}

fn arguments(source: &NFSVolumeSource, options: &[String]) -> Vec<String> {
    let mut options = options.to_vec();
    if source.read_only == Some(true) {
        options.push("ro".to_owned());
    }
    let mut arguments = vec!["-t".to_owned(), "nfs".to_owned()];
    if !options.is_empty() {
        arguments.extend(["-o".to_owned(), options.join(",")]);
    }
    arguments.push(export(source));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helper_is_called_as_a_person_would() {
        let source = |server: &str, read_only| NFSVolumeSource {
            server: server.into(),
            path: "/exports/a".into(),
            read_only: Some(read_only),
        };
        assert_eq!(arguments(&source("nfs.test", false), &[]), ["-t", "nfs", "nfs.test:/exports/a"]);
        let options = ["nfsvers=4.1".to_owned()];
        let expected = ["-t", "nfs", "-o", "nfsvers=4.1,ro", "[fd00::1]:/exports/a"];
        assert_eq!(arguments(&source("fd00::1", true), &options), expected);
    }
}
