//! Extenders over HTTP, played by a small server, beside a scheduler against an API server in memory.

mod fake;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use fake::{Connection, Fake};
use hawser_api::client::Binding;
use hawser_scheduler::{Config, run};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;

type Answer = dyn Fn(&str, &Value) -> (StatusCode, Value) + Send + Sync;

/// An extender with what it was asked.
struct Outside {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Outside {
    /// `answer` gets the verb and the arguments.
    async fn start(answer: impl Fn(&str, &Value) -> (StatusCode, Value) + Send + Sync + 'static) -> Self {
        Self::serve(None, Arc::new(answer)).await
    }

    async fn serve(tls: Option<tokio_rustls::TlsAcceptor>, answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log, tls) = (answer.clone(), log.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => talk(stream, answer, log).await,
                        // A client that does not trust it goes away.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                talk(stream, answer, log).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, asked }
    }

    fn verbs(&self) -> Vec<String> {
        self.asked.lock().iter().map(|(verb, _)| verb.clone()).collect()
    }

    fn arguments(&self, verb: &str) -> Value {
        self.asked.lock().iter().find(|(asked, _)| asked == verb).unwrap().1.clone()
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Arc<Answer>,
    log: Arc<Mutex<Vec<(String, Value)>>>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, log) = (answer.clone(), log.clone());
        async move {
            let verb = request.uri().path().trim_start_matches("/sched/").to_owned();
            let body = request.into_body().collect().await?.to_bytes();
            let arguments: Value = serde_json::from_slice(&body).unwrap();
            log.lock().push((verb.clone(), arguments.clone()));
            let (status, body) = answer(&verb, &arguments);
            let body = Full::new(Bytes::from(body.to_string()));
            Ok::<_, hyper::Error>(Response::builder().status(status).body(body).unwrap())
        }
    });
    // The client may leave at any time.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn node(name: &str) -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110" } },
    })
}

fn pod(name: &str, requests: Value) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": name, "namespace": "a", "uid": format!("uid-{name}") },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": requests } }] },
        "status": { "phase": "Pending" },
    })
}

fn cluster(nodes: &[&str]) -> Arc<Fake> {
    let fake = Arc::new(Fake::default());
    nodes.iter().for_each(|name| fake.put("nodes", node(name)));
    fake
}

/// A configuration with these extenders, as users write it.
fn config(extenders: &[Value]) -> Config {
    let file = json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration", "extenders": extenders,
    });
    let config = Config::default().with_file(&file.to_string()).unwrap();
    Config { backoff_first: Duration::from_millis(10), ..config }
}

fn extender(address: SocketAddr, fields: Value) -> Value {
    let mut extender = json!({ "urlPrefix": format!("http://{address}/sched/") });
    for (field, value) in fields.as_object().unwrap() {
        extender[field] = value.clone();
    }
    extender
}

/// Runs a scheduler until the scenario is over.
async fn scenario(fake: &Arc<Fake>, config: Config, act: impl Future<Output = ()>) {
    let shutdown = CancellationToken::new();
    let scheduler = tokio::spawn(run(Connection::new(fake), config, shutdown.clone()));
    act.await;
    shutdown.cancel();
    scheduler.await.unwrap().unwrap();
    assert_eq!(fake.broken(), Vec::<String>::new());
}

fn placed(pods: &[Value], name: &str) -> Value {
    pods.iter()
        .find(|pod| pod["metadata"]["name"] == name)
        .map(|pod| pod["spec"]["nodeName"].clone())
        .unwrap_or_default()
}

fn told(pods: &[Value], reason: &str) -> Option<String> {
    let mut conditions = pods.iter().map(|pod| &pod["status"]["conditions"][0]);
    let condition = conditions.find(|condition| condition["reason"] == reason)?;
    condition["message"].as_str().map(str::to_owned)
}

fn ok(answer: Value) -> (StatusCode, Value) {
    (StatusCode::OK, answer)
}

