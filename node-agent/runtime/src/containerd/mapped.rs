//! Files of a container whose pod has users of its own: what is root's on disk is the pod's root's in it, without a change on
//! disk.
//!
//! Neither containerd 1.6 nor runc 1.1 knows of this. So the layers of the image, and what is mounted in the
//! container, are mounted once more in the container's directory, seen through the pod's user namespace, and are given
//! to both from there. Overlay and runc hold what they have mounted: the places are cleared before the container
//! starts. Nothing here removes a directory with what is in it: it may be somebody's files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, chown, lchown};
use std::path::{Path, PathBuf};

use containerd_client::types::Mount as RootMount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::{MOUNT_ATTR_NOEXEC, MOUNT_ATTR_RDONLY};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use super::image_volume::FLAGS as IMAGE_FLAGS;
use crate::kernel::{Reach, copy_of_mount, mount_at, set_attributes};
use crate::paths::io_error;
use crate::sandbox::SharedNamespaces;
use crate::{Error, IdRange, Mount, PodSandboxConfig, Result};

/// Where all of it is mounted, in the container's directory.
const PLACES: &str = "mapped";

/// Options of an overlay.
const LOWER: &str = "lowerdir=";
const UPPER: &str = "upperdir=";

/// A pod's own users.
#[derive(Debug, Clone)]
pub(super) struct Users {
    /// The pinned user namespace.
    pub(super) namespace: PathBuf,
    pub(super) ids: IdRange,
}

/// Has each mount come from its place, where [`map_mounts`] puts it with all its attributes.
pub(super) fn from_places(directory: &Path, mounts: &[Mount]) -> Vec<Mount> {
    let from_place = |(number, mount): (usize, &Mount)| Mount {
        container_path: mount.container_path.clone(),
        host_path: place_of_mount(directory, number),
        propagation: mount.propagation,
        ..Mount::default()
    };
    mounts.iter().enumerate().map(from_place).collect()
}

/// Mounts each at its place, seen through the users; of an image that is a volume, its layers.
///
/// # Errors
/// [`Error::Invalid`] names the mount that cannot be seen so: its file system does not do it.
pub(super) fn map_mounts(directory: &Path, users: &Users, mounts: &[Mount]) -> Result<()> {
    let namespace = users.open()?;
    let mount_table = mount_table()?;
    for (number, mount) in mounts.iter().enumerate() {
        // Images are always shown so; what is mounted elsewhere keeps its own ways.
        if mount.read_only
            && mount.no_exec
            && let Some(view) = View::at(&mount_table, &mount.host_path)
        {
            map_view(directory, number, &namespace, &view)?;
            continue;
        }
        let mut attributes = if mount.read_only { MOUNT_ATTR_RDONLY } else { 0 };
        attributes |= if mount.no_exec { MOUNT_ATTR_NOEXEC } else { 0 };
        let source = &mount.host_path;
        let copy = copy_of_mount(source, Reach::Tree).map_err(io_error("copy the mount of", source))?;
        let seen = set_attributes(&copy, 0, Some(&namespace), Reach::Tree).or_else(|error| {
            match error.raw_os_error().map(Errno::from_raw) {
                // Something that is mounted below: it stays as it is, nobody's among the pod's users, as upstream.
                Some(Errno::EINVAL | Errno::EPERM | Errno::EOPNOTSUPP) => {
                    set_attributes(&copy, 0, Some(&namespace), Reach::Top)
                }
                _ => Err(error),
            }
        });
        seen.map_err(|error| Error::Invalid {
            field: "volumeMounts.mountPath",
            message: format!(
                "{} ({}) cannot be shown to users of the pod's own: its file system has no idmapped mounts: {error}",
                mount.container_path.display(),
                source.display(),
            ),
        })?;
        let reach = if mount.recursive_read_only { Reach::Tree } else { Reach::Top };
        set_attributes(&copy, attributes, None, reach).map_err(io_error("set attributes of", source))?;
        let is_directory = fs::metadata(source).map_err(io_error("look at", source))?.is_dir();
        let place = place_of_mount(directory, number);
        make_place(&place, is_directory)?;
        mount_at(&copy, &place).map_err(io_error("mount at", &place))?;
    }
    Ok(())
}

