//! What is refused in a pod, each field by itself: where, and with which reason.

use hawser_api::error::FieldErrorKind::{self, *};
use serde_json::{Value, json};

use super::POD;
use crate::kinds::{
    tests::{created, kind, with},
    validate_create, validate_status, validate_update,
};

fn pod() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "web", "namespace": "a", "labels": { "app": "web" } },
        "spec": {
            "serviceAccountName": "default",
            "containers": [{ "name": "web", "image": "i:1" }],
            "volumes": [{ "name": "shared", "emptyDir": {} }],
        },
    })
}

/// `expected` are the fields and reasons that the answer gives; none for a good pod.
#[track_caller]
fn check(object: Value, expected: &[(&str, FieldErrorKind)]) {
    let errors = validate_create(kind("pods"), &created("pods", object));
    let found: Vec<(&str, FieldErrorKind)> =
        errors.iter().map(|error| (error.field.as_str(), error.kind)).collect();
    assert_eq!(found, expected, "{errors:#?}");
}

/// Sets one field of the spec.
#[track_caller]
fn spec(field: &str, value: Value, expected: &[(&str, FieldErrorKind)]) {
    let expected: Vec<(String, FieldErrorKind)> =
        expected.iter().map(|(path, kind)| (format!("spec.{path}"), *kind)).collect();
    let expected: Vec<(&str, FieldErrorKind)> =
        expected.iter().map(|(path, kind)| (path.as_str(), *kind)).collect();
    check(with(pod(), &format!("/spec/{field}"), value), &expected);
}

/// Sets one field of the container.
#[track_caller]
fn container(field: &str, value: Value, expected: &[(&str, FieldErrorKind)]) {
    let expected: Vec<(String, FieldErrorKind)> =
        expected.iter().map(|(path, kind)| (format!("containers[0].{path}"), *kind)).collect();
    let expected: Vec<(&str, FieldErrorKind)> =
        expected.iter().map(|(path, kind)| (path.as_str(), *kind)).collect();
    spec(&format!("containers/0/{field}"), value, &expected);
}

#[test]
fn security_contexts() {
    spec("securityContext", json!({ "seccompProfile": { "type": "RuntimeDefault" } }), &[]);
    let seccomp = |profile: Value| json!({ "seccompProfile": profile });
    spec("securityContext", seccomp(json!({})), &[("securityContext.seccompProfile.type", Required)]);
    spec(
        "securityContext",
        seccomp(json!({ "type": "Strict" })),
        &[("securityContext.seccompProfile.type", NotSupported)],
    );
    let file = "securityContext.seccompProfile.localhostProfile";
    spec("securityContext", seccomp(json!({ "type": "Localhost" })), &[(file, Required)]);
    let to = |place: &str| seccomp(json!({ "type": "Localhost", "localhostProfile": place }));
    spec("securityContext", to("a/b.json"), &[]);
    spec("securityContext", to("/a"), &[(file, Invalid)]);
    spec("securityContext", to("a/../b"), &[(file, Invalid)]);
    spec(
        "securityContext",
        seccomp(json!({ "type": "Unconfined", "localhostProfile": "a" })),
        &[(file, Invalid)],
    );
    let app_armor = |profile: Value| json!({ "appArmorProfile": profile });
    let file = "securityContext.appArmorProfile.localhostProfile";
    container("securityContext", app_armor(json!({ "type": "Localhost" })), &[(file, Required)]);
    let named = |name: &str| app_armor(json!({ "type": "Localhost", "localhostProfile": name }));
    container("securityContext", named("k8s-a"), &[]);
    container("securityContext", named(" a"), &[(file, Invalid)]);
    container("securityContext", named(&"a".repeat(4096)), &[(file, TooLong)]);
    container(
        "securityContext",
        app_armor(json!({ "type": "RuntimeDefault", "localhostProfile": "a" })),
        &[(file, Invalid)],
    );
    container(
        "securityContext",
        json!({ "procMount": "Unmasked" }),
        &[("securityContext.procMount", Invalid)],
    );
    container(
        "securityContext",
        json!({ "procMount": "All" }),
        &[("securityContext.procMount", NotSupported)],
    );
    container(
        "securityContext",
        json!({ "allowPrivilegeEscalation": false, "capabilities": { "add": ["CAP_SYS_ADMIN"] } }),
        &[("securityContext", Invalid)],
    );
    spec(
        "securityContext",
        json!({
            "supplementalGroups": [0, -1, 2_147_483_647, 2_147_483_648_i64], "supplementalGroupsPolicy": "Loose",
            "fsGroupChangePolicy": "Never", "seLinuxChangePolicy": "None",
        }),
        &[
            ("securityContext.supplementalGroups[1]", Invalid),
            ("securityContext.supplementalGroups[3]", Invalid),
            ("securityContext.fsGroupChangePolicy", NotSupported),
            ("securityContext.supplementalGroupsPolicy", NotSupported),
            ("securityContext.seLinuxChangePolicy", NotSupported),
        ],
    );
    let host = with(pod(), "/spec/hostNetwork", json!(true));
    check(
        with(
            host,
            "/spec/securityContext",
            json!({ "sysctls": [{ "name": "net.ipv4.tcp_syncookies", "value": "1" }] }),
        ),
        &[("spec.securityContext.sysctls[0].name", Invalid)],
    );
}

