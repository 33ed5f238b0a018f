use serde_json::{Value, json};

use crate::kinds::tests::{refused, with};

fn policy(rule: Value) -> Value {
    json!({
        "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": { "name": "p", "namespace": "a" },
        "spec": { "podSelector": {}, "ingress": [rule] },
    })
}

#[test]
fn bad_network_policies_are_told_where() {
    let block = |block: Value| json!({ "from": [{ "ipBlock": block }] });
    let port = |port: Value| json!({ "ports": [port] });
    let rows: Vec<(Value, &[&str])> = vec![
        (json!({}), &[]),
        (block(json!({ "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] })), &[]),
        (block(json!({ "cidr": "2001:db8::/64" })), &[]),
        (json!({ "from": [{ "podSelector": {}, "namespaceSelector": {} }] }), &[]),
        (json!({ "from": [{}] }), &["from[0]: Required value: must specify a peer"]),
        (
            json!({ "from": [{ "podSelector": {}, "ipBlock": { "cidr": "10.0.0.0/8" } }] }),
            &["from[0]: Forbidden: may not specify both ipBlock and another peer"],
        ),
        (block(json!({})), &["from[0].ipBlock.cidr: Required value"]),
        (
            block(json!({ "cidr": "10.0.0.0" })),
            &[
                "from[0].ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or \
                 2001:db8::/64)",
            ],
        ),
        (
            block(json!({ "cidr": "10.0.0.0/8", "except": ["10.0.0.0/8", "11.0.0.0/16", "x"] })),
            &[
                "from[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
                "from[0].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                "from[0].ipBlock.except[2]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or \
                 2001:db8::/64)",
            ],
        ),
        (port(json!({ "port": 80, "endPort": 90 })), &[]),
        (port(json!({ "port": "http" })), &[]),
        (port(json!({})), &[]),
        (
            port(json!({ "port": 0 })),
            &["ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
        ),
        (
            port(json!({ "port": 80, "endPort": 79 })),
            &["ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`"],
        ),
        (
            port(json!({ "port": "http", "endPort": 90 })),
            &["ports[0].endPort: Invalid value: 90: may not be specified when `port` is non-numeric"],
        ),
        (
            port(json!({ "endPort": 90 })),
            &["ports[0].endPort: Invalid value: 90: may not be specified when `port` is not specified"],
        ),
        (
            port(json!({ "protocol": "ICMP" })),
            &["ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\""],
        ),
    ];
    for (rule, expected) in rows {
        let expected: Vec<String> = expected.iter().map(|error| format!("spec.ingress[0].{error}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        refused("networking.k8s.io/networkpolicies", policy(rule), &expected);
    }
}

fn ingress() -> Value {
    let service = json!({ "service": { "name": "web", "port": { "number": 80 } } });
    json!({
        "kind": "Ingress", "apiVersion": "networking.k8s.io/v1", "metadata": { "name": "i", "namespace": "a" },
        "spec": { "rules": [{
            "host": "example.com",
            "http": { "paths": [{ "path": "/", "pathType": "Prefix", "backend": service }] },
        }] },
    })
}

#[test]
fn bad_ingresses_are_told_where() {
    const PART: &str = "/spec/rules/0/http/paths/0";
    let at = |pointer: &str| format!("{PART}/{pointer}");
    let service = |port: Value| json!({ "service": { "name": "web", "port": port } });
    let resource = json!({ "apiGroup": "example.com", "kind": "Bucket", "name": "b" });
    let rows: Vec<(String, Value, &[&str])> = vec![
        (at("backend"), service(json!({ "name": "http" })), &[]),
        (at("backend"), json!({ "resource": resource }), &[]),
        ("/spec/rules/0/host".into(), json!("*.example.com"), &[]),
        ("/spec/tls".into(), json!([{ "hosts": ["*.a.b", "a.b"], "secretName": "s" }, {}]), &[]),
        (
            at("backend"),
            json!({}),
            &["rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required"],
        ),
        (
            at("backend/resource"),
            json!({}),
            &[
                "rules[0].http.paths[0].backend: Invalid value: \"\": cannot set both resource and service backends",
            ],
        ),
        (
            at("backend"),
            service(json!({})),
            &["rules[0].http.paths[0].backend: Required value: port name or number is required"],
        ),
        (
            at("backend"),
            service(json!({ "name": "http", "number": 80 })),
            &["rules[0].http.paths[0].backend: Invalid value: \"\": cannot set both port name & port number"],
        ),
        (
            at("backend"),
            service(json!({ "number": 70000 })),
            &[
                "rules[0].http.paths[0].backend.service.port.number: Invalid value: 70000: must be between 1 and 65535, \
                 inclusive",
            ],
        ),
        (
            at("backend/service/name"),
            json!(""),
            &["rules[0].http.paths[0].backend.service.name: Required value"],
        ),
        (
            at("backend"),
            json!({ "resource": { "kind": "Bucket" } }),
            &["rules[0].http.paths[0].backend.resource.name: Required value: name is required"],
        ),
        ("/spec/rules/0/http/paths".into(), json!([]), &["rules[0].http.paths: Required value"]),
        (
            at("path"),
            json!("/a/../b//c"),
            &[
                "rules[0].http.paths[0].path: Invalid value: \"/a/../b//c\": must not contain '//'",
                "rules[0].http.paths[0].path: Invalid value: \"/a/../b//c\": must not contain '/../'",
            ],
        ),
        (
            at("path"),
            json!("/a/."),
            &["rules[0].http.paths[0].path: Invalid value: \"/a/.\": cannot end with '/.'"],
        ),
        (
            "/spec/rules/0/host".into(),
            json!("10.0.0.1"),
            &["rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address"],
        ),
    ];
    for (pointer, value, expected) in rows {
        let expected: Vec<String> = expected.iter().map(|error| format!("spec.{error}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        refused("networking.k8s.io/ingresses", with(ingress(), &pointer, value), &expected);
    }
    let both = with(ingress(), "/metadata/annotations", json!({ "kubernetes.io/ingress.class": "a" }));
    refused(
        "networking.k8s.io/ingresses",
        with(both, "/spec/ingressClassName", json!("b")),
        &[
            "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are \
             specified",
        ],
    );
    for host in ["a.*.b", "*", "foo.*", "*.-a"] {
        let ingress = with(ingress(), "/spec/rules/0/host", json!(host));
        let errors = super::rules::ingress(&ingress);
        assert!(errors.len() == 1 && errors[0].detail.starts_with("a wildcard DNS-1123 subdomain"), "{host}");
    }
}