#[tokio::test]
async fn extenders_filter_one_after_the_other_and_score() {
    let first = Outside::start(|verb, arguments| match verb {
        "filter" => ok(json!({ "nodenames": ["n1", "n2"], "failedNodes": { "n3": "no gpu" } })),
        _ => {
            let names = arguments["NodeNames"].as_array().unwrap();
            let score = |name: &Value| if name == "n2" { 10 } else { 0 };
            ok(names.iter().map(|name| json!({ "Host": name, "Score": score(name) })).collect())
        }
    })
    .await;
    let second = Outside::start(|_, arguments| {
        ok(json!({ "Nodes": arguments["Nodes"], "NodeNames": null, "FailedNodes": null, "Error": "" }))
    })
    .await;
    let fake = cluster(&["n1", "n2", "n3"]);
    let config = config(&[
        extender(
            first.address,
            json!({ "filterVerb": "filter", "prioritizeVerb": "score", "weight": 5, "nodeCacheCapable": true }),
        ),
        extender(second.address, json!({ "filterVerb": "filter" })),
    ]);
    fake.put("pods", pod("p", json!({ "cpu": "1" })));
    scenario(&fake, config, async {
        fake.until("pods", |pods| placed(pods, "p") == "n2").await;
    })
    .await;
    assert_eq!(first.verbs(), ["filter", "score"]);
    // In no order: nodes come as they were heard of.
    let mut asked: Vec<Value> = first.arguments("filter")["NodeNames"].as_array().unwrap().clone();
    asked.sort_by_key(Value::to_string);
    assert_eq!(asked, ["n1", "n2", "n3"]);
    assert_eq!(first.arguments("filter")["Pod"]["metadata"]["name"], "p");
    // The second sees whole nodes, and only those that the first has left, in its order.
    let items = &second.arguments("filter")["Nodes"]["items"];
    let names: Vec<&Value> = items.as_array().unwrap().iter().map(|node| &node["metadata"]["name"]).collect();
    assert_eq!(names, ["n1", "n2"]);
    assert_eq!(items[0]["status"]["allocatable"]["cpu"], "4");
}

#[tokio::test]
async fn pods_without_a_managed_resource_are_none_of_its_business() {
    let gpus = Outside::start(|_, _| ok(json!({ "nodenames": ["n1"] }))).await;
    let fake = cluster(&["n1"]);
    let resources = json!([{ "name": "example.com/gpu", "ignoredByScheduler": true }]);
    let config = config(&[extender(
        gpus.address,
        json!({ "filterVerb": "filter", "nodeCacheCapable": true, "managedResources": resources }),
    )]);
    fake.put("pods", pod("plain", json!({ "cpu": "1" })));
    // No node has the resource: only the extender knows of it.
    fake.put("pods", pod("gpu", json!({ "cpu": "1", "example.com/gpu": "1" })));
    scenario(&fake, config, async {
        fake.until("pods", |pods| placed(pods, "plain") == "n1" && placed(pods, "gpu") == "n1").await;
    })
    .await;
    let asked = gpus.asked.lock();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].1["Pod"]["metadata"]["name"], "gpu");
}

#[tokio::test]
async fn what_it_refuses_is_told_and_tried_again_when_something_happens() {
    let outside = Outside::start(|_, arguments| {
        let names = arguments["NodeNames"].as_array().unwrap();
        let good: Vec<&Value> = names.iter().filter(|name| *name == "n3").collect();
        ok(json!({ "NodeNames": good, "FailedAndUnresolvableNodes": { "n1": "no gpu", "n2": "no gpu" } }))
    })
    .await;
    let fake = cluster(&["n1", "n2"]);
    let config =
        config(&[extender(outside.address, json!({ "filterVerb": "filter", "nodeCacheCapable": true }))]);
    fake.put("pods", pod("p", json!({ "cpu": "1" })));
    scenario(&fake, config, async {
        let message = "0/2 nodes are available: 2 no gpu. \
            preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
        fake.until("pods", |pods| told(pods, "Unschedulable").as_deref() == Some(message)).await;
        fake.put("nodes", node("n3"));
        fake.until("pods", |pods| placed(pods, "p") == "n3").await;
    })
    .await;
}