#[test]
fn operating_systems() {
    spec("os", json!({ "name": "linux" }), &[]);
    spec("os", json!({ "name": "" }), &[("os.name", Required)]);
    spec("os", json!({ "name": "plan9" }), &[("os", NotSupported)]);
    let on = |os: &str| with(pod(), "/spec/os", json!({ "name": os }));
    let windows = json!({ "windowsOptions": { "runAsUserName": "me" } });
    check(
        with(on("linux"), "/spec/securityContext", windows.clone()),
        &[("spec.securityContext.windowsOptions", Forbidden)],
    );
    check(
        with(
            on("windows"),
            "/spec/containers/0/securityContext",
            json!({ "runAsUser": 1, "privileged": false }),
        ),
        &[
            ("spec.containers[0].securityContext.privileged", Forbidden),
            ("spec.containers[0].securityContext.runAsUser", Forbidden),
        ],
    );
    let linux_only = json!({ "fsGroup": 1, "runAsUser": 1, "supplementalGroups": [1], "seccompProfile": { "type": "Unconfined" } });
    let path = |field: &str| format!("spec.securityContext.{field}");
    let fields = ["seccompProfile", "fsGroup", "runAsUser", "supplementalGroups"].map(path);
    let expected: Vec<(&str, FieldErrorKind)> =
        fields.iter().map(|field| (field.as_str(), Forbidden)).collect();
    check(with(on("windows"), "/spec/securityContext", linux_only), &expected);
    check(with(on("windows"), "/spec/hostPID", json!(true)), &[("spec.hostPID", Forbidden)]);
    for (user, good) in [
        ("ContainerAdministrator", true),
        ("DOMAIN\\me", true),
        ("a\\b\\c", false),
        ("", false),
        ("a:b", false),
        ("..", false),
        (".\\me", false),
    ] {
        let options = json!({ "windowsOptions": { "runAsUserName": user } });
        let expected = [("spec.securityContext.windowsOptions.runAsUserName", Invalid)];
        check(with(on("windows"), "/spec/securityContext", options), if good { &[] } else { &expected });
    }
    let host_process = json!({ "windowsOptions": { "hostProcess": true } });
    check(with(on("windows"), "/spec/securityContext", host_process), &[("spec.hostNetwork", Invalid)]);
    container("lifecycle", json!({ "stopSignal": "SIGUSR1" }), &[("lifecycle.stopSignal", Forbidden)]);
    check(with(on("linux"), "/spec/containers/0/lifecycle", json!({ "stopSignal": "SIGRTMIN+15" })), &[]);
    check(
        with(on("windows"), "/spec/containers/0/lifecycle", json!({ "stopSignal": "SIGHUP" })),
        &[("spec.containers[0].lifecycle.stopSignal", NotSupported)],
    );
}

