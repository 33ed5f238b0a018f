//! A short-lived process that makes namespaces which belong to a pod's own users, a mode of the agent's own binary.
//!
//! Only a process with a single thread can make or join a user namespace, and the agent has many. So this one does, says
//! on its output that all is there, and stays until the agent has pinned it and closes its input; an agent that dies
//! meanwhile closes it too. It never runs another program in there: so its memory stays the node's, and no process
//! of the pod can trace it, whatever rights it has among the pod's users.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::process::ExitCode;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgroups, sethostname};

use crate::{kernel, pod_init};

/// First argument of the program in this mode. The pod's uid follows, for people who look; then [`NEW_USERS`], or the
/// path of the user namespace to join, the host name, and which namespaces to make in it.
pub const MODE: &str = "pod-namespaces";

/// A user namespace is made; who is in it, the agent says from outside.
pub(crate) const NEW_USERS: &str = "new-users";

/// What can be made, as `/proc/<pid>/ns` calls it. The first process of new processes stays: it is [`pod_init`].
const KINDS: [(&str, CloneFlags); 4] = [
    ("net", CloneFlags::CLONE_NEWNET),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("pid", CloneFlags::CLONE_NEWPID),
];

/// Runs with the arguments after [`MODE`]. Prints the number of the process that is in the namespaces, or what failed.
pub fn run(words: &[OsString]) -> ExitCode {
    match make(words) {
        Ok(Made::Here) => {
            println!("{}", std::process::id());
            // Until the agent is done with it, or gone.
            let _ = io::stdin().read(&mut [0]);
            ExitCode::SUCCESS
        }
        Ok(Made::InChild(pid)) => {
            println!("{pid}");
            ExitCode::SUCCESS
        }
        Ok(Made::AsChild) => pod_init::run(),
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

enum Made {
    Here,
    /// This is the process that made the child.
    InChild(i32),
    /// This is the child.
    AsChild,
}

fn make(words: &[OsString]) -> io::Result<Made> {
    let (users, more) = match words {
        [_, users] if users == NEW_USERS => {
            unshare(CloneFlags::CLONE_NEWUSER)?;
            return Ok(Made::Here);
        }
        [_, users, host_name, kinds @ ..] => (users, (host_name, kinds)),
        _ => return Err(io::Error::other("words are missing")),
    };
    let (host_name, kinds) = more;
    setns(File::open(users)?, CloneFlags::CLONE_NEWUSER)?;
    become_root()?;
    let wanted = |kind: &str| kinds.iter().any(|wanted| wanted == OsStr::new(kind));
    let flags = KINDS.iter().filter(|(kind, _)| wanted(kind)).map(|(_, flag)| *flag).collect();
    unshare(flags)?;
    if wanted("uts") {
        sethostname(host_name)?;
    }
    if !wanted("pid") {
        return Ok(Made::Here);
    }
    Ok(match kernel::fork_alone()? {
        Some(pid) => Made::InChild(pid),
        None => {
            // The agent reads to the end of a line, and nobody after it.
            nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
            Made::AsChild
        }
    })
}

/// The node's root is nobody among the pod's users.
fn become_root() -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setresgid(group, group, group)?;
    setgroups(&[])?;
    nix::unistd::setresuid(user, user, user)?;
    // Whatever `fs.suid_dumpable` says: who could trace this process would be among the node's files.
    nix::sys::prctl::set_dumpable(false)
}
