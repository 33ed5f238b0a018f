//! `healthCheckNodePort`: for each Service with `externalTrafficPolicy: Local`, a port of the node that tells outside
//! load balancers whether this node has a ready endpoint of it. Answers are kube-proxy's.
//!
//! Ports come and go with the Services; at most one a Service, from the node port range. A port that is taken is told
//! in an Event on the Service, and tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use hawser_kubelet::events::{EventType, Recorder};
use hawser_services::{Change, Directory, EndpointSlice, Key, Service, ServiceType};
use http::{HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::json;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    healthz::Health,
    http_server::{Answer, answer, bind_everywhere, serve},
};

const WEIGHT: &str = "x-load-balancing-endpoint-weight";
/// How often a port that was taken is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// A Service that wants a health port, and the port.
type Wanted = BTreeMap<u16, Key>;

/// What the servers answer from. Cheap to clone.
#[derive(Clone)]
struct Source {
    services: Directory,
    node_name: Arc<str>,
    health: Health,
}

/// Follows the Services. Its handler must be registered before the directory is filled.
pub(crate) struct HealthChecks {
    source: Source,
    changed: watch::Receiver<()>,
    recorder: Recorder,
    /// By port; bounded by the node port range.
    running: BTreeMap<u16, (Key, AbortHandle)>,
    /// Services that were told that their port is taken; bounded by those that want one.
    told: BTreeSet<Key>,
}

impl HealthChecks {
    pub(crate) fn new(services: &Directory, node_name: &str, health: Health, recorder: Recorder) -> Self {
        let (sender, changed) = watch::channel(());
        services.on_change(move |_, change| {
            if let Change::Service { old, new } = change
                && old.and_then(health_port) != new.and_then(health_port)
            {
                sender.send_replace(());
            }
        });
        let source = Source { services: services.clone(), node_name: node_name.into(), health };
        Self { source, changed, recorder, running: BTreeMap::new(), told: BTreeSet::new() }
    }

    /// Serves until dropped.
    pub(crate) async fn run(mut self) {
        loop {
            self.changed.borrow_and_update();
            let all_served = self.apply().await;
            let changed = self.changed.changed();
            let ended = if all_served {
                changed.await.is_err()
            } else {
                matches!(timeout(TRY_AGAIN, changed).await, Ok(Err(_)))
            };
            if ended {
                // Nobody can change anything any more; what is served goes on.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Opens and closes ports; false where one could not be opened.
    async fn apply(&mut self) -> bool {
        let wanted = wanted(&self.source.services);
        self.running.retain(|port, (key, server)| {
            let stays = wanted.get(port) == Some(key);
            if !stays {
                info!(port, service = %key, "health port is closed");
                server.abort();
            }
            stays
        });
        self.told.retain(|key| wanted.values().any(|other| other == key));
        let mut all_served = true;
        for (port, key) in wanted {
            if self.running.contains_key(&port) {
                continue;
            }
            match self.open(port, &key).await {
                Ok(server) => {
                    info!(port, service = %key, "health port is open");
                    self.told.remove(&key);
                    self.running.insert(port, (key, server));
                }
                Err(error) => {
                    all_served = false;
                    self.tell(port, key, &error);
                }
            }
        }
        all_served
    }

    async fn open(&self, port: u16, key: &Key) -> std::io::Result<AbortHandle> {
        let listener = match bind_everywhere(port).await {
            // A server that was just told to stop may hold the port for a moment.
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                sleep(Duration::from_millis(50)).await;
                bind_everywhere(port).await?
            }
            other => other?,
        };
        let (source, key) = (self.source.clone(), key.clone());
        Ok(tokio::spawn(serve(listener, move |_: &Request<Incoming>| source.answer(&key))).abort_handle())
    }

    fn tell(&mut self, port: u16, key: Key, error: &std::io::Error) {
        if !self.told.insert(key.clone()) {
            return;
        }
        warn!(port, service = %key, %error, "health port cannot be served");
        let Some(service) = self.source.services.get(&key) else { return };
        let object = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(service.uid.to_string()),
            ..ObjectReference::default()
        };
        let message =
            format!("node {} cannot listen on healthCheckNodePort {port}: {error}", self.source.node_name);
        self.recorder.event(object, EventType::Warning, "FailedToStartServiceHealthcheck", message);
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.running.values().for_each(|(_, server)| server.abort());
    }
}

impl Source {
    fn answer(&self, key: &Key) -> Answer {
        let endpoints = local_endpoints(&self.services.slices(key), &self.node_name);
        respond(key, endpoints, self.health.is_in_step())
    }
}

/// Addresses of ready endpoints on this node: one pod with many ports, or in two slices, is one.
fn local_endpoints(slices: &[Arc<EndpointSlice>], node_name: &str) -> usize {
    let ready = slices.iter().flat_map(|slice| slice.ready_endpoints());
    let local = ready.filter(|(node, _)| *node == node_name);
    let addresses: BTreeSet<IpAddr> = local.map(|(_, endpoint)| endpoint.address).collect();
    addresses.len()
}

fn respond(key: &Key, endpoints: usize, is_in_step: bool) -> Answer {
    let is_ok = endpoints > 0 && is_in_step;
    let status = if is_ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "service": { "namespace": &*key.namespace, "name": &*key.name },
        "localEndpoints": endpoints,
        "serviceProxyHealthy": is_in_step,
    });
    let mut answer = answer(status, "application/json", body.to_string());
    let headers = answer.headers_mut();
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(endpoints));
    answer
}