#[test]
fn namespaces_of_the_host() {
    let own = with(pod(), "/spec/hostUsers", json!(false));
    check(own.clone(), &[]);
    check(with(own.clone(), "/spec/hostPID", json!(true)), &[("spec.HostPID", Forbidden)]);
    check(with(own.clone(), "/spec/hostNetwork", json!(true)), &[("spec.hostNetwork", Forbidden)]);
    check(with(own, "/spec/containers/0/securityContext", json!({ "procMount": "Unmasked" })), &[]);
    let both = with(with(pod(), "/spec/hostPID", json!(true)), "/spec/shareProcessNamespace", json!(true));
    check(both, &[("spec.shareProcessNamespace", Invalid)]);
    let host = with(pod(), "/spec/hostNetwork", json!(true));
    check(
        with(host, "/spec/containers/0/ports", json!([{ "containerPort": 80, "hostPort": 81 }])),
        &[("spec.containers[0].ports[0].hostPort", Invalid)],
    );
    spec("hostnameOverride", json!("a.example.com"), &[]);
    spec("hostnameOverride", json!("A"), &[("hostnameOverride", Invalid)]);
    spec("hostnameOverride", json!("a".repeat(65)), &[("hostnameOverride", TooLong)]);
    let qualified = with(pod(), "/spec/setHostnameAsFQDN", json!(true));
    check(with(qualified, "/spec/hostnameOverride", json!("a")), &[("spec.hostnameOverride", Forbidden)]);
    spec("imagePullSecrets", json!([{}]), &[]);
    spec("hostAliases", json!([{ "ip": "010.0.0.1", "hostnames": ["a"] }]), &[]);
    spec(
        "hostAliases",
        json!([{ "ip": "x", "hostnames": ["A"] }]),
        &[("hostAliases[0].ip", Invalid), ("hostAliases[0].hostnames[0]", Invalid)],
    );
}

#[test]
fn resolvers() {
    let without = |config: Value| {
        let pod = with(pod(), "/spec/dnsPolicy", json!("None"));
        if config.is_null() { pod } else { with(pod, "/spec/dnsConfig", config) }
    };
    check(without(Value::Null), &[("spec.dnsConfig", Required)]);
    check(without(json!({ "searches": ["a"] })), &[("spec.dnsConfig.nameservers", Required)]);
    check(without(json!({ "nameservers": ["10.0.0.1"] })), &[]);
    spec(
        "dnsConfig",
        json!({ "searches": [".", "a_b.example.com."], "options": [{ "name": "ndots", "value": "2" }] }),
        &[],
    );
    spec(
        "dnsConfig",
        json!({
            "nameservers": ["1.1.1.1", "2.2.2.2", "x", "::1"], "searches": ["A"], "options": [{ "value": "2" }],
        }),
        &[
            ("dnsConfig.nameservers", Invalid),
            ("dnsConfig.nameservers[2]", Invalid),
            ("dnsConfig.searches[0]", Invalid),
            ("dnsConfig.options[0]", Required),
        ],
    );
    let many: Vec<String> = (0..33).map(|number| format!("a{number}")).collect();
    spec("dnsConfig", json!({ "searches": many }), &[("dnsConfig.searches", Invalid)]);
    let long: Vec<String> = (0..32).map(|_| "a.".repeat(40) + "a").collect();
    spec("dnsConfig", json!({ "searches": long }), &[("dnsConfig.searches", Invalid)]);
}

