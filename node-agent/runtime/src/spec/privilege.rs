//! What the kernel lets this process, and the shims below it, give to a container.

use std::fs;

/// Bit of `CAP_SYS_RESOURCE` in the capability sets (linux/capability.h).
const CAP_SYS_RESOURCE: u32 = 24;

/// The wanted score, or where lowering it is not allowed (a virtual machine or container without
/// `CAP_SYS_RESOURCE`) the lowest one that is: runc would refuse to start the container.
pub(super) fn allowed_oom_score_adj(wanted: i32) -> i32 {
    if may_lower_oom_score() { wanted } else { wanted.max(own_oom_score_adj()) }
}

fn may_lower_oom_score() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status).is_none_or(|set| set & (1 << CAP_SYS_RESOURCE) != 0)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn own_oom_score_adj() -> i32 {
    let text = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_set_is_read_from_the_status_file() {
        let status = "Name:\tagent\nCapPrm:\t0000000000000000\nCapEff:\t000001fffeffffff\n";
        let set = effective_capabilities(status).expect("a set");
        assert_eq!(set & (1 << CAP_SYS_RESOURCE), 0);
        assert_ne!(set & (1 << 21), 0, "CAP_SYS_ADMIN is there");
    }

    #[test]
    fn raising_the_score_is_always_allowed() {
        assert_eq!(allowed_oom_score_adj(1000), 1000);
    }
}
