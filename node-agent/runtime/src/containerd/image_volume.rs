//! Images as volumes (KEP-4639): an image's files, read-only, at a path of the node.
//!
//! containerd keeps a view of the image's snapshot, which is named after the volume and is a root of its garbage
//! collection; this process mounts it. Whoever dies in between finds the view again by its name.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use containerd_client::services::v1::snapshots::{
    ListSnapshotsRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::types::Mount;
use jiff::Timestamp;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::ask::Before;
use super::{Inner, ask, blocking, rpc};
use crate::paths::{check_name, io_error};
use crate::{Error, Result};

/// Keeps a snapshot that no container has from containerd's garbage collection.
const GC_ROOT_LABEL: &str = "containerd.io/gc.root";
/// Id of the image that a view shows.
const IMAGE_LABEL: &str = "hawser.dev/image-volume";
/// An image's files are data here: nothing of them is run.
pub(super) const FLAGS: MsFlags =
    MsFlags::MS_RDONLY.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV);

impl Inner {
    pub(super) async fn mount_image(&self, image: &str, key: &str, target: &Path) -> Result<()> {
        let image = self.images.usable(image).await?;
        let (chain_id, place) = (image.resolved.chain_id.clone(), target.to_owned());
        if chain_id.is_empty() {
            // Without layers it has no files.
            return blocking(move || fs::create_dir_all(&place).map_err(io_error("create", &place))).await;
        }
        let key = view_key(key)?;
        let request = ViewSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: chain_id,
            labels: HashMap::from([
                (GC_ROOT_LABEL.to_owned(), Timestamp::now().to_string()),
                (IMAGE_LABEL.to_owned(), image.resolved.id.clone()),
            ]),
        };
        let shown = ask::until_known(
            "view snapshot",
            Before::Nothing,
            || async {
                Ok(rpc::call("view snapshot", self.rpc.snapshots().view(request.clone())).await?.mounts)
            },
            |_| self.snapshot_mounts(&key),
        );
        let mounts = shown.await?;
        blocking(move || mount_view(&mounts, &place)).await
    }

    /// Ids of the images that are shown, each as often as it is.
    pub(super) async fn images_in_volumes(&self) -> Result<Vec<String>> {
        let request = ListSnapshotsRequest {
            snapshotter: self.snapshotter.clone(),
            filters: vec![format!("labels.\"{IMAGE_LABEL}\"")],
        };
        let mut stream = rpc::call("list snapshots", self.rpc.snapshots().list(request)).await?;
        let mut images = Vec::new();
        while let Some(part) =
            stream.message().await.map_err(|status| rpc::error("list snapshots", status))?
        {
            images.extend(part.info.into_iter().filter_map(|mut info| info.labels.remove(IMAGE_LABEL)));
        }
        Ok(images)
    }

    pub(super) async fn unmount_image(&self, key: &str, target: &Path) -> Result<()> {
        let (key, place) = (view_key(key)?, target.to_owned());
        blocking(move || unmount(&place)).await?;
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key };
        rpc::remove("remove snapshot", self.rpc.snapshots().remove(request)).await
    }
}

fn view_key(key: &str) -> Result<String> {
    check_name("volume", key)?;
    Ok(format!("image-volume {key}"))
}

/// Mounts what containerd describes, unless it is mounted.
fn mount_view(mounts: &[Mount], target: &Path) -> Result<()> {
    fs::create_dir_all(target).map_err(io_error("create", target))?;
    if is_mount_point(target) {
        return Ok(());
    }
    let [view] = mounts else {
        let message = format!("a snapshot of {} mounts cannot be shown", mounts.len());
        return Err(Error::Containerd { attempted: "view snapshot", message });
    };
    let failed = |error: nix::Error| io_error("mount an image at", target)(error.into());
    if view.options.iter().any(|option| option == "bind" || option == "rbind") {
        let source = Some(view.source.as_str());
        mount(source, target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
        // The first call takes no other flags.
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | FLAGS;
        return mount(None::<&str>, target, None::<&str>, again, None::<&str>).map_err(|error| {
            let _ = umount2(target, MntFlags::MNT_DETACH);
            failed(error)
        });
    }
    let data = data_of(&view.options);
    let (source, kind) = (Some(view.source.as_str()), Some(view.r#type.as_str()));
    mount(source, target, kind, FLAGS, Some(data.as_str())).map_err(failed)
}

/// The options that are the file system's own, not flags of the mount.
fn data_of(options: &[String]) -> String {
    let own = options.iter().filter(|option| !["ro", "rw"].contains(&option.as_str()));
    own.map(String::as_str).collect::<Vec<_>>().join(",")
}

fn unmount(target: &Path) -> Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => return Ok(()),
            Err(error) => return Err(io_error("unmount", target)(error.into())),
        }
    }
}

fn is_mount_point(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some(path) = path.to_str() else { return false };
    // Names of pods and volumes hold nothing that the table escapes; another one is mounted twice at worst.
    table.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_mount_are_not_the_file_systems() {
        let options = ["ro", "index=off", "lowerdir=/a:/b"].map(str::to_owned);
        assert_eq!(data_of(&options), "index=off,lowerdir=/a:/b");
        assert!(view_key("../x").is_err() && view_key("uid-volume").is_ok());
    }
}
