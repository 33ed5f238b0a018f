//! Names, as pods resolve them.

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::{Pod, script, server, sleeper, test};
use crate::{
    coverage::texts,
    steps::{as_json, create, patch},
    support::Bed,
};

texts! {
    "DNS, cluster" => should_provide_dns_for_the_cluster,
    "DNS, cluster" => should_provide_etc_hosts_entries_for_the_cluster,
    "DNS, services" => should_provide_dns_for_services,
    "DNS, PQDN for services" => should_resolve_dns_of_partial_qualified_names_for_services,
    "DNS, resolve the hostname" => should_provide_dns_for_pods_for_hostname,
    "DNS, resolve the subdomain" => should_provide_dns_for_pods_for_subdomain,
    "DNS, for ExternalName Services" => should_provide_dns_for_externalname_services,
    "DNS, custom dnsConfig" => should_support_configurable_pod_dns_nameservers,
}

async fn service(bed: &Bed, name: &str, spec: Value) -> Value {
    let service = json!({ "metadata": { "name": name }, "spec": spec });
    as_json(&create(&bed.api::<Service>(), service).await)
}

/// What busybox's `nslookup` finds; it fails too where one of several questions has no answer, which is looked at here.
async fn finds(client: &Pod, kind: &str, name: &str, expected: &str) {
    client
        .sees("main", &format!("nslookup -type={kind} {name} || true"), |said| said.contains(expected))
        .await;
}

/// The addresses of a name, by the resolver of the C library's kind: with search domains.
async fn resolves(client: &Pod, name: &str, expected: &str) {
    let script = format!("ping -c 1 -W 1 {name} 2>/dev/null | head -n 1");
    client.sees("main", &script, |said| said.contains(&format!("({expected})"))).await;
}

/// DNS, cluster
#[test]
fn should_provide_dns_for_the_cluster() {
    test(async |bed| {
        let client = Pod::start(bed, sleeper()).await;
        let kubernetes: kube::Api<Service> = kube::Api::namespaced(bed.client.clone(), "default");
        let kubernetes = as_json(&kubernetes.get("kubernetes").await.expect("the service is there"));
        let address = kubernetes["spec"]["clusterIP"].as_str().expect("an address");
        finds(&client, "a", "kubernetes.default.svc.cluster.local", address).await;
        for name in ["kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"] {
            resolves(&client, name, address).await;
        }
    });
}

/// DNS, cluster
#[test]
fn should_provide_etc_hosts_entries_for_the_cluster() {
    test(async |bed| {
        // With a name in a domain, of a headless Service.
        service(
            bed,
            "dns",
            json!({ "clusterIP": "None", "selector": { "dns": "test" }, "ports": [{ "port": 80 }] }),
        )
        .await;
        let mut pod = sleeper();
        pod["metadata"]["labels"] = json!({ "dns": "test" });
        pod["spec"]["hostname"] = json!("querier");
        pod["spec"]["subdomain"] = json!("dns");
        let client = Pod::start(bed, pod).await;
        let seen = client.get().await.expect("the pod is read");
        let address = seen["status"]["podIP"].as_str().expect("an address");
        let full = format!("querier.dns.{}.svc.cluster.local", bed.namespace);
        let hosts = client.run("cat /etc/hosts").await;
        super::has_line(&hosts, &format!("{address}\t{full}\tquerier"));
        for name in ["querier", &full] {
            resolves(&client, name, address).await;
        }
        assert_eq!(client.run("hostname; hostname -f").await, format!("querier\n{full}\n"));
    });
}

/// A server, a Service with an address and one without, both with a named port; and a pod that asks.
struct Named {
    client: Pod,
    /// The server's.
    pod: String,
    /// The Service's.
    service: String,
}

async fn named(bed: &Bed) -> Named {
    let mut pod = server();
    pod["metadata"]["labels"] = json!({ "dns": "test" });
    let pod = Pod::start(bed, pod).await.get().await.expect("the pod is read");
    let ports = json!([{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }]);
    let selector = json!({ "dns": "test" });
    service(bed, "headless", json!({ "clusterIP": "None", "selector": selector, "ports": ports })).await;
    let normal = service(bed, "normal", json!({ "selector": selector, "ports": ports })).await;
    let text = |value: &Value| value.as_str().expect("an address").to_owned();
    Named {
        client: Pod::start(bed, sleeper()).await,
        pod: text(&pod["status"]["podIP"]),
        service: text(&normal["spec"]["clusterIP"]),
    }
}

/// The name of an address: `1.0.10.in-addr.arpa`.
fn reverse(address: &str) -> String {
    let parts: Vec<_> = address.split('.').rev().collect();
    format!("{}.in-addr.arpa", parts.join("."))
}

