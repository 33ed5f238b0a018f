//! The API server's proxy to pods and services.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use super::{Pod, server, test};
use crate::{
    coverage::texts,
    steps::create,
    support::{Answer, Bed, eventually},
};

texts! {
    "Proxy through apiserver to a Service" => should_proxy_through_a_service_and_a_pod,
    "Proxy, validate Proxy responses" => a_set_of_valid_responses_are_returned_for_both_pod_and_service_proxy,
    "Proxy, validate ProxyWithPath responses" =>
        a_set_of_valid_responses_are_returned_for_both_pod_and_service_proxywithpath,
}

/// A server that is a Service's; and the paths of both.
async fn served(bed: &Bed, ports: serde_json::Value) -> (Pod, String, String) {
    let mut pod = server();
    pod["metadata"]["labels"] = json!({ "app": "proxied" });
    let pod = Pod::start(bed, pod).await;
    let service = json!({
        "metadata": { "name": "proxied" },
        "spec": { "selector": { "app": "proxied" }, "ports": ports },
    });
    create(&bed.api::<Service>(), service).await;
    let base = format!("/api/v1/namespaces/{}", bed.namespace);
    let (of_pod, of_service) = (format!("{base}/pods/{}", pod.name), format!("{base}/services/proxied"));
    (pod, of_pod, of_service)
}

/// Waits for an answer that is no failure of the proxy's: endpoints follow pods.
async fn ask(bed: &Bed, method: &str, path: &str) -> Answer {
    eventually(&format!("{method} {path} is answered"), async || {
        let answer = bed.send(method, path, &[], "").await;
        ensure!(answer.code == 200, "{} {}", answer.code, answer.text());
        Ok(answer)
    })
    .await
}

/// Proxy through apiserver to a Service
#[test]
fn should_proxy_through_a_service_and_a_pod() {
    test(async |bed| {
        let ports = json!([
            { "name": "one", "port": 80, "targetPort": 8080 },
            { "name": "two", "port": 81, "targetPort": 8080 },
        ]);
        let (pod, of_pod, of_service) = served(bed, ports).await;
        for port in ["one", "two", "80", "81"] {
            for scheme in ["", "http:"] {
                let path = of_service.replace("/services/", &format!("/services/{scheme}"));
                let answer = ask(bed, "GET", &format!("{path}:{port}/proxy/hostname")).await;
                assert_eq!(answer.text(), pod.name, "{scheme} {port}");
            }
        }
        for scheme in ["", "http:"] {
            let path = of_pod.replace("/pods/", &format!("/pods/{scheme}"));
            let answer = ask(bed, "GET", &format!("{path}:8080/proxy/hostname")).await;
            assert_eq!(answer.text(), pod.name, "{scheme}");
        }
    });
}

/// Each method arrives as it is, at this path below `/show`.
async fn each_method(bed: &Bed, below: &str) {
    let (_pod, of_pod, of_service) = served(bed, json!([{ "port": 80, "targetPort": 8080 }])).await;
    for target in [format!("{of_pod}:8080"), of_service] {
        let path = format!("{target}/proxy/show{below}");
        for method in ["DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"] {
            assert_eq!(ask(bed, method, &path).await.text(), format!("{method} {below}"), "{path}");
        }
        let answer = ask(bed, "HEAD", &path).await;
        assert_eq!(answer.text(), "", "{path}");
        assert_eq!(answer.header("content-length"), format!("HEAD {below}").len().to_string());
    }
}

/// Proxy, validate Proxy responses
#[test]
fn a_set_of_valid_responses_are_returned_for_both_pod_and_service_proxy() {
    test(async |bed| {
        each_method(bed, "").await;
        // Without a slash at the end a browser would take relative links for another directory's.
        let base = format!("/api/v1/namespaces/{}/services/proxied", bed.namespace);
        let answer = bed.send("GET", &format!("{base}/proxy?method=GET"), &[], "").await;
        assert_eq!(answer.code, 301);
        assert_eq!(answer.header("location"), format!("{base}/proxy/?method=GET"));
    });
}

/// Proxy, validate ProxyWithPath responses
#[test]
fn a_set_of_valid_responses_are_returned_for_both_pod_and_service_proxywithpath() {
    test(async |bed| each_method(bed, "/some/path/with/DELETE?query=a&b").await);
}
