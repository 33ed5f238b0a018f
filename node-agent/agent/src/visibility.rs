//! Makes what the service path does not do visible: Events for Services that are not served as the API asks, and for
//! a node whose datapath drops connections.
//!
//! Each (port, reason) is told once, until it goes and comes again. All nodes say the same of a Service, so it is one
//! Event however many there are. The kernel's counters are read every few seconds: a level, never a message a packet.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};

use hawser_api::{informer::Informer, resource::ObjectKey};
use hawser_kubelet::events::{EventType, Recorder};
use hawser_proxy::{Datapath, Kind, Skipped};
use hawser_services::{Directory, Key};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// Events for skipped ports that are told in one go, and the pause after which more are.
const AT_ONCE: usize = 32;
const BETWEEN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_secs(5);
/// Counting the entries of all maps reads megabytes.
const USAGE_EVERY: u32 = 6;
/// A condition that was quiet for so long is told anew when it comes back.
const QUIET: Duration = Duration::from_secs(300);

/// What was told of what is skipped; bounded by what is skipped now.
#[derive(Default)]
struct Told(BTreeSet<Skipped>);

impl Told {
    /// Returns what to tell now, at most `limit`. The rest is told by a later call.
    fn news(&mut self, skipped: &[Skipped], limit: usize) -> Vec<Skipped> {
        let now: BTreeSet<&Skipped> = skipped.iter().collect();
        self.0.retain(|told| now.contains(told));
        let news: Vec<Skipped> =
            now.into_iter().filter(|it| !self.0.contains(*it)).take(limit).cloned().collect();
        self.0.extend(news.iter().cloned());
        news
    }

    fn is_behind(&self, skipped: &[Skipped]) -> bool {
        skipped.iter().any(|it| !self.0.contains(it))
    }
}

/// Tells of skipped ports until the sender is gone.
pub(crate) async fn tell_skipped(
    mut skipped: watch::Receiver<Vec<Skipped>>,
    services: Directory,
    pods: Informer<Pod>,
    recorder: Recorder,
) {
    let mut told = Told::default();
    loop {
        let now = skipped.borrow_and_update().clone();
        for news in told.news(&now, AT_ONCE) {
            let Some((object, message)) = describe(&news, &services, &pods) else {
                debug!(?news, "not served");
                continue;
            };
            recorder.shared_event(object, EventType::Warning, "ServiceNotServed", message);
        }
        if told.is_behind(&now) {
            tokio::time::sleep(BETWEEN).await;
        } else if skipped.changed().await.is_err() {
            return;
        }
    }
}

/// The object that an event is about, and what it says.
fn describe(
    skipped: &Skipped,
    services: &Directory,
    pods: &Informer<Pod>,
) -> Option<(ObjectReference, String)> {
    let subject = skipped.subject()?;
    let (kind, uid, port) = match subject.kind {
        Kind::Service => {
            let service = services.get(&Key::new(subject.namespace, subject.name))?;
            ("Service", Some(service.uid.to_string()), "port")
        }
        Kind::HostPort => {
            let pod = pods.get(&ObjectKey::new(subject.namespace, subject.name))?;
            ("Pod", pod.metadata.uid.clone(), "host port")
        }
    };
    let object = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some(kind.into()),
        namespace: Some(subject.namespace.to_owned()),
        name: Some(subject.name.to_owned()),
        uid,
        ..ObjectReference::default()
    };
    let port = if subject.port.is_empty() { String::new() } else { format!("{port} {}: ", subject.port) };
    Some((object, format!("{port}{}", skipped.reason)))
}

/// What a counter of the kernel means for the node's users; `None` where it is nobody's concern.
fn meaning(counter: &str) -> Option<(&'static str, &'static str)> {
    Some(match counter {
        "drop_no_source_port" => (
            "SourcePortsExhausted",
            "connections from outside were dropped: no free source port towards a backend of another node",
        ),
        "drop_flow_table_full" => {
            ("FlowTableFull", "connections were dropped: every flow that could make room is established")
        }
        "drop_no_source_address" => (
            "NoSourceAddress",
            "connections from outside were dropped: the node has no address of their family to send from",
        ),
        "socket_peers_full" => {
            ("SocketTableFull", "datagrams were refused: what UDP sockets remember of their services is full")
        }
        _ => return None,
    })
}

