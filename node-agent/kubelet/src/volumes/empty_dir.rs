//! emptyDir volumes: on the node's disk, in memory, or of huge pages.
//!
//! What is found is left as it is: a container may have changed its mode. So nothing takes the volume's place before it is
//! whole, whenever an agent is killed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{VolumeError, mounts};
use crate::container::resources::pod_limit;
use crate::quantity::value;

/// Makes the volume at `dir`, unless it is there. `group` owns it, where the pod has one.
pub(super) fn prepare(
    dir: &Path,
    source: &EmptyDirVolumeSource,
    spec: &PodSpec,
    allocatable_bytes: i64,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let made = match source.medium.as_deref() {
        None | Some("") => on_disk(dir, group),
        Some("Memory") => {
            let size = memory_bytes(source, spec, allocatable_bytes).map(|bytes| format!("size={bytes}"));
            let owner = group.map(|group| format!("gid={group}"));
            let mode = Some(format!("mode={:o}", mode(group)));
            let options = [size, owner, mode].into_iter().flatten().collect::<Vec<_>>().join(",");
            mounts::mount_new(dir, "tmpfs", Some(&options)).map(drop)
        }
        Some(medium) => {
            let page = page_bytes(medium, spec).map_err(VolumeError::Medium)?;
            of_huge_pages(dir, page, group)
        }
    };
    made.map_err(|source| VolumeError::Io { path: dir.to_owned(), source })
}

/// The least of what the volume says, what the pod may use, and what all pods together may; `None` where nothing bounds it.
fn memory_bytes(source: &EmptyDirVolumeSource, spec: &PodSpec, allocatable_bytes: i64) -> Option<i64> {
    let own = source.size_limit.as_ref().map(value);
    let bounds = [own, pod_limit(spec, "memory"), Some(allocatable_bytes)];
    bounds.into_iter().flatten().filter(|bytes| *bytes > 0).min()
}

/// Any user may write; a group that owns it passes itself on to new files.
fn mode(group: Option<u32>) -> u32 {
    if group.is_some() { 0o2777 } else { 0o777 }
}

fn on_disk(dir: &Path, group: Option<u32>) -> io::Result<()> {
    if dir.exists() {
        return Ok(());
    }
    // No volume's name has a dot.
    let fresh = dir.with_extension("new");
    fs::create_dir_all(&fresh)?;
    own(&fresh, group)?;
    fs::rename(fresh, dir)
}

fn of_huge_pages(dir: &Path, page_bytes: i64, group: Option<u32>) -> io::Result<()> {
    // The kernel takes no set-group-id bit here.
    let options = format!("pagesize={page_bytes},mode=777");
    match mounts::mount_new(dir, "hugetlbfs", Some(&options))? {
        true => own(dir, group),
        false => Ok(()),
    }
}

fn own(dir: &Path, group: Option<u32>) -> io::Result<()> {
    if group.is_some() {
        chown(dir, None, group)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode(group)))
}

/// The size of the pages that `HugePages-<size>` names, or that the pod asks for where that is one. Upstream's rules: a
/// container has to ask for pages of that size.
fn page_bytes(medium: &str, spec: &PodSpec) -> Result<i64, String> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let amounts = containers.filter_map(|c| c.resources.as_ref()).flat_map(|r| [&r.requests, &r.limits]);
    let names = amounts.flatten().flat_map(|amounts| amounts.keys());
    let bytes = |size: &str| value(&Quantity(size.to_owned()));
    let asked: BTreeSet<i64> = names.filter_map(|name| name.strip_prefix("hugepages-")).map(bytes).collect();
    match (medium.strip_prefix("HugePages-"), asked.len()) {
        (Some(size), _) if asked.contains(&bytes(size)) => Ok(bytes(size)),
        (Some(_), _) => Err(format!("medium {medium:?}: no container asks for pages of this size")),
        (None, 1) if medium == "HugePages" => Ok(asked.into_iter().sum()),
        (None, 0) if medium == "HugePages" => {
            Err(format!("medium {medium:?}: no container asks for huge pages"))
        }
        (None, _) if medium == "HugePages" => {
            Err(format!("medium {medium:?}: containers ask for pages of several sizes"))
        }
        (None, _) => Err(format!("medium {medium:?} is not known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{spec, with_resources};

    #[test]
    fn pages_are_of_the_size_that_is_asked_for() {
        let asking = |sizes: &[&str]| {
            let names: Vec<String> = sizes.iter().map(|size| format!("hugepages-{size}")).collect();
            let limits: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1Gi")).collect();
            spec("Always", vec![], vec![with_resources("c", &[], &limits)])
        };
        let (none, one, both) = (asking(&[]), asking(&["2Mi"]), asking(&["2Mi", "1Gi"]));
        assert_eq!(page_bytes("HugePages", &one), Ok(2 << 20));
        assert_eq!(page_bytes("HugePages-1Gi", &both), Ok(1 << 30));
        for (medium, spec, told) in [
            ("HugePages", &none, "no container asks for huge pages"),
            ("HugePages", &both, "several sizes"),
            ("HugePages-1Gi", &one, "no container asks for pages of this size"),
            ("Floppy", &one, "is not known"),
        ] {
            let refused = page_bytes(medium, spec).expect_err(medium);
            assert!(refused.contains(medium) && refused.contains(told), "{refused}");
        }
    }

    #[test]
    fn memory_is_bounded_by_volume_pod_and_node() {
        let limited = spec("Always", vec![], vec![with_resources("c", &[], &[("memory", "64Mi")])]);
        let open = spec("Always", vec![], vec![with_resources("c", &[], &[])]);
        let check = |size: Option<&str>, spec: &PodSpec, allocatable_bytes: i64, expected: Option<i64>| {
            let size_limit = size.map(|size| Quantity(size.into()));
            let source = EmptyDirVolumeSource { medium: Some("Memory".into()), size_limit };
            assert_eq!(memory_bytes(&source, spec, allocatable_bytes), expected, "{size:?}");
        };
        check(Some("16Mi"), &limited, 1 << 30, Some(16 << 20));
        check(Some("1Gi"), &limited, 1 << 30, Some(64 << 20));
        check(None, &limited, 1 << 30, Some(64 << 20));
        check(None, &open, 1 << 30, Some(1 << 30));
        check(None, &open, 0, None);
    }

    #[test]
    fn what_an_agent_that_was_killed_left_half_made_is_no_volume() {
        let parent = tempfile::tempdir().expect("directory");
        let dir = parent.path().join("data");
        // It was killed before it had set the mode.
        fs::create_dir(dir.with_extension("new")).expect("made");
        fs::set_permissions(dir.with_extension("new"), fs::Permissions::from_mode(0o700)).expect("set");
        let mode = || fs::metadata(&dir).expect("there").permissions().mode() & 0o7777;
        on_disk(&dir, None).expect("made");
        assert_eq!(mode(), 0o777);
        assert_eq!(fs::read_dir(parent.path()).expect("readable").count(), 1);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).expect("set");
        on_disk(&dir, None).expect("found");
        assert_eq!(mode(), 0o750, "a container's own");
    }
}