#[test]
fn volumes() {
    let volume = |source: Value| {
        let mut volume = json!({ "name": "v" });
        volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        json!([volume])
    };
    let rows: Vec<(Value, &[(&str, FieldErrorKind)])> = vec![
        (json!({ "emptyDir": { "medium": "Memory", "sizeLimit": "1Gi" } }), &[]),
        (json!({ "emptyDir": { "sizeLimit": "-1" } }), &[("volumes[0].emptyDir.sizeLimit", Forbidden)]),
        (json!({ "image": { "reference": "" } }), &[("volumes[0].image.reference", Required)]),
        (
            json!({ "image": { "reference": "i", "pullPolicy": "Soon" } }),
            &[("volumes[0].image.pullPolicy", NotSupported)],
        ),
        (
            json!({ "csi": { "driver": "" } }),
            &[("volumes[0].csi.driver", Required), ("volumes[0].csi.driver", Invalid)],
        ),
        (json!({ "ephemeral": {} }), &[("volumes[0].ephemeral.volumeClaimTemplate", Required)]),
        (
            json!({ "ephemeral": { "volumeClaimTemplate": { "metadata": { "name": "a" }, "spec": {} } } }),
            &[
                ("volumes[0].ephemeral.volumeClaimTemplate.metadata.name", Forbidden),
                ("volumes[0].ephemeral.volumeClaimTemplate.spec.accessModes", Required),
                ("volumes[0].ephemeral.volumeClaimTemplate.spec.resources[storage]", Required),
            ],
        ),
        (
            json!({ "downwardAPI": { "items": [
                { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                { "path": "cpu", "resourceFieldRef": { "containerName": "web", "resource": "limits.cpu", "divisor": "1m" } },
            ] } }),
            &[],
        ),
        (
            json!({ "downwardAPI": { "items": [{ "path": "../a", "fieldRef": { "fieldPath": "status.podIP" } }] } }),
            &[
                ("volumes[0].downwardAPI.path", Invalid),
                ("volumes[0].downwardAPI.fieldRef.fieldPath", NotSupported),
            ],
        ),
        (
            json!({ "downwardAPI": { "items": [{ "path": "a", "resourceFieldRef": { "resource": "limits.cpu" } }] } }),
            &[("volumes[0].downwardAPI.resourceFieldRef.containerName", Required)],
        ),
        (json!({ "downwardAPI": { "items": [{ "path": "a" }] } }), &[("volumes[0].downwardAPI", Required)]),
        (
            json!({ "projected": { "sources": [
                { "serviceAccountToken": { "path": "token", "expirationSeconds": 10 } },
                { "configMap": { "name": "c", "items": [{ "key": "a", "path": "a" }] } },
                { "secret": { "name": "s", "items": [{ "key": "a", "path": "a" }] } },
                { "clusterTrustBundle": { "path": "b" } },
                { "podCertificate": { "signerName": "example.com/s", "keyType": "DSA", "userAnnotations": { "a": "b" } } },
            ] } }),
            &[
                ("volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds", Invalid),
                ("volumes[0].projected", Invalid),
                ("volumes[0].projected.sources[3].clusterTrustBundle", Required),
                ("volumes[0].projected.sources[4].podCertificate.keyType", NotSupported),
                ("volumes[0].projected.sources[4].podCertificate.userAnnotations", Invalid),
                ("volumes[0].projected.sources[4].podCertificate", Required),
            ],
        ),
        (json!({ "secret": { "secretName": "s", "items": [{ "key": "a/b", "path": "a" }] } }), &[]),
        (
            json!({ "iscsi": { "targetPortal": "10.0.0.1", "iqn": "iqn.2001-04.com.example:storage.disk1", "lun": 0 } }),
            &[],
        ),
        (
            json!({ "iscsi": { "targetPortal": "10.0.0.1", "iqn": "iqn.2001", "lun": 300, "chapAuthSession": true } }),
            &[
                ("volumes[0].iscsi.iqn", Invalid),
                ("volumes[0].iscsi.lun", Invalid),
                ("volumes[0].iscsi.secretRef", Required),
            ],
        ),
        (
            json!({ "gcePersistentDisk": { "pdName": "", "partition": 256 } }),
            &[
                ("volumes[0].persistentDisk.pdName", Required),
                ("volumes[0].persistentDisk.partition", Invalid),
            ],
        ),
        (json!({ "fc": { "targetWWNs": ["a"] } }), &[("volumes[0].fc.lun", Required)]),
        (
            json!({ "quobyte": { "registry": "host", "volume": "v" } }),
            &[("volumes[0].quobyte.registry", Invalid)],
        ),
        (
            json!({ "flexVolume": { "driver": "a/b", "options": { "kubernetes.io/x": "" } } }),
            &[("volumes[0].flexVolume.options[kubernetes.io/x]", Invalid)],
        ),
    ];
    for (source, expected) in rows {
        spec("volumes", volume(source), expected);
    }
    // What a mistake is in is no volume that a mount could use.
    let bad = with(pod(), "/spec/volumes", json!([{ "name": "v", "emptyDir": { "sizeLimit": "-1" } }]));
    check(
        with(
            bad,
            "/spec/containers/0/volumeMounts",
            json!([{ "name": "v", "mountPath": "/v", "subPath": "/a" }]),
        ),
        &[
            ("spec.volumes[0].emptyDir.sizeLimit", Forbidden),
            ("spec.containers[0].volumeMounts[0].name", NotFound),
            ("spec.containers[0].volumeMounts.subPath", Invalid),
        ],
    );
    let token =
        json!([{ "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } }]);
    let nobody = with(pod(), "/spec/serviceAccountName", json!(""));
    let path = "spec.volumes[0].projected.sources[0].serviceAccountToken";
    check(with(nobody, "/spec/volumes", token), &[(path, Forbidden)]);
}

#[test]
fn variables() {
    let of = |source: Value| json!([{ "name": "A", "valueFrom": source }]);
    let field = |path: &str| of(json!({ "fieldRef": { "fieldPath": path } }));
    for good in ["metadata.name", "status.hostIPs", "metadata.labels['app']", "metadata.annotations['a/B']"] {
        container("env", field(good), &[]);
    }
    let path = "env[0].valueFrom.fieldRef";
    let deep = format!("{path}.fieldPath");
    container("env", field("status.phase"), &[(&deep, NotSupported)]);
    container("env", field("spec.volumes"), &[(&deep, Invalid)]);
    container("env", field("metadata.name['a']"), &[(&deep, Invalid)]);
    container("env", field("metadata.labels['a b']"), &[(path, Invalid)]);
    let resource = |resource: &str, divisor: &str| {
        of(json!({ "resourceFieldRef": { "resource": resource, "divisor": divisor } }))
    };
    container("env", resource("limits.memory", "1Mi"), &[]);
    container("env", resource("limits.hugepages-2Mi", "1"), &[]);
    container("env", resource("limits.cpu", "1k"), &[("env[0].valueFrom.resourceFieldRef.divisor", Invalid)]);
    container(
        "env",
        resource("limits.gpu", "1"),
        &[("env[0].valueFrom.resourceFieldRef.resource", NotSupported)],
    );
    container(
        "env",
        of(json!({ "secretKeyRef": { "name": "", "key": "a" } })),
        &[("env[0].valueFrom.secretKeyRef.name", Invalid)],
    );
    let file = |volume: &str, path: &str, key: &str| {
        of(json!({ "fileKeyRef": { "volumeName": volume, "path": path, "key": key } }))
    };
    container("env", file("shared", "a.env", "KEY"), &[]);
    container(
        "env",
        file("shared", "../a", ""),
        &[("env[0].valueFrom.fileKeyRef.key", Required), ("env[0].valueFrom.fileKeyRef.path", Invalid)],
    );
    container("env", file("none", "a", "K"), &[("env[0].valueFrom.fileKeyRef.volumeName", NotFound)]);
    container(
        "envFrom",
        json!([{ "prefix": "A=" , "secretRef": { "name": "s" } }]),
        &[("envFrom[0].prefix", Invalid)],
    );
    container("envFrom", json!([{}]), &[("envFrom", Invalid)]);
}

#[test]
fn containers() {
    container("restartPolicy", json!("OnFailure"), &[]);
    container("restartPolicy", json!("Once"), &[("restartPolicy", NotSupported)]);
    let rule =
        |operator: &str| json!({ "action": "Restart", "exitCodes": { "operator": operator, "values": [1] } });
    container("restartPolicyRules", json!([rule("In")]), &[("restartPolicy", Required)]);
    let never = with(pod(), "/spec/containers/0/restartPolicy", json!("Never"));
    check(with(never.clone(), "/spec/containers/0/restartPolicyRules", json!([rule("In")])), &[]);
    let list = "spec.containers[0].restartPolicyRules";
    check(
        with(
            never.clone(),
            "/spec/containers/0/restartPolicyRules",
            json!([rule("Is"), { "action": "Stop" }]),
        ),
        &[
            (&format!("{list}[0].exitCodes.operator"), NotSupported),
            (&format!("{list}[1].action"), NotSupported),
            (&format!("{list}[1].exitCodes"), Required),
        ],
    );
    let many = vec![rule("In"); 21];
    check(with(never, "/spec/containers/0/restartPolicyRules", json!(many)), &[(list, TooMany)]);

    let resize = |name: &str, policy: &str| json!([{ "resourceName": name, "restartPolicy": policy }]);
    container("resizePolicy", resize("cpu", "NotRequired"), &[]);
    container(
        "resizePolicy",
        resize("gpu", "Now"),
        &[("resizePolicy", NotSupported), ("resizePolicy", NotSupported)],
    );
    let never = with(pod(), "/spec/restartPolicy", json!("Never"));
    check(
        with(never, "/spec/containers/0/resizePolicy", resize("cpu", "RestartContainer")),
        &[("spec.containers[0].resizePolicy", Invalid)],
    );
    let init = |more: Value| {
        let mut init = json!({ "name": "i", "image": "i:1" });
        init.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([init])
    };
    // What it may not have at all is not looked into.
    spec(
        "initContainers",
        init(json!({ "livenessProbe": {} })),
        &[("initContainers[0].livenessProbe", Forbidden)],
    );
    spec(
        "initContainers",
        init(json!({ "restartPolicy": "Always", "livenessProbe": {} })),
        &[("initContainers[0].livenessProbe", Required)],
    );
    container(
        "lifecycle",
        json!({ "preStop": { "sleep": { "seconds": 31 } } }),
        &[("lifecycle.preStop.sleep", Invalid)],
    );
    container(
        "readinessProbe",
        json!({ "tcpSocket": { "port": 1 }, "terminationGracePeriodSeconds": 5 }),
        &[("readinessProbe.terminationGracePeriodSeconds", Invalid)],
    );
    container(
        "livenessProbe",
        json!({ "httpGet": { "port": 1, "httpHeaders": [{ "name": "a b", "value": "" }] } }),
        &[("livenessProbe.httpGet.httpHeaders", Invalid)],
    );
}

#[test]
fn amounts() {
    let limits = |list: Value| json!({ "limits": list });
    container(
        "resources",
        json!({ "limits": { "cpu": "1", "storage": "1" }, "requests": { "storage": "1" } }),
        &[("resources.limits[storage]", Invalid), ("resources.requests[storage]", Invalid)],
    );
    container("resources", json!({ "requests": { "a.b/c": "1" } }), &[("resources.limits", Required)]);
    let huge = json!({ "hugepages-2Mi": "3Mi" });
    container(
        "resources",
        limits(huge),
        // The request follows the limit.
        &[
            ("resources.limits[hugepages-2Mi]", Invalid),
            ("resources.requests[hugepages-2Mi]", Invalid),
            ("resources", Forbidden),
        ],
    );
    container("resources", json!({ "claims": [{ "name": "gpu" }] }), &[("resources.claims[0]", NotFound)]);
    let claiming = with(pod(), "/spec/resourceClaims", json!([{ "name": "gpu", "resourceClaimName": "c" }]));
    let twice = json!({ "claims": [{ "name": "gpu" }, { "name": "gpu", "request": "a" }] });
    check(
        with(claiming, "/spec/containers/0/resources", twice),
        &[("spec.containers[0].resources.claims[1]", Duplicate)],
    );
    spec("resourceClaims", json!([{ "name": "gpu" }]), &[("resourceClaims[0]", Invalid)]);
    let asking = with(
        pod(),
        "/spec/containers/0/resources",
        json!({ "requests": { "cpu": "2" }, "limits": { "cpu": "4" } }),
    );
    check(
        with(
            asking.clone(),
            "/spec/resources",
            json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "3" } }),
        ),
        &[("spec.resources.requests[cpu]", Invalid), ("spec.resources.containers[0][cpu].limits", Invalid)],
    );
    check(
        with(asking, "/spec/resources", json!({ "limits": { "example.com/gpu": "1" } })),
        &[
            ("spec.resources.limits[example.com/gpu]", NotSupported),
            ("spec.resources.requests[example.com/gpu]", NotSupported),
        ],
    );
    spec("overhead", json!({ "cpu": "-1" }), &[("overhead.limits[cpu]", Invalid)]);
}

#[test]
fn placement() {
    let spread = |more: Value| {
        let mut constraint = json!({
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "tier": "a" } },
        });
        constraint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        constraint
    };
    let list = "topologySpreadConstraints";
    let one = |more: Value| json!([spread(more)]);
    let at = |field: &str| format!("{list}[0].{field}");
    spec(
        list,
        one(json!({ "minDomains": 2, "nodeAffinityPolicy": "Honor", "matchLabelKeys": ["app"] })),
        &[],
    );
    spec(list, one(json!({ "topologyKey": "a b" })), &[]);
    spec(list, one(json!({ "nodeTaintsPolicy": "Heed" })), &[(&at("nodeTaintsPolicy"), NotSupported)]);
    spec(
        list,
        one(json!({ "minDomains": 0, "whenUnsatisfiable": "ScheduleAnyway" })),
        &[(&at("minDomains"), Invalid), (&at("minDomains"), Invalid)],
    );
    spec(
        list,
        json!([spread(json!({})), spread(json!({ "maxSkew": 2 }))]),
        &[(&at("{topologyKey, whenUnsatisfiable}"), Duplicate)],
    );
    let own = json!({ "matchLabelKeys": ["app"], "labelSelector": { "matchLabels": { "app": "web" } } });
    spec(list, one(own), &[("topologySpreadConstraints[0][0]", Invalid)]);
    spec(
        list,
        one(json!({ "matchLabelKeys": ["app"], "labelSelector": null })),
        &[(&at("matchLabelKeys"), Forbidden)],
    );

    let term =
        |term: Value| json!({ "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term] } });
    let path = "affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]";
    spec(
        "affinity",
        term(json!({ "topologyKey": "zone", "namespaces": ["A"] })),
        &[(&format!("{path}.namespace"), Invalid)],
    );
    let node = |strength: &str, term: Value| json!({ "nodeAffinity": { strength: term } });
    let odd = json!({ "matchExpressions": [{ "key": "a", "operator": "In", "values": ["a b"] }] });
    spec(
        "affinity",
        node("preferredDuringSchedulingIgnoredDuringExecution", json!([{ "weight": 1, "preference": odd }])),
        &[],
    );
    let path = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]";
    spec(
        "affinity",
        node("requiredDuringSchedulingIgnoredDuringExecution", json!({ "nodeSelectorTerms": [odd] })),
        &[(&format!("{path}.matchExpressions[0].values[0]"), Invalid)],
    );
    spec(
        "tolerations",
        json!([{ "key": "a", "operator": "Gt", "value": "1" }]),
        &[("tolerations[0].operator", NotSupported)],
    );
    spec("schedulingGates", json!([{ "name": "a b" }]), &[("schedulingGates[0]", Invalid)]);
    spec("schedulingGroup", json!({}), &[("schedulingGroup.podGroupName", Invalid)]);
    let gated = with(pod(), "/spec/schedulingGates", json!([{ "name": "a" }]));
    check(with(gated, "/spec/nodeName", json!("n")), &[("spec.nodeName", Forbidden)]);
}

