//! What was shown to pods or staged for them, remembered on disk beside each volume, in upstream's words. A note that cannot
//! be read is an error for whoever would take something back: what it says may still be in use.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::PLUGIN;
use super::volume::CsiVolume;
use crate::durable;
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

    /// Blocks until it is on disk.
    pub(super) fn write(&self, place: &Path) -> io::Result<()> {
        durable::write(&place.join(FILE), &serde_json::to_vec(self)?)
    }

    /// `None` where nothing is noted that can be read.
    pub(super) fn read(place: &Path) -> Option<Self> {
        Self::noted(place).ok().flatten()
    }

    /// `None` where nothing is noted. For whoever would take something back.
    pub(super) fn noted(place: &Path) -> io::Result<Option<Self>> {
        let file = place.join(FILE);
        match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            content => serde_json::from_slice(&content?).map(Some).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", file.display()))
            }),
        }
    }
}

/// Directories of one pod's volumes.
pub(super) fn places(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Places of all that is shown to any pod of the node.
fn of_pods(root_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let pods = places(&root_dir.join("pods"));
    pods.into_iter().flat_map(|pod| places(&pod.join("volumes").join(PLUGIN)))
}

/// Places of all that is staged on the node.
pub(super) fn staged(root_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let drivers = places(&root_dir.join(STAGING));
    drivers.into_iter().flat_map(|driver| places(&driver))
}

/// Whether a pod has the volume, at another place than `but`.
pub(super) fn is_used(root_dir: &Path, volume: &Published, but: Option<&Path>) -> io::Result<bool> {
    for place in of_pods(root_dir).filter(|place| Some(place.as_path()) != but) {
        if Published::noted(&place)?.is_some_and(|other| other.is_same_volume(volume)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Volumes that are shown to pods or staged for them, as a node's status names them; sorted.
pub(super) fn in_use(root_dir: &Path) -> Vec<String> {
    let places = of_pods(root_dir).chain(staged(root_dir));
    let known = places.filter_map(|place| Published::read(&place));
    let lasting = known.filter(|known| known.volume_lifecycle_mode == PERSISTENT);
    let names = lasting.map(|known| unique_name(&known.driver_name, &known.volume_handle));
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

pub(super) fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// Removes where the volume was shown, which is not any more. Absent is success.
pub(super) fn remove_target(place: &Path) -> io::Result<()> {
    remove_empty(&place.join(MOUNT))?;
    // A node, or the file that one was bound to; what the device holds is elsewhere.
    remove_file(&place.join(DEVICE))
}

/// Removes the note of a volume that is not shown or not staged there any more. Absent is success.
pub(super) fn forget(place: &Path) -> io::Result<()> {
    remove_file(&place.join(FILE))?;
    remove_empty(place)
}

fn remove_file(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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
        forget(&place).expect("removed");
        forget(&place).expect("absent is success");
        forget(&of_pod("1", "a")).expect("removed");
        assert_eq!(in_use(root.path()), ["kubernetes.io/csi/d^shown"], "by another pod");
        let is_used = |but: Option<&Path>| is_used(root.path(), &known("shown", PERSISTENT), but);
        assert!(is_used(None).expect("readable"));
        assert!(!is_used(Some(&of_pod("2", "a"))).expect("readable"), "by nobody else");
        // What an unreadable note says may be in use.
        fs::write(of_pod("2", "b").join(FILE), "{").expect("written");
        assert!(is_used(Some(&of_pod("2", "a"))).is_err());
        assert!(Published::noted(&of_pod("2", "b")).is_err());
    }
}