/// DNS, services
#[test]
fn should_provide_dns_for_services() {
    test(async |bed| {
        let Named { client, pod, service } = named(bed).await;
        let zone = format!("{}.svc.cluster.local", bed.namespace);
        finds(&client, "a", &format!("headless.{zone}"), &format!("Address: {pod}\n")).await;
        finds(&client, "a", &format!("normal.{zone}"), &format!("Address: {service}\n")).await;
        finds(&client, "srv", &format!("_http._tcp.normal.{zone}"), &format!(" 80 normal.{zone}")).await;
        let dashed = pod.replace('.', "-");
        finds(
            &client,
            "srv",
            &format!("_http._tcp.headless.{zone}"),
            &format!(" 8080 {dashed}.headless.{zone}"),
        )
        .await;
        finds(&client, "a", &format!("{dashed}.headless.{zone}"), &format!("Address: {pod}\n")).await;
        finds(&client, "ptr", &reverse(&service), &format!("name = normal.{zone}\n")).await;
        finds(&client, "ptr", &reverse(&pod), &format!("name = {dashed}.headless.{zone}\n")).await;
    });
}

/// DNS, PQDN for services
#[test]
fn should_resolve_dns_of_partial_qualified_names_for_services() {
    test(async |bed| {
        let Named { client, pod, service } = named(bed).await;
        for (name, address) in [("headless", &pod), ("normal", &service)] {
            for domain in ["", &format!(".{}", bed.namespace), &format!(".{}.svc", bed.namespace)] {
                resolves(&client, &format!("{name}{domain}"), address).await;
            }
        }
        client.sees("main", "wget -qO- http://normal/healthz", |said| said == "ok").await;
        // busybox knows no search domains for records of this kind.
        let script = "for domain in $(sed -n 's/^search //p' /etc/resolv.conf)
            do nslookup -type=srv _http._tcp.SERVICE.$domain && break; done || true";
        for (name, port) in [("normal", 80), ("headless", 8080)] {
            client
                .sees("main", &script.replace("SERVICE", name), |said| said.contains(&format!(" {port} ")))
                .await;
        }
    });
}

/// A pod with a host name in the domain of a headless Service.
async fn in_subdomain(bed: &Bed) -> (Pod, String) {
    service(
        bed,
        "subdomain",
        json!({ "clusterIP": "None", "selector": { "dns": "test" }, "ports": [{ "port": 80 }] }),
    )
    .await;
    let mut pod = sleeper();
    pod["metadata"]["labels"] = json!({ "dns": "test" });
    pod["spec"]["hostname"] = json!("host");
    pod["spec"]["subdomain"] = json!("subdomain");
    let pod = Pod::start(bed, pod).await;
    let seen = pod.get().await.expect("the pod is read");
    let address = seen["status"]["podIP"].as_str().expect("an address").to_owned();
    (pod, address)
}

/// DNS, resolve the hostname
#[test]
fn should_provide_dns_for_pods_for_hostname() {
    test(async |bed| {
        let (pod, address) = in_subdomain(bed).await;
        let full = format!("host.subdomain.{}.svc.cluster.local", bed.namespace);
        let other = Pod::start(bed, sleeper()).await;
        for client in [&pod, &other] {
            finds(client, "a", &full, &format!("Address: {address}\n")).await;
        }
        resolves(&other, "host.subdomain", &address).await;
        assert_eq!(pod.run("hostname").await, "host\n");
        resolves(&pod, "host", &address).await;
    });
}

/// DNS, resolve the subdomain
#[test]
fn should_provide_dns_for_pods_for_subdomain() {
    test(async |bed| {
        let (pod, address) = in_subdomain(bed).await;
        let domain = format!("subdomain.{}.svc.cluster.local", bed.namespace);
        let other = Pod::start(bed, sleeper()).await;
        for client in [&pod, &other] {
            finds(client, "a", &domain, &format!("Address: {address}\n")).await;
            finds(client, "a", &format!("host.{domain}"), &format!("Address: {address}\n")).await;
        }
    });
}

/// DNS, for ExternalName Services
#[test]
fn should_provide_dns_for_externalname_services() {
    test(async |bed| {
        let external = json!({ "type": "ExternalName", "externalName": "foo.example.com" });
        service(bed, "external", external).await;
        let client = Pod::start(bed, sleeper()).await;
        let name = format!("external.{}.svc.cluster.local", bed.namespace);
        finds(&client, "cname", &name, "canonical name = foo.example.com").await;
        let services = bed.api::<Service>();
        patch(&services, "external", json!({ "spec": { "externalName": "bar.example.com" } })).await;
        finds(&client, "cname", &name, "canonical name = bar.example.com").await;
        let normal =
            json!({ "type": "ClusterIP", "externalName": null, "ports": [{ "name": "http", "port": 80 }] });
        let normal = as_json(&patch(&services, "external", json!({ "spec": normal })).await);
        let address = normal["spec"]["clusterIP"].as_str().expect("an address");
        finds(&client, "a", &name, &format!("Address: {address}\n")).await;
    });
}

/// DNS, custom dnsConfig
#[test]
fn should_support_configurable_pod_dns_nameservers() {
    test(async |bed| {
        let mut pod = script("cat /etc/resolv.conf");
        pod["spec"]["dnsPolicy"] = json!("None");
        pod["spec"]["dnsConfig"] = json!({ "nameservers": ["1.1.1.1"], "searches": ["resolv.conf.local"] });
        let said = Pod::output(bed, pod).await;
        super::has_line(&said, "nameserver 1.1.1.1");
        super::has_line(&said, "search resolv.conf.local");
        assert_eq!(said.matches("nameserver").count(), 1, "{said}");
    });
}