#[tokio::test]
async fn a_pod_is_bound_by_the_extender_whose_matter_that_is() {
    let fake = cluster(&["n1"]);
    let api = fake.clone();
    let outside = Outside::start(move |_, arguments| {
        let text = |field: &str| arguments[field].as_str().unwrap().to_owned();
        let binding = Binding {
            namespace: text("PodNamespace"),
            pod: text("PodName"),
            uid: text("PodUID"),
            node: text("Node"),
        };
        ok(json!({ "Error": api.bind_now(&binding).err().map(|error| error.to_string()).unwrap_or_default() }))
    })
    .await;
    let config = config(&[extender(outside.address, json!({ "bindVerb": "bind" }))]);
    fake.put("pods", pod("p", json!({ "cpu": "1" })));
    scenario(&fake, config, async {
        fake.until("pods", |pods| placed(pods, "p") == "n1").await;
        fake.until("events", |events| events.iter().any(|event| event["reason"] == "Scheduled")).await;
    })
    .await;
    assert_eq!(outside.verbs(), ["bind"]);
    assert_eq!(fake.bind_calls.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn one_that_fails_is_left_out_only_if_it_may_be() {
    let broken = Outside::start(|_, _| (StatusCode::INTERNAL_SERVER_ERROR, json!({}))).await;
    for ignorable in [true, false] {
        let fake = cluster(&["n1"]);
        let settings = json!({ "filterVerb": "filter", "ignorable": ignorable });
        fake.put("pods", pod("p", json!({ "cpu": "1" })));
        scenario(&fake, config(&[extender(broken.address, settings)]), async {
            if ignorable {
                fake.until("pods", |pods| placed(pods, "p") == "n1").await;
                return;
            }
            let message = format!(
                "failed to ask the extender at http://{}/sched/filter: it answers 500 Internal Server Error",
                broken.address
            );
            fake.until("pods", |pods| told(pods, "SchedulerError").as_ref() == Some(&message)).await;
            assert_eq!(placed(&fake.all("pods"), "p"), Value::Null);
        })
        .await;
    }
}

#[tokio::test]
async fn one_that_does_not_answer_in_time_has_failed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let fake = cluster(&["n1"]);
    fake.put("pods", pod("p", json!({ "cpu": "1" })));
    let settings = json!({ "filterVerb": "filter", "httpTimeout": "50ms" });
    scenario(&fake, config(&[extender(address, settings)]), async {
        let message =
            format!("failed to ask the extender at http://{address}/sched/filter: no answer within 50ms");
        fake.until("pods", |pods| told(pods, "SchedulerError").as_ref() == Some(&message)).await;
    })
    .await;
}

#[tokio::test]
async fn an_extender_chooses_among_victims() {
    for cached in [true, false] {
        let outside = Outside::start(|_, arguments| {
            // Of the nodes it leaves one, with the pods that the scheduler named.
            let given =
                arguments["NodeNameToMetaVictims"].get("n2").or(arguments["NodeNameToVictims"].get("n2"));
            let pods = given.unwrap()["Pods"].as_array().unwrap();
            let uid = |pod: &Value| pod.get("UID").unwrap_or(&pod["metadata"]["uid"]).clone();
            let pods: Vec<Value> = pods.iter().map(|pod| json!({ "UID": uid(pod) })).collect();
            ok(json!({ "NodeNameToMetaVictims": { "n2": { "Pods": pods, "NumPDBViolations": 0 } } }))
        })
        .await;
        let fake = cluster(&["n1", "n2"]);
        for (name, on) in [("low1", "n1"), ("low2", "n2")] {
            let mut low = pod(name, json!({ "cpu": "3" }));
            low["spec"]["nodeName"] = on.into();
            fake.put("pods", low);
        }
        let mut high = pod("high", json!({ "cpu": "2" }));
        high["spec"]["priority"] = 10.into();
        fake.put("pods", high);
        let settings = json!({ "preemptVerb": "preempt", "nodeCacheCapable": cached });
        scenario(&fake, config(&[extender(outside.address, settings)]), async {
            fake.until("pods", |pods| placed(pods, "high") == "n2").await;
        })
        .await;
        assert_eq!(outside.verbs(), ["preempt"]);
        let deleted = fake.deleted();
        assert_eq!(deleted.len(), 1);
        assert_eq!(deleted[0]["metadata"]["name"], "low2");
    }
}

#[tokio::test]
async fn tls_checks_the_extenders_certificate_unless_it_is_told_not_to() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let made = rcgen::generate_simple_self_signed(vec!["gpu.example.com".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let answer: Arc<Answer> = Arc::new(|_, _| ok(json!({ "NodeNames": ["n1"] })));
    let outside = Outside::serve(Some(acceptor), answer).await;
    let authority = STANDARD.encode(made.cert.pem());
    for (name, tls, trusted) in [
        (
            "its own authority, and its name",
            json!({ "caData": authority, "serverName": "gpu.example.com" }),
            true,
        ),
        ("another name", json!({ "caData": authority }), false),
        ("nobody's matter", json!({ "insecure": true }), true),
    ] {
        let fake = cluster(&["n1"]);
        fake.put("pods", pod("p", json!({ "cpu": "1" })));
        let mut settings = extender(
            outside.address,
            json!({ "filterVerb": "filter", "nodeCacheCapable": true, "tlsConfig": tls }),
        );
        settings["urlPrefix"] = format!("https://{}/sched", outside.address).into();
        scenario(&fake, config(&[settings]), async {
            if trusted {
                fake.until("pods", |pods| placed(pods, "p") == "n1").await;
            } else {
                fake.until("pods", |pods| told(pods, "SchedulerError").is_some()).await;
                assert_eq!(placed(&fake.all("pods"), "p"), Value::Null, "{name}");
            }
        })
        .await;
    }
}
