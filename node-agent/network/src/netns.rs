//! Network namespaces pinned as files, as `ip netns` does it: a bind mount of the namespace onto a file keeps it
//! alive without a process, and containers join it by path.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    thread,
};

use hawser_fault::point;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, statfs},
};

use crate::Error;

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// Makes the namespace unless it is pinned there already. `given` is pinned elsewhere, and is to be taken in its place.
pub(crate) fn ensure(path: &Path, given: Option<&Path>) -> Result<File, Error> {
    if !is_pinned(path) {
        File::create(path).map_err(Error::file("cannot create", path))?;
        point("network: file for the namespace made");
        let target = path.to_owned();
        let given = given.map(Path::to_owned);
        // A thread of its own: unshare changes the calling thread's namespace for good.
        let made = thread::spawn(move || -> nix::Result<()> {
            let none: Option<&str> = None;
            if let Some(given) = given {
                return mount(Some(&given), &target, none, MsFlags::MS_BIND, none);
            }
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, none, MsFlags::MS_BIND, none)
        });
        let made = made.join().unwrap_or(Err(Errno::ECANCELED));
        made.map_err(|errno| Error::Namespace { action: "make", source: errno.into() })?;
    }
    File::open(path).map_err(Error::file("cannot open", path))
}

/// Whether another namespace than `given` is pinned at `path`.
pub(crate) fn is_another(path: &Path, given: &Path) -> Result<bool, Error> {
    if !is_pinned(path) {
        return Ok(false);
    }
    let number = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let given_number = number(given).map_err(Error::file("cannot look at", given))?;
    Ok(number(path).map_err(Error::file("cannot look at", path))? != given_number)
}

fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

/// Removes the pin; the namespace goes when its last process does.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    // More than one mount can lie on the file where an earlier run was cut off between two of its steps.
    while is_pinned(path) {
        umount2(path, MntFlags::MNT_DETACH)
            .map_err(|errno| Error::Namespace { action: "unpin", source: errno.into() })?;
    }
    point("network: namespace unpinned");
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("cannot remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Runs a future inside the namespace, on a thread with a runtime of its own: sockets belong to the namespace
/// of the thread that opens them.
pub(crate) async fn run_inside<F, Fut, T>(netns: &File, work: F) -> Result<T, Error>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, Error>>,
    T: Send + 'static,
{
    let failed = |source: io::Error| Error::Namespace { action: "enter", source };
    let netns = netns.try_clone().map_err(failed)?;
    let (done, outcome) = tokio::sync::oneshot::channel();
    let body = move || {
        let run = || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
            runtime.block_on(work())
        };
        // The caller may have gone; then nobody waits for the outcome.
        let _ = done.send(run());
    };
    thread::Builder::new().name("netns".into()).spawn(body).map_err(failed)?;
    outcome.await.unwrap_or_else(|_| Err(failed(io::Error::other("its thread ended early"))))
}
