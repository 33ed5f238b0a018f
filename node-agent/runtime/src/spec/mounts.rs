//! What is mounted in a container: the file systems of every container, then the pod's own mounts.

use std::path::Path;

use serde_json::{Value, json};

use crate::{Mount, MountPropagation};

/// All mounts, parents before what is mounted inside them. A mount of the pod takes the place of a
/// default one at the same path.
pub(super) fn resolve(own: &[Mount], shm: &Path, privileged: bool) -> Vec<Value> {
    let mut mounts: Vec<(&Path, Value)> = Vec::new();
    for (path, value) in standard(shm, privileged) {
        if !own.iter().any(|mount| mount.container_path == path) {
            mounts.push((path, value));
        }
    }
    for mount in own {
        mounts.push((&mount.container_path, bind(mount)));
    }
    // Stable, so that of two mounts at one depth the later one stays later.
    mounts.sort_by_key(|(path, _)| path.components().count());
    mounts.into_iter().map(|(_, value)| value).collect()
}

/// What the root's propagation has to be for the pod's mounts to propagate.
pub(super) fn root_propagation(own: &[Mount]) -> Option<&'static str> {
    let any = |wanted| own.iter().any(|mount| mount.propagation == wanted);
    if any(MountPropagation::Bidirectional) {
        Some("rshared")
    } else if any(MountPropagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

fn bind(mount: &Mount) -> Value {
    let propagation = match mount.propagation {
        MountPropagation::Private => "rprivate",
        MountPropagation::HostToContainer => "rslave",
        MountPropagation::Bidirectional => "rshared",
    };
    let access = match (mount.read_only, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    let mut options = vec!["rbind", propagation, access];
    if mount.no_exec {
        options.push("noexec");
    }
    json!({
        "destination": mount.container_path,
        "type": "bind",
        "source": mount.host_path,
        "options": options,
    })
}

fn standard(shm: &Path, privileged: bool) -> Vec<(&'static Path, Value)> {
    let access = if privileged { "rw" } else { "ro" };
    let entry = |destination: &'static str, kind: &str, source: &str, options: &[&str]| {
        let value = json!({
            "destination": destination, "type": kind, "source": source, "options": options,
        });
        (Path::new(destination), value)
    };
    vec![
        entry("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        entry("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        entry(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        entry("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        entry("/dev/shm", "bind", &shm.to_string_lossy(), &["rbind", "rprivate", "rw"]),
        entry("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        entry("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations(mounts: &[Value]) -> Vec<&str> {
        mounts.iter().map(|m| m["destination"].as_str().unwrap()).collect()
    }

    fn mount(host: &str, container: &str) -> Mount {
        Mount { host_path: host.into(), container_path: container.into(), ..Default::default() }
    }

    #[test]
    fn parents_come_before_children() {
        let own = [mount("/a", "/data/cache"), mount("/b", "/data")];
        let mounts = resolve(&own, Path::new("/shm"), false);
        let order = destinations(&mounts);
        let index = |path| order.iter().position(|p| *p == path).unwrap();
        assert!(index("/data") < index("/data/cache"));
        assert!(index("/dev") < index("/dev/shm"));
    }

    #[test]
    fn own_mount_replaces_the_default_one() {
        let mounts = resolve(&[mount("/mem", "/dev/shm")], Path::new("/shm"), false);
        let shm: Vec<_> = mounts.iter().filter(|m| m["destination"] == "/dev/shm").collect();
        assert_eq!(shm.len(), 1);
        assert_eq!(shm[0]["source"], "/mem");
    }

    #[test]
    fn access_and_propagation_become_options() {
        let own = Mount { read_only: true, ..mount("/a", "/a") };
        assert_eq!(bind(&own)["options"], json!(["rbind", "rprivate", "ro"]));
        let data = Mount { no_exec: true, ..own.clone() };
        assert_eq!(bind(&data)["options"], json!(["rbind", "rprivate", "ro", "noexec"]));
        let shared = Mount { propagation: MountPropagation::Bidirectional, ..mount("/a", "/a") };
        assert_eq!(bind(&shared)["options"], json!(["rbind", "rshared", "rw"]));
        assert_eq!(root_propagation(&[own.clone(), shared]), Some("rshared"));
        assert_eq!(root_propagation(&[own]), None);
    }
}
