//! Tables of what each level says, in upstream's words.

use serde_json::{Value, json};

use super::{checks::evaluate, matters, policy::*};

fn standard(level: Level, version: Version) -> Standard {
    Standard { level, version }
}

/// A pod that every level allows, with fields of its container and of its own changed.
fn pod(container: Value, spec: Value) -> Value {
    let merge = |base: &mut Value, more: &Value| {
        for (key, value) in more.as_object().expect("an object") {
            base[key] = value.clone();
        }
    };
    let mut context = json!({
        "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] }, "runAsNonRoot": true,
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    if let Some(own) = container.get("securityContext") {
        merge(&mut context, own);
    }
    let mut all = json!({ "name": "a" });
    merge(&mut all, &container);
    all["securityContext"] = context;
    let mut whole = json!({ "containers": [all] });
    merge(&mut whole, &spec);
    json!({ "metadata": {}, "spec": whole })
}

#[track_caller]
fn check(level: Level, version: Version, pod: &Value, expected: &str) {
    let broken = evaluate(standard(level, version), &pod["metadata"], &pod["spec"]);
    assert_eq!(broken.detail(), expected, "{}", standard(level, version));
}

#[test]
fn baseline_forbids_ways_to_the_node() {
    let context = |context: Value| pod(json!({ "securityContext": context }), json!({}));
    let of_pod = |context: Value| pod(json!({}), json!({ "securityContext": context }));
    for (pod, expected) in [
        (pod(json!({}), json!({})), ""),
        (
            pod(json!({}), json!({ "hostNetwork": true, "hostPID": true })),
            "host namespaces (hostNetwork=true, hostPID=true)",
        ),
        (
            context(json!({ "privileged": true })),
            "privileged (container \"a\" must not set securityContext.privileged=true)",
        ),
        (
            context(json!({ "capabilities": { "add": ["SYS_ADMIN", "CHOWN", "NET_ADMIN"] } })),
            "non-default capabilities (container \"a\" must not include \"NET_ADMIN\", \"SYS_ADMIN\" in \
             securityContext.capabilities.add)",
        ),
        (
            pod(json!({}), json!({ "volumes": [{ "name": "v", "hostPath": { "path": "/" } }] })),
            "hostPath volumes (volume \"v\")",
        ),
        (
            pod(json!({ "ports": [{ "hostPort": 80 }, { "hostPort": 0 }, { "hostPort": 443 }] }), json!({})),
            "hostPort (container \"a\" uses hostPorts 443, 80)",
        ),
        (
            pod(json!({ "livenessProbe": { "httpGet": { "host": "10.0.0.1" } } }), json!({})),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"10.0.0.1\")",
        ),
        (
            context(json!({ "procMount": "Unmasked" })),
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            of_pod(json!({ "seLinuxOptions": { "type": "spc_t", "user": "u" } })),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
        ),
        (
            context(json!({ "seccompProfile": { "type": "Unconfined" } })),
            "seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            of_pod(json!({ "sysctls": [{ "name": "kernel.msgmax" }, { "name": "net.ipv4.tcp_rmem" }] })),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            of_pod(json!({ "windowsOptions": { "hostProcess": true } })),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
        (
            of_pod(json!({ "appArmorProfile": { "type": "Unconfined" } })),
            "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
        ),
    ] {
        check(Level::Baseline, Version::Latest, &pod, expected);
        check(Level::Privileged, Version::Latest, &pod, "");
    }
}

#[test]
fn restricted_asks_for_more() {
    let plain = json!({ "metadata": {}, "spec": { "containers": [{ "name": "a" }], "initContainers": [{ "name": "i" }] } });
    check(Level::Baseline, Version::Latest, &plain, "");
    check(
        Level::Restricted,
        Version::Latest,
        &plain,
        "allowPrivilegeEscalation != false (containers \"i\", \"a\" must set \
         securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (containers \"i\", \"a\" must set \
         securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or containers \"i\", \"a\" must set \
         securityContext.runAsNonRoot=true), seccompProfile (pod or containers \"i\", \"a\" must set \
         securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
    );
    check(
        Level::Restricted,
        Version::Minor(18),
        &plain,
        "allowPrivilegeEscalation != false (containers \"i\", \"a\" must set \
         securityContext.allowPrivilegeEscalation=false), runAsNonRoot != true (pod or containers \"i\", \"a\" must set \
         securityContext.runAsNonRoot=true)",
    );
    check(Level::Restricted, Version::Latest, &pod(json!({}), json!({})), "");
    let volumes = json!({ "volumes": [{ "name": "v", "hostPath": {} }, { "name": "w", "nfs": {} }, { "name": "x", "emptyDir": {} }] });
    check(
        Level::Restricted,
        Version::Latest,
        &pod(json!({}), volumes),
        "restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"nfs\")",
    );
    let root = json!({ "securityContext": { "runAsUser": 0, "runAsNonRoot": false } });
    check(
        Level::Restricted,
        Version::Latest,
        &pod(root.clone(), json!({})),
        "runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false), runAsUser=0 (container \
         \"a\" must not set runAsUser=0)",
    );
    check(Level::Restricted, Version::Latest, &pod(root, json!({ "hostUsers": false })), "");
    let windows = json!({ "os": { "name": "windows" }, "securityContext": { "runAsNonRoot": true } });
    check(
        Level::Restricted,
        Version::Latest,
        &json!({ "spec": { "containers": [{ "name": "a" }],
        "os": windows["os"], "securityContext": windows["securityContext"] } }),
        "",
    );
}

#[test]
fn older_versions_have_the_rules_of_their_time() {
    let mut annotated =
        pod(json!({ "securityContext": { "seccompProfile": { "type": "Unconfined" } } }), json!({}));
    annotated["metadata"]["annotations"] =
        json!({ "seccomp.security.alpha.kubernetes.io/pod": "unconfined" });
    check(
        Level::Baseline,
        Version::Minor(18),
        &annotated,
        "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")",
    );
    let sysctl =
        pod(json!({}), json!({ "securityContext": { "sysctls": [{ "name": "net.ipv4.tcp_rmem" }] } }));
    check(Level::Baseline, Version::Minor(31), &sysctl, "forbidden sysctls (net.ipv4.tcp_rmem)");
    check(Level::Baseline, Version::Minor(32), &sysctl, "");
}

#[test]
fn labels_say_what_a_namespace_asks_for() {
    let parse = |labels: Value| {
        let (policy, errors) = Policy::parse(|key| labels[key].as_str());
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        (policy.enforce.to_string(), policy.warn.to_string(), errors)
    };
    let fine = |enforce: &str, warn: &str| (enforce.to_owned(), warn.to_owned(), Vec::new());
    assert_eq!(parse(json!({})), fine("privileged:latest", "privileged:latest"));
    let labels = json!({
        "pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.30",
        "pod-security.kubernetes.io/warn": "restricted",
    });
    assert_eq!(parse(labels), fine("baseline:v1.30", "restricted:latest"));
    let wrong = json!({
        "pod-security.kubernetes.io/enforce": "strict", "pod-security.kubernetes.io/audit-version": "v1.030",
        "pod-security.kubernetes.io/warn": "",
    });
    let (enforce, warn, errors) = parse(wrong);
    assert_eq!(
        (enforce.as_str(), warn.as_str(), errors.len()),
        ("restricted:latest", "privileged:latest", 3)
    );
    assert_eq!(
        errors[0],
        "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, \
         baseline, restricted"
    );
}

#[test]
fn updates_matter_where_they_change_what_runs() {
    let old = pod(json!({ "image": "one" }), json!({}));
    let image = pod(json!({ "image": "two" }), json!({}));
    let mut labelled = old.clone();
    labelled["metadata"]["labels"] = json!({ "a": "b" });
    let mut debugged = old.clone();
    debugged["spec"]["ephemeralContainers"] = json!([{ "name": "d" }]);
    assert!(!matters(&labelled, &old));
    assert!(matters(&image, &old) && matters(&debugged, &old));
}