#[test]
fn annotations() {
    let noted = |key: &str, value: &str| with(pod(), "/metadata/annotations", json!({ key: value }));
    let path = |key: &str| format!("metadata.annotations[{key}]");
    let cost = "controller.kubernetes.io/pod-deletion-cost";
    check(noted(cost, "-10"), &[]);
    for wrong in ["+1", "01", "a", "2147483648"] {
        check(noted(cost, wrong), &[(&path(cost), Invalid)]);
    }
    check(noted("kubernetes.io/config.mirror", "x"), &[(&path("kubernetes.io/config.mirror"), Invalid)]);
    let confined = "container.apparmor.security.beta.kubernetes.io/web";
    check(noted(confined, "localhost/a"), &[]);
    check(noted(confined, "a"), &[(&path(confined), Invalid)]);
    let other = "container.apparmor.security.beta.kubernetes.io/db";
    check(noted(other, "unconfined"), &[(&path(other), Invalid)]);
    let profile = json!({ "appArmorProfile": { "type": "RuntimeDefault" } });
    check(
        with(noted(confined, "unconfined"), "/spec/securityContext", profile),
        &[("spec.containers[0].securityContext.appArmorProfile.type", Forbidden)],
    );
    let whole = "seccomp.security.alpha.kubernetes.io/pod";
    let profile = json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "a" } });
    check(with(noted(whole, "localhost/a"), "/spec/securityContext", profile.clone()), &[]);
    check(
        with(noted(whole, "localhost/b"), "/spec/securityContext", profile),
        &[("spec.securityContext.seccompProfile.localhostProfile", Forbidden)],
    );
    let errors = validate_update(
        kind("pods"),
        &created("pods", pod()),
        &created("pods", noted(confined, "unconfined")),
    );
    assert_eq!(errors[0].field, path(confined), "{errors:#?}");
}

