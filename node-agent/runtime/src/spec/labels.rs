//! What Linux security modules are told of a container: its AppArmor profile, its SELinux labels.

use crate::{AppArmor, Error, Result, SeLinux};

/// Where the kernel lists the profiles that are loaded, as `name (mode)`.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// There where SELinux is on.
const SELINUX: &str = "/sys/fs/selinux/enforce";
/// The profile that stands for the runtime's own, as containerd's CRI names and loads it.
const DEFAULT_PROFILE: &str = "cri-containerd.apparmor.d";

/// The profile that runc is to apply; `None` for none.
pub(crate) fn apparmor(wanted: &AppArmor) -> Result<Option<String>> {
    match wanted {
        AppArmor::Unconfined => Ok(None),
        _ => profile(wanted, &std::fs::read_to_string(PROFILES).unwrap_or_default()),
    }
}

fn profile(wanted: &AppArmor, loaded: &str) -> Result<Option<String>> {
    let name = match wanted {
        AppArmor::Unconfined => return Ok(None),
        AppArmor::RuntimeDefault => DEFAULT_PROFILE,
        AppArmor::Localhost(name) => name,
    };
    let is_loaded = loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name));
    match is_loaded {
        true => Ok(Some(name.to_owned())),
        false => {
            let message = format!("profile {name:?} is not loaded");
            Err(Error::Invalid { field: "appArmorProfile", message })
        }
    }
}

/// Labels of the process and of what it mounts; `None` where the kernel has no SELinux, which upstream passes over too.
pub(crate) fn selinux(options: &SeLinux) -> Option<(String, String)> {
    std::path::Path::new(SELINUX).exists().then(|| labels(options)).flatten()
}

/// The parts that are not given are those of containers in general.
fn labels(options: &SeLinux) -> Option<(String, String)> {
    if *options == SeLinux::default() {
        return None;
    }
    let part = |given: &Option<String>, general: &'static str| {
        given.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| general.to_owned())
    };
    let (user, level) = (part(&options.user, "system_u"), part(&options.level, "s0"));
    let (role, kind) = (part(&options.role, "system_r"), part(&options.kind, "container_t"));
    Some((format!("{user}:{role}:{kind}:{level}"), format!("{user}:object_r:container_file_t:{level}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_has_to_be_loaded() {
        let loaded = "cri-containerd.apparmor.d (enforce)\nk8s-deny (complain)\n";
        let check = |wanted: AppArmor, loaded: &str, expected: Option<Option<&str>>| {
            let found = profile(&wanted, loaded).ok();
            assert_eq!(found.as_ref().map(Option::as_deref), expected, "{wanted:?}");
        };
        check(AppArmor::Unconfined, "", Some(None));
        check(AppArmor::RuntimeDefault, loaded, Some(Some("cri-containerd.apparmor.d")));
        check(AppArmor::Localhost("k8s-deny".into()), loaded, Some(Some("k8s-deny")));
        check(AppArmor::Localhost("k8s".into()), loaded, None);
        check(AppArmor::RuntimeDefault, "", None);
    }

    #[test]
    fn labels_are_completed() {
        assert_eq!(labels(&SeLinux::default()), None);
        let level = SeLinux { level: Some("s0:c1,c2".into()), ..SeLinux::default() };
        let process = "system_u:system_r:container_t:s0:c1,c2".to_owned();
        assert_eq!(labels(&level), Some((process, "system_u:object_r:container_file_t:s0:c1,c2".into())));
        let all = SeLinux {
            user: Some("u".into()),
            role: Some("r".into()),
            kind: Some("t".into()),
            level: Some("l".into()),
        };
        assert_eq!(labels(&all), Some(("u:r:t:l".into(), "u:object_r:container_file_t:l".into())));
    }
}