/// Mounts what the root file system consists of at its places, seen through the users, and has what is written belong to
/// them. Returns what the root is mounted from.
pub(super) fn map_root(directory: &Path, users: &Users, root: Vec<RootMount>) -> Result<Vec<RootMount>> {
    let namespace = users.open()?;
    let parts: Vec<_> = root.iter().flat_map(Part::of).collect();
    for (number, part) in parts.iter().enumerate() {
        let attributes = if part.is_layer { MOUNT_ATTR_RDONLY } else { 0 };
        map_part(Path::new(part.path), &place_of_part(directory, number), &namespace, attributes)?;
    }
    if let (Some(upper), Some(layer)) = (root.iter().find_map(upper_of), parts.first()) {
        // What is written is kept as the node sees it. containerd gave it the owner that the layer below has.
        let owner = fs::metadata(layer.path).map_err(io_error("look at", Path::new(layer.path)))?;
        let upper = Path::new(upper);
        lchown(upper, Some(users.on_node(owner.uid())), Some(users.on_node(owner.gid())))
            .map_err(io_error("give away", upper))?;
    }
    Ok(root_from_places(directory, root))
}

fn map_part(path: &Path, place: &Path, namespace: &File, attributes: u64) -> Result<()> {
    let copy = copy_of_mount(path, Reach::Top).map_err(io_error("copy the mount of", path))?;
    set_attributes(&copy, attributes, Some(namespace), Reach::Top)
        .map_err(io_error("show other owners of what is in", path))?;
    make_place(place, true)?;
    mount_at(&copy, place).map_err(io_error("mount at", place))
}

/// An image that is a volume, or a part of it, mounted once more of its layers: an overlay itself cannot be seen through
/// users, they can.
fn map_view(directory: &Path, number: usize, namespace: &File, view: &View) -> Result<()> {
    let mut layers = Vec::new();
    for (layer, path) in view.layers.iter().enumerate() {
        let place = directory.join(PLACES).join(format!("view-{number}-{layer}"));
        map_part(Path::new(path), &place, namespace, MOUNT_ATTR_RDONLY)?;
        let opened = open(&place, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        layers.push(opened.map_err(|error| io_error("open", &place)(error.into()))?);
    }
    let place = place_of_mount(directory, number);
    let whole = match view.part.as_os_str().is_empty() {
        true => place.clone(),
        false => directory.join(PLACES).join(format!("view-{number}")),
    };
    make_place(&whole, true)?;
    // By descriptors: the paths of many layers are longer than the kernel takes in one mount.
    let names: Vec<_> = layers.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();
    let options = format!("{LOWER}{}", names.join(":"));
    mount(Some("overlay"), &whole, Some("overlay"), IMAGE_FLAGS, Some(options.as_str()))
        .map_err(|error| io_error("mount at", &whole)(error.into()))?;
    if whole == place {
        return Ok(());
    }
    let part = whole.join(&view.part);
    let is_directory = fs::metadata(&part).map_err(io_error("look at", &part))?.is_dir();
    let copy = copy_of_mount(&part, Reach::Top).map_err(io_error("copy the mount of", &part))?;
    make_place(&place, is_directory)?;
    mount_at(&copy, &place).map_err(io_error("mount at", &place))
}

fn mount_table() -> Result<String> {
    let path = Path::new("/proc/self/mountinfo");
    fs::read_to_string(path).map_err(io_error("read", path))
}

/// An overlay that takes no writes.
#[derive(Debug, PartialEq, Eq)]
struct View {
    /// From above to below.
    layers: Vec<String>,
    /// Which part of it is mounted, by its path in there; empty for all of it.
    part: PathBuf,
}

impl View {
    /// What is mounted there, where it is one; by mountinfo (proc(5)).
    fn at(mount_table: &str, path: &Path) -> Option<Self> {
        let is_there = |line: &&str| line.split(' ').nth(4).map(Path::new) == Some(path);
        let line = mount_table.lines().rfind(is_there)?;
        let part = line.split(' ').nth(3)?.trim_start_matches('/').into();
        let options = line.split_once(" - ")?.1.strip_prefix("overlay ")?.split_once(' ')?.1;
        let lower = options.split(',').find_map(|option| option.strip_prefix(LOWER))?;
        let is_written = options.split(',').any(|option| option.starts_with(UPPER));
        (!is_written).then(|| Self { layers: lower.split(':').map(str::to_owned).collect(), part })
    }
}

/// What the root is mounted from, where [`map_root`] has been here for it.
pub(super) fn root_again(directory: &Path, root: Vec<RootMount>) -> Vec<RootMount> {
    if place_of_part(directory, 0).exists() { root_from_places(directory, root) } else { root }
}

/// Gives the streams of a container's process, which its shim made, to the user that it runs as, so that it can open them
/// by name (`/dev/stdout`). runc does it too, but from within, where it may not.
pub(super) fn give_streams(pid: u32, uid: u32) -> Result<()> {
    for number in 0..=2 {
        let path = PathBuf::from(format!("/proc/{pid}/fd/{number}"));
        match fs::metadata(&path) {
            Ok(stream) if stream.file_type().is_fifo() => match chown(&path, Some(uid), None) {
                Err(error) if !has_ended(&error) => return Err(io_error("give away", &path)(error)),
                _ => {}
            },
            // It has ended, or it is no pipe.
            _ => {}
        }
    }
    Ok(())
}

/// What is said of the files of a process that is no more.
fn has_ended(error: &std::io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::ENOENT | Errno::ESRCH))
}

