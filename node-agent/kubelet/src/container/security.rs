//! Security contexts of pod and container, merged: the container's word counts where both speak.

use std::path::Path;

use hawser_runtime::{AppArmor, Image, SeLinux, Seccomp, Security};
use k8s_openapi::api::core::v1::{AppArmorProfile, SELinuxOptions, SeccompProfile};

use super::ConfigError;
use crate::config::Config;
use crate::pod::{DesiredContainer, DesiredPod};

pub fn security(
    pod: &DesiredPod,
    container: &DesiredContainer,
    image: &Image,
    config: &Config,
) -> Result<Security, ConfigError> {
    let of_pod = pod.spec().security_context.clone().unwrap_or_default();
    let own = container.spec.security_context.clone().unwrap_or_default();
    let run_as_user = id(own.run_as_user.or(of_pod.run_as_user));
    let run_as_non_root = own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true);
    if run_as_non_root {
        verify_non_root(pod, container, image, run_as_user)?;
    }
    let groups = of_pod.supplemental_groups.iter().flatten().copied().chain(of_pod.fs_group);
    let capabilities = own.capabilities.unwrap_or_default();
    let given = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    let seccomp = match given {
        None if config.seccomp_default => Seccomp::RuntimeDefault,
        given => to_seccomp(given, &config.root_dir),
    };
    let privileged = own.privileged == Some(true);
    Ok(Security {
        run_as_user,
        run_as_group: id(own.run_as_group.or(of_pod.run_as_group)),
        supplemental_groups: groups.filter_map(|group| id(Some(group))).collect(),
        merge_image_groups: of_pod.supplemental_groups_policy.as_deref() != Some("Strict"),
        run_as_non_root,
        privileged,
        read_only_root: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        seccomp: if privileged { Seccomp::Unconfined } else { seccomp },
        apparmor: match privileged {
            true => AppArmor::Unconfined,
            false => to_apparmor(apparmor_profile(pod, container)),
        },
        selinux: to_selinux(own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref())),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

fn id(value: Option<i64>) -> Option<u32> {
    value.and_then(|n| u32::try_from(n).ok())
}

/// The profile that a container has: its own, else its pod's.
pub fn apparmor_profile<'a>(
    pod: &'a DesiredPod,
    container: &'a DesiredContainer,
) -> Option<&'a AppArmorProfile> {
    let own = container.spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let of_pod =
        || pod.spec().security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    own.or_else(of_pod)
}

fn to_apparmor(profile: Option<&AppArmorProfile>) -> AppArmor {
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => AppArmor::RuntimeDefault,
        Some(("Localhost", Some(name))) => AppArmor::Localhost(name.to_owned()),
        Some(_) => AppArmor::Unconfined,
        None => AppArmor::Unspecified,
    }
}

fn to_selinux(options: Option<&SELinuxOptions>) -> SeLinux {
    let SELinuxOptions { user, role, type_, level } = options.cloned().unwrap_or_default();
    SeLinux { user, role, kind: type_, level }
}

fn to_seccomp(profile: Option<&SeccompProfile>, root_dir: &Path) -> Seccomp {
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => Seccomp::RuntimeDefault,
        Some(("Localhost", Some(name))) => Seccomp::Localhost(root_dir.join("seccomp").join(name)),
        _ => Seccomp::Unconfined,
    }
}

fn verify_non_root(
    pod: &DesiredPod,
    container: &DesiredContainer,
    image: &Image,
    run_as_user: Option<u32>,
) -> Result<(), ConfigError> {
    let place = format!("(pod: {:?}, container: {})", pod.full_name(), container.name());
    let refuse = |why: String| Err(ConfigError::RunAsNonRoot(format!("{why} {place}")));
    match run_as_user {
        Some(0) => return refuse("container's runAsUser breaks non-root policy".into()),
        Some(_) => return Ok(()),
        None => {}
    }
    let user = image.user.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(0) => refuse("container has runAsNonRoot and image will run as root".into()),
        Ok(_) => Ok(()),
        Err(_) if user.is_empty() => refuse("container has runAsNonRoot and image will run as root".into()),
        Err(_) => refuse(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{container, pod, spec};
    use k8s_openapi::api::core::v1::{PodSecurityContext, SecurityContext};

    fn image(user: &str) -> Image {
        Image {
            id: "sha256:0".into(),
            repo_tags: vec![],
            repo_digests: vec![],
            size_bytes: 0,
            user: user.into(),
        }
    }

    fn merged(of_pod: PodSecurityContext, own: SecurityContext, user: &str) -> Result<Security, ConfigError> {
        let mut spec = spec("Always", vec![], vec![container("c")]);
        spec.security_context = Some(of_pod);
        spec.containers[0].security_context = Some(own);
        let pod = pod(spec);
        let config = Config::new("n1", "10.0.0.1".parse().expect("address"), "/var/lib/k");
        security(&pod, &pod.containers[0], &image(user), &config)
    }

    #[test]
    fn containers_word_wins() {
        let of_pod = PodSecurityContext {
            run_as_user: Some(1000),
            run_as_group: Some(2000),
            fs_group: Some(3000),
            supplemental_groups: Some(vec![4000]),
            ..PodSecurityContext::default()
        };
        let own = SecurityContext {
            run_as_user: Some(5),
            allow_privilege_escalation: Some(false),
            ..SecurityContext::default()
        };
        let merged = merged(of_pod, own, "").expect("valid");
        assert_eq!((merged.run_as_user, merged.run_as_group), (Some(5), Some(2000)));
        assert_eq!(merged.supplemental_groups, [4000, 3000]);
        assert!(merged.no_new_privileges);
    }

    #[test]
    fn profile_and_labels_are_the_containers_or_the_pods() {
        let profile = |type_: &str, name: Option<&str>| {
            Some(AppArmorProfile { type_: type_.into(), localhost_profile: name.map(str::to_owned) })
        };
        let of_pod = || PodSecurityContext {
            app_armor_profile: profile("Localhost", Some("strict")),
            se_linux_options: Some(SELinuxOptions {
                level: Some("s0:c1".into()),
                ..SELinuxOptions::default()
            }),
            ..PodSecurityContext::default()
        };
        let security = merged(of_pod(), SecurityContext::default(), "").expect("valid");
        assert_eq!(security.apparmor, AppArmor::Localhost("strict".into()));
        assert_eq!(security.selinux.level.as_deref(), Some("s0:c1"));
        let own = SecurityContext {
            app_armor_profile: profile("RuntimeDefault", None),
            ..SecurityContext::default()
        };
        assert_eq!(merged(of_pod(), own, "").expect("valid").apparmor, AppArmor::RuntimeDefault);
        let own = SecurityContext { privileged: Some(true), ..SecurityContext::default() };
        assert_eq!(merged(of_pod(), own, "").expect("valid").apparmor, AppArmor::Unconfined);
    }

    #[test]
    fn non_root_is_verified_before_the_start() {
        let own = || SecurityContext { run_as_non_root: Some(true), ..SecurityContext::default() };
        assert!(merged(PodSecurityContext::default(), own(), "1000:1").is_ok());
        for user in ["", "0", "app"] {
            assert!(merged(PodSecurityContext::default(), own(), user).is_err(), "{user:?}");
        }
        let chosen = PodSecurityContext { run_as_user: Some(7), ..PodSecurityContext::default() };
        assert!(merged(chosen, own(), "app").is_ok());
    }
}