/// When each condition was last seen; bounded by the conditions.
#[derive(Default)]
struct Conditions(HashMap<&'static str, Instant>);

impl Conditions {
    /// True where the condition begins.
    fn seen(&mut self, reason: &'static str, now: Instant) -> bool {
        let before = self.0.insert(reason, now);
        before.is_none_or(|before| now.duration_since(before) > QUIET)
    }
}

/// Follows what the kernel counts, until dropped.
pub(crate) async fn watch_datapath(
    bpffs: PathBuf,
    metrics: Metrics,
    node: ObjectReference,
    recorder: Recorder,
) {
    let mut conditions = Conditions::default();
    let mut tick = interval(POLL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0u32;
    loop {
        tick.tick().await;
        let with_usage = number.is_multiple_of(USAGE_EVERY);
        number = number.wrapping_add(1);
        let bpffs = bpffs.clone();
        let read = tokio::task::spawn_blocking(move || {
            let datapath = Datapath::open(&bpffs)?;
            let usage = if with_usage { datapath.usage()? } else { Vec::new() };
            Ok::<_, hawser_proxy::Error>((datapath.counters()?, usage))
        });
        let (counters, usage) = match read.await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, "the datapath's counters cannot be read");
                continue;
            }
            Err(error) => {
                warn!(%error, "reading of the datapath's counters panicked");
                continue;
            }
        };
        metrics.set_usage(&usage);
        for (name, added) in metrics.count(&counters) {
            let Some((reason, text)) = meaning(name) else { continue };
            if conditions.seen(reason, Instant::now()) {
                let message = format!("{added} {text}");
                recorder.event(node.clone(), EventType::Warning, reason, message);
            }
        }
        for map in usage {
            // The last tenth: there is still time to act.
            if !map.grows && map.entries * 10 >= map.capacity * 9 && conditions.seen(map.name, Instant::now())
            {
                let message =
                    format!("the table of {} holds {} of {} entries", map.name, map.entries, map.capacity);
                recorder.event(node.clone(), EventType::Warning, "DatapathTableNearlyFull", message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hawser_kubelet::events::ToldBy;
    use serde_json::json;

    use super::*;

    fn skipped(what: &str) -> Skipped {
        Skipped { what: what.into(), reason: "its protocol is not served" }
    }

    #[test]
    fn each_port_and_reason_is_told_once_until_it_comes_again() {
        let mut told = Told::default();
        let both = [skipped("a/b:x"), skipped("a/b:y")];
        assert_eq!(told.news(&both, 9), both);
        assert!(told.news(&both, 9).is_empty());
        assert!(told.news(&both[1..], 9).is_empty());
        assert_eq!(told.news(&both, 9), both[..1], "it was gone, and is back");
    }

    #[test]
    fn many_are_told_a_few_at_a_time_and_none_is_lost() {
        let mut told = Told::default();
        let many: Vec<Skipped> = (0..100).map(|number| skipped(&format!("a/s{number:03}:"))).collect();
        let mut heard = Vec::new();
        while told.is_behind(&many) {
            let news = told.news(&many, 32);
            assert!(news.len() <= 32);
            heard.extend(news);
        }
        assert_eq!(heard, many);
    }

    #[tokio::test(start_paused = true)]
    async fn condition_is_told_when_it_begins() {
        let mut conditions = Conditions::default();
        let start = Instant::now();
        assert!(conditions.seen("FlowTableFull", start));
        assert!(!conditions.seen("FlowTableFull", start + QUIET));
        assert!(!conditions.seen("FlowTableFull", start + QUIET * 2));
        assert!(conditions.seen("FlowTableFull", start + QUIET * 4));
    }

    #[tokio::test(start_paused = true)]
    async fn service_that_is_not_served_gets_one_event_of_all_nodes() {
        let (services, pods) = (Directory::default(), Informer::<Pod>::new());
        services.put_service(
            &serde_json::from_value(
                json!({ "metadata": { "namespace": "shop", "name": "web", "uid": "u1" } }),
            )
            .unwrap(),
        );
        let (recorder, mut events) = Recorder::new();
        let (sender, receiver) = watch::channel(vec![skipped("shop/web:sctp"), skipped("shop/gone:sctp")]);
        let telling = tokio::spawn(tell_skipped(receiver, services, pods, recorder.of("node-agent")));
        let event = events.recv().await.unwrap();
        assert_eq!((&*event.reason, event.told_by), ("ServiceNotServed", ToldBy::EveryNode));
        assert_eq!(event.message, "port sctp: its protocol is not served");
        assert_eq!(event.object.uid.as_deref(), Some("u1"));
        sender.send_replace(vec![skipped("shop/web:sctp")]);
        drop(sender);
        telling.await.unwrap();
        drop(recorder);
        assert!(events.recv().await.is_none(), "the same is not told twice");
    }

    #[test]
    fn every_drop_that_users_can_act_on_has_a_meaning() {
        let path = std::path::Path::new("/nonexistent");
        assert!(Datapath::open(path).is_err());
        for counter in ["drop_no_source_port", "drop_flow_table_full", "socket_peers_full"] {
            assert!(meaning(counter).is_some(), "{counter}");
        }
        assert!(meaning("packet_forwarded").is_none());
    }
}
