//! Namespaces of a pod that has users of its own (KEP-127): numbers from 0 on in the pod are a range of the node's.
//!
//! Its user namespace comes first, since the others belong to the one in which they are made: only so may the pod's root
//! change its host name, its network's settings, or see its own `/sys`. [`crate::pod_namespaces`] makes them.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::namespaces::{is_pinned, pin_from};
use super::{processes, unmount};
use crate::fault;
use crate::paths::io_error;
use crate::pod_namespaces::{MODE, NEW_USERS};
use crate::{IdRange, Result};

/// The pinned namespaces in a sandbox's directory: the users, and the network as it is before it is set up.
pub(super) const USERS: &str = "user";
pub(super) const NETWORK: &str = "net";

/// Pins the user namespace and, in it, a network namespace. What is pinned already stays.
pub(super) fn pin(directory: &Path, program: &Path, pod_uid: &str, ids: IdRange) -> Result<()> {
    let users = directory.join(USERS);
    if !is_pinned(&users) {
        // They would belong to users that are gone.
        processes::stop(directory)?;
        for name in [NETWORK, "uts", "ipc", processes::NAMESPACE] {
            unmount(&directory.join(name))?;
        }
        let maker = Maker::start(program, &[pod_uid.as_ref(), NEW_USERS.as_ref()])?;
        fault::point("sandbox: users made");
        maker.admit(ids)?;
        pin_from(&maker.namespace("user"), &users)?;
        fault::point("sandbox: users pinned");
    }
    pin_in(&users, program, pod_uid, "", &[("net", &directory.join(NETWORK))])?;
    fault::point("sandbox: users' network pinned");
    Ok(())
}

/// Makes and pins namespaces that belong to `users`, as `/proc/<pid>/ns` calls them. What is pinned already stays.
pub(super) fn pin_in(
    users: &Path,
    program: &Path,
    pod_uid: &str,
    host_name: &str,
    wanted: &[(&str, &Path)],
) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|(_, path)| !is_pinned(path)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let kinds = missing.iter().map(|(kind, _)| OsStr::new(*kind));
    let words: Vec<_> =
        [pod_uid.as_ref(), users.as_os_str(), host_name.as_ref()].into_iter().chain(kinds).collect();
    let maker = Maker::start(program, &words)?;
    for (kind, path) in missing {
        pin_from(&maker.namespace(kind), path)?;
        fault::point("sandbox: users' namespace pinned");
    }
    Ok(())
}

/// The first process of new processes that belong to `users`, and what it waits for to begin.
pub(super) fn first_process(
    users: &Path,
    program: &Path,
    pod_uid: &str,
) -> Result<(u32, Option<ChildStdin>)> {
    let words = [pod_uid.as_ref(), users.as_os_str(), OsStr::new(""), OsStr::new("pid")];
    let mut maker = Maker::start(program, &words)?;
    Ok((maker.pid, maker.child.stdin.take()))
}

/// Whether this node can give pods users of their own: there are user namespaces, and what is in these directories can be
/// shown through one. Changes nothing.
pub(crate) fn probe(program: &Path, directories: &[PathBuf]) -> Result<()> {
    use crate::kernel::{Reach, copy_of_mount, set_attributes};

    let maker = Maker::start(program, &["probe".as_ref(), NEW_USERS.as_ref()])?;
    maker.admit(IdRange { first: 1 << 16, count: 1 << 16 })?;
    let path = PathBuf::from(maker.namespace("user"));
    let users = fs::File::open(&path).map_err(io_error("open", &path))?;
    for directory in directories {
        copy_of_mount(directory, Reach::Top)
            .and_then(|copy| set_attributes(&copy, 0, Some(&users), Reach::Top))
            .map_err(io_error("show other owners of what is in", directory))?;
    }
    Ok(())
}

/// A process in new namespaces, which ends with this value.
struct Maker {
    child: Child,
    /// In the namespaces: its own number, or that of its child.
    pid: u32,
}

impl Maker {
    fn start(program: &Path, words: &[&OsStr]) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(MODE)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(io_error("run", program))?;
        let mut line = String::new();
        let read = child.stdout.take().map_or(Ok(0), |out| BufReader::new(out).read_line(&mut line));
        let mut maker = Self { child, pid: 0 };
        read.map_err(io_error("make users' namespaces with", program))?;
        let said = line.trim();
        maker.pid = said.parse().map_err(|_| {
            let why = if said.is_empty() { "it said nothing" } else { said };
            io_error("make users' namespaces with", program)(io::Error::other(why.to_owned()))
        })?;
        Ok(maker)
    }

    /// Says who is in the user namespace: numbers from 0 on there are these of the node, users and groups alike.
    fn admit(&self, ids: IdRange) -> Result<()> {
        for map in ["uid_map", "gid_map"] {
            let path = PathBuf::from(format!("/proc/{}/{map}", self.pid));
            fs::write(&path, format!("0 {} {}\n", ids.first, ids.count)).map_err(io_error("write", &path))?;
        }
        Ok(())
    }

    fn namespace(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.pid)
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
