//! Pods as an application's are: about 2 kB of JSON.

use std::sync::LazyLock;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request};
use serde_json::{Value, json};

use crate::client::write;

pub(crate) const NAMESPACE: &str = "bench";
/// Where they are.
pub(crate) const PATH: &str = "/api/v1/namespaces/bench/pods";

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// What pods wait for: a namespace, and the service account that they run as.
pub(crate) fn surroundings() -> Result<[Request<Full<Bytes>>; 2]> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    Ok([
        write(Method::POST, "/api/v1/namespaces", JSON, bytes(&namespace))?,
        write(Method::POST, "/api/v1/namespaces/bench/serviceaccounts", JSON, bytes(&account))?,
    ])
}

pub(crate) fn create(name: &str) -> Result<Request<Full<Bytes>>> {
    write(Method::POST, PATH, JSON, body(name))
}

/// How pods are put: as one that the server has made, under any name and with another label each time.
pub(crate) struct Update(String);

impl Update {
    pub(crate) fn of(mut made: Value) -> Self {
        made["metadata"] = json!({"name": "@name", "labels": made["metadata"]["labels"]});
        made["metadata"]["labels"]["round"] = "@round".into();
        Self(made.to_string())
    }

    pub(crate) fn request(&self, name: &str, round: u64) -> Result<Request<Full<Bytes>>> {
        write(Method::PUT, &format!("{PATH}/{name}"), JSON, filled(&self.0, name, round))
    }
}

/// Sets an annotation.
pub(crate) fn patch(name: &str, value: &str) -> Result<Request<Full<Bytes>>> {
    let body = format!(r#"{{"metadata":{{"annotations":{{"bench.hawser.io/at":"{value}"}}}}}}"#);
    write(Method::PATCH, &format!("{PATH}/{name}"), MERGE_PATCH, body.into())
}

fn bytes(object: &Value) -> Bytes {
    object.to_string().into()
}

/// A pod as a client sends it.
pub(crate) fn body(name: &str) -> Bytes {
    // Made once: the clients have one processor, and are to wait for the server rather than the server for them.
    static TEXT: LazyLock<String> = LazyLock::new(|| template().to_string());
    filled(&TEXT, name, 0)
}

fn filled(text: &str, name: &str, round: u64) -> Bytes {
    text.replacen("@name", name, 1).replacen("@round", &round.to_string(), 1).into()
}

fn template() -> Value {
    let probe = |path: &str| {
        json!({
            "httpGet": {"path": path, "port": "http", "scheme": "HTTP"},
            "initialDelaySeconds": 3, "timeoutSeconds": 2, "periodSeconds": 10, "failureThreshold": 3,
        })
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "@name",
            "labels": {
                "app.kubernetes.io/name": "checkout",
                "app.kubernetes.io/instance": "checkout-production",
                "app.kubernetes.io/component": "server",
                "pod-template-hash": "6d4b75cb6d",
                "round": "@round",
            },
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": "9090",
                "checksum/config": "c2a1f5f0c8d2b4b7b8c9aa0f4de2f2f0a4a8c6e6f4d19e7a6f1b3d5c7e9f0a1b",
            },
        },
        "spec": {
            "serviceAccountName": "default",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "server",
                "image": "registry.example.com/shop/checkout:1.24.3",
                "imagePullPolicy": "IfNotPresent",
                "args": ["--listen=:8080", "--metrics=:9090", "--config=/etc/checkout/config.yaml"],
                "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"name": "metrics", "containerPort": 9090, "protocol": "TCP"},
                ],
                "env": [
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "DATABASE_URL", "valueFrom": {
                        "secretKeyRef": {"name": "checkout-database", "key": "url"}}},
                    {"name": "LOG_LEVEL", "value": "info"},
                ],
                "resources": {
                    "requests": {"cpu": "250m", "memory": "256Mi"},
                    "limits": {"memory": "512Mi"},
                },
                "readinessProbe": probe("/ready"),
                "livenessProbe": probe("/live"),
                "volumeMounts": [{"name": "config", "mountPath": "/etc/checkout", "readOnly": true}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": "checkout-config"}}],
        },
    })
}
