//! Whom containers run as, and what they may not.

use serde_json::{Value, json};

use super::{Pod, has_line, image, script, test};
use crate::coverage::texts;

texts! {
    "Security Context, runAsUser=65534" => should_run_the_container_with_uid_65534,
    "Security Context, privileged=false." => should_run_the_container_as_unprivileged_when_false,
    "Security Context, readOnlyRootFilesystem=false." =>
        should_run_the_container_with_writable_rootfs_when_readonlyrootfilesystem_false,
    "Security Context, test RunAsGroup at container level" =>
        should_support_container_securitycontext_runasuser_and_container_securitycontext_runasgroup,
    "Security Context, test RunAsGroup at pod level" =>
        should_support_pod_spec_securitycontext_runasuser_and_pod_spec_securitycontext_runasgroup,
    "Security Context, allowPrivilegeEscalation=false." => should_not_allow_privilege_escalation_when_false,
    "Sysctl, test sysctls" => should_support_sysctls,
}

/// A pod whose container has this security context.
fn with_context(work: &str, context: Value) -> Value {
    let mut pod = script(work);
    pod["spec"]["containers"][0]["securityContext"] = context;
    pod
}

/// Security Context, runAsUser=65534
#[test]
fn should_run_the_container_with_uid_65534() {
    test(async |bed| {
        let pod = with_context("id -u", json!({ "runAsUser": 65534 }));
        assert_eq!(Pod::output(bed, pod).await, "65534\n");
    });
}

/// Security Context, privileged=false.
#[test]
fn should_run_the_container_as_unprivileged_when_false() {
    test(async |bed| {
        let pod = with_context("ip link add here type dummy 2>&1 || true", json!({ "privileged": false }));
        let said = Pod::output(bed, pod).await;
        assert!(said.contains("Operation not permitted"), "{said}");
    });
}

/// Security Context, readOnlyRootFilesystem=false.
#[test]
fn should_run_the_container_with_writable_rootfs_when_readonlyrootfilesystem_false() {
    test(async |bed| {
        let pod = with_context("echo written > /file; cat /file", json!({ "readOnlyRootFilesystem": false }));
        assert_eq!(Pod::output(bed, pod).await, "written\n");
    });
}

/// Security Context, test RunAsGroup at container level
#[test]
fn should_support_container_securitycontext_runasuser_and_container_securitycontext_runasgroup() {
    test(async |bed| {
        let pod = with_context("id", json!({ "runAsUser": 1001, "runAsGroup": 2002 }));
        let said = Pod::output(bed, pod).await;
        assert!(said.starts_with("uid=1001 gid=2002"), "{said}");
    });
}

/// Security Context, test RunAsGroup at pod level
#[test]
fn should_support_pod_spec_securitycontext_runasuser_and_pod_spec_securitycontext_runasgroup() {
    test(async |bed| {
        let mut pod = script("id");
        pod["spec"]["securityContext"] = json!({ "runAsUser": 1001, "runAsGroup": 2002 });
        let said = Pod::output(bed, pod).await;
        assert!(said.starts_with("uid=1001 gid=2002"), "{said}");
    });
}

/// Security Context, allowPrivilegeEscalation=false.
#[test]
fn should_not_allow_privilege_escalation_when_false() {
    test(async |bed| {
        // The image's program is root's, with the set-user-ID bit.
        let run = async |allowed: bool| {
            let context = json!({ "allowPrivilegeEscalation": allowed, "runAsUser": 1000 });
            let mut pod = with_context("/demo uid", context);
            pod["spec"]["containers"][0]["image"] = json!(image("demo/echo:1"));
            Pod::output(bed, pod).await
        };
        assert_eq!(run(false).await, "effective uid: 1000\n");
        assert_eq!(run(true).await, "effective uid: 0\n");
    });
}

/// Sysctl, test sysctls
#[test]
fn should_support_sysctls() {
    test(async |bed| {
        let mut pod = script("sysctl kernel.shm_rmid_forced");
        let sysctls = json!([{ "name": "kernel.shm_rmid_forced", "value": "1" }]);
        pod["spec"]["securityContext"] = json!({ "sysctls": sysctls });
        has_line(&Pod::output(bed, pod).await, "kernel.shm_rmid_forced = 1");
    });
}
