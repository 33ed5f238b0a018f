//! What SELinux is told of a container: its labels.

use crate::SeLinux;

/// There where SELinux is on.
const SELINUX: &str = "/sys/fs/selinux/enforce";
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
