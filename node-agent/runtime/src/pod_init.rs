//! The first process of a pod whose containers share a process namespace, a mode of the agent's own binary.
//!
//! The namespace lives as long as this process. It does nothing but take note of the ends of processes that lost their
//! parents, and is killed when the pod goes.

use std::io::Read;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// First argument of the program in this mode; the second is the pod's uid, for people who look.
pub const MODE: &str = "pod-init";

/// Runs until killed, or at once to its end where whoever started it died before it had taken note of it.
pub fn run() -> ExitCode {
    let children = SigSet::from(Signal::SIGCHLD);
    // Before the first child can end.
    if children.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    let mut go = [0];
    if !matches!(std::io::stdin().read(&mut go), Ok(1)) {
        return ExitCode::FAILURE;
    }
    loop {
        if children.wait().is_err() {
            return ExitCode::FAILURE;
        }
        // One signal stands for any number of ends.
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)
        ) {}
    }
}