/// The first path of each answer to a change of a pod; empty where it is taken.
fn changed(pointer: &str, value: Value) -> String {
    let (old, new) = (created("pods", pod()), created("pods", with(pod(), pointer, value)));
    validate_update(kind("pods"), &new, &old).first().map(|error| error.field.clone()).unwrap_or_default()
}

#[test]
fn what_may_change() {
    for (pointer, value) in [
        ("/spec/containers/0/image", json!("i:2")),
        ("/spec/activeDeadlineSeconds", json!(10)),
        ("/spec/tolerations", json!([{ "operator": "Exists" }])),
        ("/metadata/labels", json!({ "other": "x" })),
    ] {
        assert_eq!(changed(pointer, value), "", "{pointer}");
    }
    for (pointer, value, path) in [
        ("/spec/containers/0/command", json!(["x"]), "spec"),
        ("/spec/containers/0/resources", json!({ "limits": { "cpu": "1" } }), "spec"),
        ("/spec/nodeSelector", json!({ "a": "b" }), "spec"),
        ("/spec/terminationGracePeriodSeconds", json!(1), "spec"),
        ("/spec/schedulingGates", json!([{ "name": "a" }]), "spec.schedulingGates[0].name"),
        ("/spec/containers", json!([]), "spec.containers"),
        ("/spec/containers/0/image", json!(" i"), "spec.containers[0].image"),
    ] {
        assert_eq!(changed(pointer, value), path, "{pointer}");
    }
}

