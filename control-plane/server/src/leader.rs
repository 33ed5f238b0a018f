//! Which of several control planes over one store schedules and controls: flags, identity, and who leads.
//!
//! A control plane is known by its data directory, not by its process: one that is started again takes its own lease up
//! where it left it, instead of waiting for it to expire. A lock on the file with the identity, which the kernel takes back
//! from a process that dies, sees to it that no two processes have one.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use hawser_api::election::Election;
use uuid::Uuid;

#[derive(Args)]
#[group(id = "leader-flags")]
pub(crate) struct Flags {
    /// Whether the scheduler and the controllers wait until no other control plane runs them. Not given: with etcd, which
    /// several control planes can share.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    leader_elect: Option<bool>,
    /// Seconds that another control plane waits for a leader that is not heard of.
    #[arg(long, default_value_t = 15)]
    leader_elect_lease_duration: u64,
    /// Seconds that a leader goes on without renewing its lease.
    #[arg(long, default_value_t = 10)]
    leader_elect_renew_deadline: u64,
    /// Seconds between two looks at the lease.
    #[arg(long, default_value_t = 2)]
    leader_elect_retry_period: u64,
}

/// The leases of a control plane; upstream's names.
pub(crate) struct Elections {
    pub(crate) scheduler: Election,
    pub(crate) controllers: Election,
    /// Held as long as this process runs.
    _lock: File,
}

impl Flags {
    /// What to compete for; `None` where nobody competes.
    pub(crate) fn elections(&self, shared_store: bool, data_dir: &Path) -> anyhow::Result<Option<Elections>> {
        if !self.leader_elect.unwrap_or(shared_store) {
            return Ok(None);
        }
        let (identity, lock) = identity(data_dir)?;
        let election = |name: &str| -> anyhow::Result<Election> {
            let mut election = Election::new(name, &identity);
            election.lease_duration = Duration::from_secs(self.leader_elect_lease_duration);
            election.renew_deadline = Duration::from_secs(self.leader_elect_renew_deadline);
            election.retry_period = Duration::from_secs(self.leader_elect_retry_period);
            election.check().map_err(|why| anyhow!("--{why}"))?;
            Ok(election)
        };
        Ok(Some(Elections {
            scheduler: election("kube-scheduler")?,
            controllers: election("kube-controller-manager")?,
            _lock: lock,
        }))
    }
}

/// Who leads, under upstream's name.
pub(crate) fn metrics(elections: &[Election]) -> String {
    let mut text = "# HELP leader_election_master_status whether this control plane leads\n\
        # TYPE leader_election_master_status gauge\n"
        .to_owned();
    for election in elections {
        let leads = u8::from(election.leads());
        text += &format!("leader_election_master_status{{name=\"{}\"}} {leads}\n", election.name);
    }
    text
}

/// The identity of the directory's control plane, made at its first start, and the lock on it.
fn identity(data_dir: &Path) -> anyhow::Result<(String, File)> {
    let path = data_dir.join("identity");
    let shown = || path.display().to_string();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(shown)?;
    match file.try_lock() {
        Ok(()) => (),
        Err(TryLockError::WouldBlock) => {
            bail!("another control plane runs over {}: choose another --data-dir", data_dir.display())
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(shown),
    }
    let mut identity = String::new();
    file.read_to_string(&mut identity).with_context(shown)?;
    // Empty at first, and where a start was killed before it wrote.
    if identity.is_empty() {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        identity = format!("{}_{}", host.trim(), Uuid::new_v4());
        file.rewind().and_then(|()| file.write_all(identity.as_bytes())).with_context(shown)?;
        file.sync_all().with_context(shown)?;
    }
    Ok((identity, file))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn flags(arguments: &[&str]) -> Flags {
        Line::parse_from(["run"].iter().chain(arguments)).flags
    }

    #[test]
    fn control_planes_of_one_store_compete_unless_they_are_told_not_to() {
        let check = |arguments: &[&str], shared: bool, expected: bool| {
            let directory = tempfile::tempdir().unwrap();
            let elections = flags(arguments).elections(shared, directory.path()).unwrap();
            assert_eq!(elections.is_some(), expected, "{arguments:?} {shared}");
        };
        check(&[], true, true);
        check(&[], false, false);
        check(&["--leader-elect"], false, true);
        check(&["--leader-elect=false"], true, false);
    }

    #[test]
    fn timings_that_cannot_work_name_the_flag() {
        let directory = tempfile::tempdir().unwrap();
        let elections = flags(&["--leader-elect-lease-duration=10"]).elections(true, directory.path());
        assert_eq!(
            elections.err().unwrap().to_string(),
            "--leader-elect-lease-duration must be greater than leader-elect-renew-deadline"
        );
    }

    #[test]
    fn a_directory_has_one_identity_and_one_process() {
        let directory = tempfile::tempdir().unwrap();
        let (first, lock) = identity(directory.path()).unwrap();
        let second = identity(directory.path()).err().unwrap().to_string();
        assert!(second.starts_with("another control plane runs over "), "{second}");
        drop(lock);
        let (again, _lock) = identity(directory.path()).unwrap();
        assert_eq!(first, again);
        assert!(first.contains('_') && !first.contains('\n'), "{first}");
    }

    #[test]
    fn metrics_say_who_leads() {
        let text = metrics(&[Election::new("kube-scheduler", "me")]);
        assert!(text.ends_with("\nleader_election_master_status{name=\"kube-scheduler\"} 0\n"), "{text}");
    }
}
