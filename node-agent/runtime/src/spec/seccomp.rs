//! System call filters, as runc takes them.
//!
//! `RuntimeDefault` refuses what changes the kernel, the clock, mounts or namespaces, unless the
//! container has the capability that such calls need anyway. It lists what is refused, so calls that
//! newer kernels bring are allowed until they are listed; containerd's profile lists what is allowed.

use std::path::Path;

use serde_json::{Value, json};

use crate::{Error, Result, Seccomp, Security};

/// (capability that allows them, system calls)
const REFUSED: &[(&str, &[&str])] = &[
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "swapoff",
            "swapon",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("SYS_BOOT", &["reboot", "kexec_load", "kexec_file_load"]),
    ("SYS_MODULE", &["create_module", "delete_module", "init_module", "finit_module", "query_module"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_RAWIO", &["iopl", "ioperm"]),
    ("SYS_TIME", &["clock_settime", "clock_settime64", "clock_adjtime", "settimeofday", "stime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    ("SYS_NICE", &["mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("SYSLOG", &["syslog"]),
    (
        "",
        &[
            "_sysctl",
            "add_key",
            "get_kernel_syms",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "keyctl",
            "nfsservctl",
            "request_key",
            "sysfs",
            "uselib",
            "userfaultfd",
            "ustat",
            "vm86",
            "vm86old",
        ],
    ),
];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// `CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET`
const CLONE_NEW_ANY: u64 = 0x7E02_0000;

/// The filter of a container; `None` for none. Privileged containers have none, as upstream.
pub(crate) fn profile(security: &Security) -> Result<Option<Value>> {
    match &security.seccomp {
        _ if security.privileged => Ok(None),
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => Ok(Some(runtime_default(&security.add_capabilities))),
        Seccomp::Localhost(path) => read(path).map(Some),
    }
}

fn runtime_default(added: &[String]) -> Value {
    let has = |wanted: &str| {
        added.iter().map(|name| name.to_ascii_uppercase()).any(|name| {
            let bare = name.strip_prefix("CAP_").unwrap_or(&name);
            bare == "ALL" || bare == wanted
        })
    };
    let names: Vec<&str> = REFUSED
        .iter()
        .filter(|(capability, _)| capability.is_empty() || !has(capability))
        .flat_map(|(_, calls)| calls.iter().copied())
        .collect();
    let mut syscalls = vec![json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM })];
    if !has("SYS_ADMIN") {
        // New namespaces by clone. clone3 passes its flags by pointer, which a filter cannot look at;
        // ENOSYS makes the C library fall back to clone. One rule a flag: a masked comparison can only
        // say "these bits are all of that value".
        for bit in (0..64).map(|shift| 1_u64 << shift).filter(|bit| bit & CLONE_NEW_ANY != 0) {
            let arguments =
                json!([{ "index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ" }]);
            syscalls.push(json!({
                "names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM, "args": arguments,
            }));
        }
        syscalls.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures(), "syscalls": syscalls })
}

fn architectures() -> Vec<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => vec!["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => Vec::new(),
    }
}

fn read(path: &Path) -> Result<Value> {
    let invalid = |message: String| Error::Invalid { field: "securityContext.seccompProfile", message };
    let text = std::fs::read(path).map_err(|e| invalid(format!("{}: {e}", path.display())))?;
    serde_json::from_slice(&text).map_err(|e| invalid(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(added: &[&str], call: &str) -> bool {
        let added: Vec<String> = added.iter().map(|a| a.to_string()).collect();
        let profile = runtime_default(&added);
        let rules = profile["syscalls"].as_array().unwrap();
        rules.iter().any(|r| r["names"].as_array().unwrap().iter().any(|n| n == call))
    }

    #[test]
    fn capability_opens_its_calls() {
        assert!(refuses(&[], "mount") && refuses(&[], "clone3") && refuses(&[], "keyctl"));
        assert!(!refuses(&["CAP_SYS_ADMIN"], "mount") && !refuses(&["sys_admin"], "clone"));
        assert!(refuses(&["SYS_ADMIN"], "reboot") && refuses(&["ALL"], "keyctl"));
        assert!(!refuses(&[], "openat"));
    }

    #[test]
    fn privileged_has_no_filter() {
        let security = Security { seccomp: Seccomp::RuntimeDefault, privileged: true, ..Default::default() };
        assert_eq!(profile(&security).unwrap(), None);
    }

    #[test]
    fn missing_local_profile_is_named() {
        let seccomp = Seccomp::Localhost("/no/such/profile.json".into());
        let error = profile(&Security { seccomp, ..Default::default() }).unwrap_err();
        assert!(error.to_string().contains("/no/such/profile.json"), "{error}");
    }
}