#[test]
fn what_a_status_may_say() {
    let with_status = |policy: &str, own: Value, status: Value| {
        let pod = with(pod(), "/spec/restartPolicy", json!(policy));
        let mut pod = created(
            "pods",
            if own.is_null() { pod } else { with(pod, "/spec/containers/0/restartPolicy", own) },
        );
        pod["status"] = status;
        pod
    };
    let ended =
        json!({ "containerStatuses": [{ "name": "web", "state": { "terminated": { "exitCode": 1 } } }] });
    let runs = json!({ "containerStatuses": [{ "name": "web", "state": { "running": {} } }] });
    for (policy, own, refused) in [
        ("Always", Value::Null, false),
        ("OnFailure", Value::Null, false),
        ("Never", Value::Null, true),
        ("Never", json!("Always"), false),
        ("Always", json!("Never"), true),
    ] {
        let old = with_status(policy, own.clone(), ended.clone());
        let errors = (POD.validate_status)(&with_status(policy, own.clone(), runs.clone()), &old);
        assert_eq!(!errors.is_empty(), refused, "{policy} {own}: {errors:?}");
    }
    for (status, path) in [
        (json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "::1" }] }), ""),
        (
            json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "10.0.0.2" }] }),
            "status.podIPs",
        ),
        (json!({ "hostIP": "10.0.0.2", "hostIPs": [{ "ip": "10.0.0.1" }] }), "status.hostIPs[0].ip"),
        (json!({ "resourceClaimStatuses": [{ "name": "x" }] }), "status.resourceClaimStatuses[0].name"),
        (json!({ "conditions": [{ "type": "a b", "status": "True" }] }), "status.conditions[0].Type"),
        (json!({ "qosClass": "Guaranteed" }), "status.qosClass"),
    ] {
        let (old, new) = (created("pods", pod()), with_status("Always", Value::Null, status));
        let errors = validate_status(kind("pods"), &new, &old);
        assert_eq!(errors.first().map_or("", |error| error.field.as_str()), path, "{errors:#?}");
    }
}
