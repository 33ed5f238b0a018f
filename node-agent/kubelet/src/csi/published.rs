//! What was shown to pods, remembered on disk beside each volume, in upstream's words.

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
}

impl Published {
    pub(super) fn of(volume: &CsiVolume) -> Self {
        let mode = if volume.is_inline { "Ephemeral" } else { "Persistent" };
        Self {
            driver_name: volume.driver.clone(),
            volume_handle: volume.handle.clone(),
            spec_vol_id: volume.name.clone(),
            volume_lifecycle_mode: mode.to_owned(),
            is_block: volume.is_block,
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