fn wanted(services: &Directory) -> Wanted {
    let services = services.filter(|service| health_port(service).is_some());
    services.iter().filter_map(|service| Some((health_port(service)?, service.key.clone()))).collect()
}

fn health_port(service: &Service) -> Option<u16> {
    let is_local =
        service.type_ == ServiceType::LoadBalancer && service.is_external_local && !service.is_other_proxys;
    let port = service.external.as_ref()?.health_check_node_port;
    (is_local && port != 0).then_some(port)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use hawser_api::informer::Informer;
    use k8s_openapi::api::{core, core::v1::Node, discovery};
    use serde_json::Value;

    use super::*;
    use crate::metrics::Metrics;

    fn service(name: &str, port: u16) -> core::v1::Service {
        serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": name, "uid": name },
            "spec": {
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
            },
        }))
        .unwrap()
    }

    fn slice(name: &str, endpoints: Value) -> discovery::v1::EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "shop", "name": name, "labels": { "kubernetes.io/service-name": "web" },
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
        }))
        .unwrap()
    }

    /// A port that nothing has at the moment.
    fn free_port() -> u16 {
        std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
    }

    async fn get(port: u16) -> std::io::Result<String> {
        tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: node\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
        .await
        .unwrap()
    }

    /// Asks until the answer, or the refusal, contains `words`.
    async fn until(port: u16, words: &[&str]) -> String {
        let mut last = String::new();
        for _ in 0..500 {
            last = get(port).await.unwrap_or_else(|error| error.to_string());
            if words.iter().all(|word| last.contains(word)) {
                return last;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("never saw {words:?}, but {last}");
    }

    #[test]
    fn ready_addresses_of_this_node_are_counted_once() {
        let on = |node: &str, address: &str, ready: bool| json!({ "addresses": [address], "nodeName": node, "conditions": { "ready": ready } });
        let slices = [
            json!([on("n1", "10.0.0.1", true), on("n1", "10.0.0.2", false), on("n2", "10.0.0.3", true)]),
            json!([on("n1", "10.0.0.1", true), on("n1", "10.0.0.4", true)]),
        ]
        .map(|endpoints| Arc::new(EndpointSlice::of(&slice("a", endpoints)).unwrap()));
        assert_eq!(local_endpoints(&slices, "n1"), 2);
        assert_eq!(local_endpoints(&slices, "n3"), 0);
    }

    #[test]
    fn only_local_load_balancers_have_a_health_port() {
        let local = Service::from(&service("web", 30_100));
        assert_eq!(health_port(&local), Some(30_100));
        assert_eq!(health_port(&Service { is_external_local: false, ..local.clone() }), None);
        assert_eq!(health_port(&Service { is_other_proxys: true, ..local }), None);
    }

    #[tokio::test]
    async fn health_port_follows_the_service_and_its_local_endpoints() {
        let (services, nodes) = (Directory::default(), Informer::<Node>::new());
        let metrics = Metrics::new();
        let health = Health::new(metrics.clone(), nodes, "n1");
        let (recorder, mut events) = Recorder::new();
        let checks = HealthChecks::new(&services, "n1", health, recorder);
        let (port, taken) = (free_port(), std::net::TcpListener::bind("[::]:0").unwrap());
        services.put_service(&service("web", port));
        let running = tokio::spawn(checks.run());
        until(port, &["503", "\"serviceProxyHealthy\":false"]).await;
        metrics.synced(metrics.sync_begins(), Duration::ZERO, &[]);
        until(port, &["503", "\"localEndpoints\":0", "\"serviceProxyHealthy\":true"]).await;
        services.put_slice(&slice("a", json!([{ "addresses": ["10.0.0.1"], "nodeName": "n1" }])));
        let text = until(port, &["HTTP/1.1 200", "\"localEndpoints\":1"]).await;
        assert!(text.contains("x-load-balancing-endpoint-weight: 1"), "{text}");
        assert!(text.contains(r#""service":{"name":"web","namespace":"shop"}"#), "{text}");

        services.put_service(&service("other", taken.local_addr().unwrap().port()));
        let event = events.recv().await.unwrap();
        assert_eq!(event.reason, "FailedToStartServiceHealthcheck");
        assert_eq!(event.object.name.as_deref(), Some("other"));

        services.remove_service(&Key::new("shop", "web"));
        until(port, &["refused"]).await;
        running.abort();
    }
}
