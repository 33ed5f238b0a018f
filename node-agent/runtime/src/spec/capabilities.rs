//! Which capabilities a container gets: the default set, what the pod adds and drops.

use crate::{Error, Result};

/// What containers get that ask for nothing: the set that containerd and Docker use.
const DEFAULT: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All of capability.h, in its order.
const ALL: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// `ALL` is applied first, single names after it, and what is dropped stays dropped only if not added:
/// `add: [ALL], drop: [X]` is all but X, `drop: [ALL], add: [X]` is X alone.
pub(super) fn resolve(privileged: bool, add: &[String], drop: &[String]) -> Result<Vec<&'static str>> {
    if privileged {
        return Ok(ALL.to_vec());
    }
    let is_all = |names: &[String]| names.iter().any(|n| n.eq_ignore_ascii_case("ALL"));
    let mut set = DEFAULT.to_vec();
    if is_all(add) {
        set = ALL.to_vec();
    }
    if is_all(drop) {
        set.clear();
    }
    for name in add.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")) {
        let capability = lookup(name)?;
        if !set.contains(&capability) {
            set.push(capability);
        }
    }
    for name in drop.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")) {
        let capability = lookup(name)?;
        set.retain(|c| *c != capability);
    }
    Ok(set)
}

fn lookup(name: &str) -> Result<&'static str> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.iter().copied().find(|c| &c[4..] == bare).ok_or_else(|| Error::Invalid {
        field: "securityContext.capabilities",
        message: format!("unknown capability {name:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, add: &[&str], drop: &[&str], has: &[&str], count: usize) {
        let owned = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let set = resolve(false, &owned(add), &owned(drop)).unwrap();
        assert!(has.iter().all(|c| set.contains(c)), "{name}: {set:?}");
        assert_eq!(set.len(), count, "{name}: {set:?}");
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        check("nothing asked", &[], &[], &["CAP_CHOWN"], 14);
        check("added", &["NET_ADMIN"], &[], &["CAP_NET_ADMIN"], 15);
        check("prefix and case do not matter", &["cap_net_admin"], &[], &["CAP_NET_ADMIN"], 15);
        check("added twice", &["CHOWN"], &[], &["CAP_CHOWN"], 14);
        check("dropped", &[], &["CHOWN"], &[], 13);
        check("all dropped, one added", &["NET_BIND_SERVICE"], &["ALL"], &["CAP_NET_BIND_SERVICE"], 1);
        check("all added, one dropped", &["ALL"], &["SYS_ADMIN"], &["CAP_BPF"], 40);
        assert!(resolve(false, &["NO_SUCH".into()], &[]).is_err());
        assert_eq!(resolve(true, &[], &["ALL".into()]).unwrap().len(), 41);
    }
}