/// Clears all places. None is success.
pub(super) fn clear(directory: &Path) -> Result<()> {
    let places = directory.join(PLACES);
    let entries = match fs::read_dir(&places) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io_error("list", &places))?,
    };
    for entry in entries {
        let place = entry.map_err(io_error("list", &places))?.path();
        loop {
            // A copy of what is shared is its peer: what is unmounted below it would go there too.
            let apart = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            match mount(None::<&str>, &place, None::<&str>, apart, None::<&str>) {
                Ok(()) => {}
                Err(Errno::EINVAL) => break,
                Err(error) => return Err(io_error("set apart the mount at", &place)(error.into())),
            }
            match umount2(&place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::EINVAL) => break,
                Err(error) => return Err(io_error("unmount", &place)(error.into())),
            }
        }
        let is_directory = fs::symlink_metadata(&place).is_ok_and(|place| place.is_dir());
        // Fails where something is in it.
        let removed = if is_directory { fs::remove_dir(&place) } else { fs::remove_file(&place) };
        removed.map_err(io_error("remove", &place))?;
    }
    fs::remove_dir(&places).map_err(io_error("remove", &places))
}

impl Users {
    /// `None` for a pod that has the node's.
    pub(super) fn of(pod: &PodSandboxConfig, namespaces: &SharedNamespaces) -> Option<Self> {
        Some(Self { ids: pod.users?, namespace: namespaces.users.clone()? })
    }

    fn open(&self) -> Result<File> {
        File::open(&self.namespace).map_err(io_error("open", &self.namespace))
    }

    /// Nobody's number where the pod's users do not have it.
    fn on_node(&self, id: u32) -> u32 {
        if id < self.ids.count { self.ids.first + id } else { id }
    }
}

/// A directory that a root file system is made of.
struct Part<'a> {
    path: &'a str,
    /// Nothing is written to it.
    is_layer: bool,
}

impl<'a> Part<'a> {
    /// In the order of the options: layers from above to below, or the one directory that is mounted as it is.
    fn of(root: &'a RootMount) -> Vec<Self> {
        let lower = root.options.iter().find_map(|option| option.strip_prefix(LOWER));
        match lower {
            Some(layers) => layers.split(':').map(|path| Self { path, is_layer: true }).collect(),
            None => vec![Self { path: &root.source, is_layer: false }],
        }
    }
}

fn upper_of(root: &RootMount) -> Option<&str> {
    root.options.iter().find_map(|option| option.strip_prefix(UPPER))
}

fn root_from_places(directory: &Path, mut root: Vec<RootMount>) -> Vec<RootMount> {
    let mut places = (0..).map(|number| place_of_part(directory, number).to_string_lossy().into_owned());
    for mount in &mut root {
        match mount.options.iter_mut().find(|option| option.starts_with(LOWER)) {
            Some(lower) => {
                let count = lower.split(':').count();
                let layers: Vec<_> = places.by_ref().take(count).collect();
                *lower = format!("{LOWER}{}", layers.join(":"));
            }
            None => mount.source = places.next().unwrap_or_default(),
        }
    }
    root
}

