//! What was shown to pods, remembered on disk beside each volume, in upstream's words.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::PLUGIN;
use super::volume::CsiVolume;
use crate::volumes::mounts;

const FILE: &str = "vol_data.json";
const MOUNT: &str = "mount";
const DEVICE: &str = "device";
/// Where volumes are staged, below the kubelet's directory: by driver and digest of the handle, as upstream.
pub(super) const STAGING: &str = "plugins/kubernetes.io/csi";
const PERSISTENT: &str = "Persistent";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Published {
    pub(super) driver_name: String,
    pub(super) volume_handle: String,
    #[serde(rename = "specVolID")]
    spec_vol_id: String,
    volume_lifecycle_mode: String,
    /// A device, not a file system. (Upstream keeps these elsewhere.)
    #[serde(default)]
    is_block: bool,
    /// Known when it is shown; absent in what was noted before there was this field. (Upstream's kubelets pass it over.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) driver_is: Option<DriverIs>,
}

/// What is to be done for a volume that is shown already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DriverIs {
    /// It wants to be asked again and again.
    pub(super) republishes: bool,
    /// It can make what is on a volume larger.
    pub(super) expands: bool,
}

impl Published {
    pub(super) fn of(volume: &CsiVolume) -> Self {
        let mode = if volume.is_inline { "Ephemeral" } else { PERSISTENT };
        Self {
            driver_name: volume.driver.clone(),
            volume_handle: volume.handle.clone(),
            spec_vol_id: volume.name.clone(),
            volume_lifecycle_mode: mode.to_owned(),
            is_block: volume.is_block,
            driver_is: None,
        }
    }

    /// Where the driver shows it.
    pub(super) fn target(&self, place: &Path) -> PathBuf {
        place.join(if self.is_block { DEVICE } else { MOUNT })
    }

    pub(super) fn is_shown(&self, place: &Path) -> io::Result<bool> {
        let target = self.target(place);
        match self.is_block {
            true => Ok(fs::metadata(&target).is_ok_and(|found| found.file_type().is_block_device())),
            false => mounts::is_mount_point(&target),
        }
    }

    pub(super) fn is_same_volume(&self, other: &Self) -> bool {
        (&self.driver_name, &self.volume_handle) == (&other.driver_name, &other.volume_handle)
    }

    pub(super) fn write(&self, place: &Path) -> io::Result<()> {
        fs::create_dir_all(place)?;
        let new = place.join("vol_data.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, place.join(FILE))
    }

    pub(super) fn read(place: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(place.join(FILE)).ok()?).ok()
    }
}

/// Directories of one pod's volumes.
pub(super) fn places(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// All that is shown to any pod of the node.
pub(super) fn all(root_dir: &Path) -> Vec<Published> {
    let pods = places(&root_dir.join("pods"));
    let volumes = pods.iter().flat_map(|pod| places(&pod.join("volumes").join(PLUGIN)));
    volumes.filter_map(|place| Published::read(&place)).collect()
}

/// All that is staged on the node.
fn staged(root_dir: &Path) -> Vec<Published> {
    let drivers = places(&root_dir.join(STAGING));
    let volumes = drivers.iter().flat_map(|driver| places(driver));
    volumes.filter_map(|place| Published::read(&place)).collect()
}

/// Volumes that are shown to pods or staged for them, as a node's status names them; sorted.
pub(super) fn in_use(root_dir: &Path) -> Vec<String> {
    let known = all(root_dir).into_iter().chain(staged(root_dir));
    let lasting = known.filter(|known| known.volume_lifecycle_mode == PERSISTENT);
    let names = lasting.map(|known| unique_name(&known.driver_name, &known.volume_handle));
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

pub(super) fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The volume is not staged any more. Absent is success.
pub(super) fn unstaged(place: &Path) -> io::Result<()> {
    match fs::remove_file(place.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => remove_empty(place),
    }
}

/// Removes what was kept of a volume that is not shown any more.
pub(super) fn forget(place: &Path) -> io::Result<()> {
    remove_empty(&place.join(MOUNT))?;
    // A node, or the file that one was bound to; what the device holds is elsewhere.
    match fs::remove_file(place.join(DEVICE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::remove_file(place.join(FILE))?;
    remove_empty(place)
}

/// Absent is success. Never deletes what is in it.
pub(super) fn remove_empty(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(handle: &str, mode: &str) -> Published {
        Published {
            driver_name: "d".into(),
            volume_handle: handle.into(),
            spec_vol_id: "pv".into(),
            volume_lifecycle_mode: mode.into(),
            is_block: false,
            driver_is: None,
        }
    }

    #[test]
    fn what_is_shown_or_staged_is_in_use() {
        let root = tempfile::tempdir().expect("a directory");
        let of_pod = |pod: &str, name: &str| {
            root.path().join("pods").join(pod).join("volumes").join(PLUGIN).join(name)
        };
        let place = root.path().join(STAGING).join("d").join("digest");
        assert_eq!(in_use(root.path()), Vec::<String>::new());
        known("shown", PERSISTENT).write(&of_pod("1", "a")).expect("written");
        known("shown", PERSISTENT).write(&of_pod("2", "a")).expect("written");
        known("inline", "Ephemeral").write(&of_pod("2", "b")).expect("written");
        known("staged", PERSISTENT).write(&place).expect("written");
        assert_eq!(in_use(root.path()), ["kubernetes.io/csi/d^shown", "kubernetes.io/csi/d^staged"]);
        unstaged(&place).expect("removed");
        unstaged(&place).expect("absent is success");
        forget(&of_pod("1", "a")).expect("removed");
        assert_eq!(in_use(root.path()), ["kubernetes.io/csi/d^shown"], "by another pod");
    }
}
