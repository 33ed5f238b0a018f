use serde_json::{Value, json};

use super::of;
use crate::kinds::tests::{created, kind, with};

#[track_caller]
fn check(name: &str, object: Value, expected: &[&str]) {
    assert_eq!(of(kind(name), &created(name, object), None), expected);
}

fn pod() -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "a" },
        "spec": { "containers": [{ "name": "web", "image": "i:1" }] },
    })
}

#[test]
fn pods() {
    check("pods", pod(), &[]);
    let rows: Vec<(&str, Value, &[&str])> = vec![
        (
            "/spec/nodeSelector",
            json!({ "beta.kubernetes.io/os": "linux" }),
            &[
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            ],
        ),
        (
            "/spec/topologySpreadConstraints",
            json!([{ "topologyKey": "failure-domain.beta.kubernetes.io/zone", "labelSelector": {} }]),
            &[
                "spec.topologySpreadConstraints[0].topologyKey: failure-domain.beta.kubernetes.io/zone is deprecated since \
               v1.17; use \"topology.kubernetes.io/zone\" instead",
            ],
        ),
        (
            "/spec/containers/0/env",
            json!([
                { "name": "A", "value": "1" }, { "name": "A", "value": "$(A)2" }, { "name": "A", "value": "3" },
            ]),
            &[
                "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
            ],
        ),
        (
            "/spec/containers/0/ports",
            json!([{ "containerPort": 80 }, { "containerPort": 80, "name": "again" }, { "containerPort": 81 }]),
            &["spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]"],
        ),
        (
            "/spec/hostAliases",
            json!([{ "ip": "10.0.0.1" }, { "ip": "10.0.0.1" }]),
            &["spec.hostAliases[1].ip: duplicate ip \"10.0.0.1\""],
        ),
        (
            "/spec/imagePullSecrets",
            json!([{ "name": "a" }, { "name": "a" }, {}]),
            &[
                "spec.imagePullSecrets[1].name: duplicate name \"a\"",
                "spec.imagePullSecrets[2].name: invalid empty name \"\"",
            ],
        ),
        (
            "/spec/containers/0/resources",
            json!({ "requests": { "memory": "100m" } }),
            &[
                "spec.containers[0].resources.requests[memory]: fractional byte value \"100m\" is invalid, must be an integer",
            ],
        ),
        (
            "/spec/volumes",
            json!([{ "name": "v", "gitRepo": { "repository": "r" } }]),
            &["spec.volumes[0].gitRepo: deprecated in v1.11"],
        ),
        (
            "/metadata/annotations",
            json!({ "container.seccomp.security.alpha.kubernetes.io/web": "unconfined" }),
            &[
                "metadata.annotations[container.seccomp.security.alpha.kubernetes.io/web]: non-functional in v1.27+; use the \
               \"seccompProfile\" field instead",
            ],
        ),
        (
            "/metadata/name",
            json!("a.b"),
            &[
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
               recommended: [must not contain dots]",
            ],
        ),
        (
            "/spec/affinity/podAffinity/preferredDuringSchedulingIgnoredDuringExecution",
            json!([{ "weight": 1, "podAffinityTerm": { "topologyKey": "zone" } }]),
            &[
                "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a \
               null labelSelector results in matching no pod",
            ],
        ),
    ];
    for (pointer, value, expected) in rows {
        check("pods", with(pod(), pointer, value), expected);
    }
    // A change of a pod is not read along, one of a template that stays is old news.
    let odd = with(pod(), "/spec/hostAliases", json!([{ "ip": "::1" }, { "ip": "::1" }]));
    assert!(of(kind("pods"), &odd, Some(&odd)).is_empty());
    let deployment = json!({ "metadata": { "name": "a" }, "spec": { "template": odd } });
    let said = of(kind("apps/deployments"), &deployment, None);
    assert_eq!(said, ["spec.template.spec.hostAliases[1].ip: duplicate ip \"::1\""]);
    assert!(of(kind("apps/deployments"), &deployment, Some(&deployment)).is_empty());
}

#[test]
fn services_and_others() {
    let service = |spec: Value| {
        let mut object =
            json!({ "metadata": { "name": "web", "namespace": "a" }, "spec": { "ports": [{ "port": 80 }] } });
        object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        object
    };
    check("services", service(json!({})), &[]);
    check(
        "services",
        service(json!({ "externalIPs": ["010.0.0.1"], "trafficDistribution": "PreferClose" })),
        &[
            "spec.externalIPs[0]: non-standard IP address \"010.0.0.1\" will be considered invalid in a future Kubernetes \
             release: use \"10.0.0.1\"",
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
        ],
    );
    check(
        "services",
        service(json!({ "clusterIP": "None", "loadBalancerIP": "10.0.0.1" })),
        &["spec.loadBalancerIP is ignored for headless services"],
    );
    check(
        "persistentvolumes",
        json!({ "metadata": { "name": "a" }, "spec": { "persistentVolumeReclaimPolicy": "Recycle" } }),
        &[
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is \
           to use dynamic provisioning.",
        ],
    );
    check(
        "networking.k8s.io/ingresses",
        json!({ "metadata": { "name": "a", "annotations": { "kubernetes.io/ingress.class": "b" } } }),
        &[
            "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead",
        ],
    );
}