fn place_of_mount(directory: &Path, number: usize) -> PathBuf {
    directory.join(PLACES).join(format!("mount-{number}"))
}

fn place_of_part(directory: &Path, number: usize) -> PathBuf {
    directory.join(PLACES).join(format!("root-{number}"))
}

/// Where something can be mounted: what is to be covered has to be of its kind. Root alone gets there: for others of the
/// node, whose numbers are a pod's by chance, files are not to be whose they are in the pod.
fn make_place(path: &Path, is_directory: bool) -> Result<()> {
    if let Some(places) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(places);
        made.map_err(io_error("create", places))?;
    }
    if is_directory {
        return fs::create_dir_all(path).map_err(io_error("create", path));
    }
    OpenOptions::new().create(true).append(true).open(path).map_err(io_error("create", path)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(kind: &str, source: &str, options: &[&str]) -> RootMount {
        RootMount {
            r#type: kind.into(),
            source: source.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn root_comes_from_the_places_of_its_layers() {
        let overlay = root(
            "overlay",
            "overlay",
            &["index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs"],
        );
        assert_eq!(upper_of(&overlay), Some("/s/3/fs"));
        let placed = root_from_places(Path::new("/c"), vec![overlay]);
        assert_eq!(placed[0].options[..3], ["index=off", "workdir=/s/3/work", "upperdir=/s/3/fs"]);
        assert_eq!(placed[0].options[3], "lowerdir=/c/mapped/root-0:/c/mapped/root-1");
        let copy = root("bind", "/s/4/fs", &["rw", "rbind"]);
        let placed = root_from_places(Path::new("/c"), vec![copy]);
        assert_eq!((placed[0].source.as_str(), placed[0].options.len()), ("/c/mapped/root-0", 2));
        let untouched = vec![root("bind", "/s/4/fs", &["rw", "rbind"])];
        assert_eq!(root_again(Path::new("/nowhere"), untouched.clone()), untouched);
    }

    #[test]
    fn layers_of_an_image_that_is_a_volume_are_found() {
        let table = "20 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                     21 20 0:50 / /v/image ro,nosuid shared:7 - overlay overlay ro,lowerdir=/s/2/fs:/s/1/fs,index=off\n\
                     23 20 0:50 /models /v/part ro,nosuid - overlay overlay ro,lowerdir=/s/2/fs:/s/1/fs\n\
                     22 20 0:51 / /v/other rw - overlay overlay rw,lowerdir=/s/1/fs,upperdir=/s/3/fs,workdir=/s/3/work\n";
        let view = |path: &str| View::at(table, Path::new(path));
        let layers = || vec!["/s/2/fs".to_owned(), "/s/1/fs".to_owned()];
        assert_eq!(view("/v/image"), Some(View { layers: layers(), part: PathBuf::new() }));
        assert_eq!(view("/v/part"), Some(View { layers: layers(), part: "models".into() }));
        for none in ["/", "/v", "/v/other"] {
            assert_eq!(view(none), None, "{none}");
        }
    }

    #[test]
    fn mounts_come_from_their_places_as_they_are_there() {
        let mount = Mount {
            container_path: "/data".into(),
            host_path: "/v/data".into(),
            read_only: true,
            propagation: crate::MountPropagation::HostToContainer,
            ..Mount::default()
        };
        let placed = from_places(Path::new("/c"), &[mount]);
        assert_eq!(placed[0].host_path, Path::new("/c/mapped/mount-0"));
        assert_eq!(placed[0].propagation, crate::MountPropagation::HostToContainer);
        assert!(!placed[0].read_only, "its place is");
    }

    #[test]
    fn what_is_in_a_place_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        clear(directory.path()).unwrap();
        let place = place_of_mount(directory.path(), 0);
        make_place(&place, true).unwrap();
        fs::write(place.join("file"), "kept").unwrap();
        assert!(clear(directory.path()).is_err());
        assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "kept");
    }
}
