//! Endpoints: the older form of a Service's endpoints, one object per Service, for clients that still read it.
//!
//! Holds the first address family only and at most 1,000 addresses; beyond that it is cut, ready addresses
//! first, and says so in an annotation, as upstream does. Endpoints without owner references, so what belongs
//! to a Service that is gone is deleted here.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    Context, Starts,
    endpointslice::{
        TRIGGER_TIME,
        endpoint::{
            address_of, address_types, hostname, protocol_of, publishes_not_ready, reference_to,
            resolved_ports,
        },
        is_served, pods_of, trigger_time, wake_by_pods,
    },
    meta::{MetaExt, only_this, pod_is_ready, pod_is_terminal, pod_node},
    pods::namespace_is_ending,
    queue::Queue,
    selector::Labels,
    worker::{Next, Reconciler},
};

const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("endpoints") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.services.on_change(move |change| changed.add(change.key.clone()));
    let changed = queue.clone();
    context.caches.endpoints.on_change(move |change| changed.add(change.key.clone()));
    wake_by_pods(&context, &queue);
    let workers = context.config.workers;
    starts.add(Controller { context }, queue, workers);
}

struct Controller {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "endpoints";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let caches = &self.context.caches;
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let existing = caches.endpoints.get(key);
        let Some(service) = caches.services.get(key) else {
            // Only what was made here: some write Endpoints for names that no Service has.
            if let Some(left) =
                existing.filter(|it| it.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER))
            {
                api.delete(&key.name, &only_this(&*left)).await?;
            }
            return Ok(Next::Done);
        };
        if !is_served(&service) {
            return Ok(Next::Done);
        }
        let pods = pods_of(&self.context, &service);
        let wanted = desired(&service, &pods, existing.as_deref());
        match existing {
            Some(existing) if same(&existing, &wanted) => {}
            Some(_) => drop(api.update(&wanted).await?),
            None => match api.create(&wanted).await {
                Err(error) if !namespace_is_ending(&error) => return Err(error),
                _ => {}
            },
        }
        Ok(Next::Done)
    }
}

/// Equal but for the trigger time, which alone is no reason to write.
fn same(existing: &Endpoints, wanted: &Endpoints) -> bool {
    let annotations = |endpoints: &Endpoints| {
        let mut annotations = endpoints.annotations().clone();
        annotations.remove(TRIGGER_TIME);
        annotations
    };
    existing.subsets.as_deref().unwrap_or_default() == wanted.subsets.as_deref().unwrap_or_default()
        && existing.labels() == wanted.labels()
        && annotations(existing) == annotations(wanted)
}

fn desired(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Endpoints {
    let mut subsets = subsets(service, pods);
    let is_cut = cut(&mut subsets, MAX_ADDRESSES);
    let mut metadata = match existing {
        Some(existing) => existing.metadata.clone(),
        None => ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
    };
    metadata.labels = Some(labels(service));
    let annotations = metadata.annotations.get_or_insert_default();
    if is_cut {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    match trigger_time(service, pods) {
        Some(time) => annotations.insert(TRIGGER_TIME.to_owned(), time.to_string()),
        None => annotations.remove(TRIGGER_TIME),
    };
    Endpoints { metadata, subsets: Some(subsets).filter(|subsets| !subsets.is_empty()) }
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

/// One subset for each set of ports, in a settled order.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let Some(family) = address_types(service).first().copied() else { return Vec::new() };
    let mut by_ports: BTreeMap<Vec<PortKey>, EndpointSubset> = BTreeMap::new();
    // Peers that find each other by names that are published early keep them until they have ended.
    let is_in =
        |pod: &&Arc<Pod>| !pod_is_terminal(pod) && (publishes_not_ready(service) || !pod.is_deleting());
    for pod in pods.iter().filter(is_in) {
        let Some(address) = address_of(pod, family) else { continue };
        let ports = ports(service, pod);
        let has_ports =
            service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).is_some_and(|it| !it.is_empty());
        if ports.is_empty() && has_ports {
            // None of the named ports is in this pod.
            continue;
        }
        let subset = by_ports.entry(ports.iter().map(port_key).collect()).or_default();
        subset.ports = Some(ports).filter(|ports| !ports.is_empty());
        let entry = EndpointAddress {
            ip: address.to_owned(),
            hostname: hostname(service, pod),
            node_name: pod_node(pod).map(str::to_owned),
            target_ref: Some(reference_to(pod)),
        };
        let list = if publishes_not_ready(service) || pod_is_ready(pod) {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(entry);
    }
    let mut subsets: Vec<EndpointSubset> = by_ports.into_values().collect();
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses] {
            list.iter_mut().for_each(|list| list.sort_by(|a, b| a.ip.cmp(&b.ip)));
        }
    }
    subsets
}

type PortKey = (Option<String>, Option<String>, i32);

fn port_key(port: &EndpointPort) -> PortKey {
    (port.name.clone(), port.protocol.clone(), port.port)
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let mut ports: Vec<EndpointPort> = resolved_ports(service, pod)
        .map(|(port, number)| EndpointPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: number,
            protocol: Some(protocol_of(port).to_owned()),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    ports.sort_by_key(port_key);
    ports
}

/// Keeps `max` addresses in all, ready ones first; true where some had to go.
fn cut(subsets: &mut Vec<EndpointSubset>, max: usize) -> bool {
    let mut room = max;
    let mut is_cut = false;
    let mut shorten = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            is_cut |= addresses.len() > room;
            addresses.truncate(room);
            room -= addresses.len();
        }
        if list.as_ref().is_some_and(Vec::is_empty) {
            *list = None;
        }
    };
    subsets.iter_mut().for_each(|subset| shorten(&mut subset.addresses));
    subsets.iter_mut().for_each(|subset| shorten(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    is_cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpointslice::test_objects::{pod, service};

    fn unready(mut pod: Pod) -> Pod {
        pod.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "False".into();
        pod
    }

    #[test]
    fn pods_are_sorted_into_ready_and_not_ready() {
        let pods = [pod("a", "10.0.0.2", 80), pod("b", "10.0.0.1", 80), unready(pod("c", "10.0.0.3", 80))];
        let endpoints = desired(&service("web", "http"), &pods.map(Arc::new), None);
        let [subset] = endpoints.subsets.as_deref().unwrap() else { panic!("one subset") };
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter().flatten().map(|address| address.ip.clone()).collect::<Vec<_>>()
        };
        assert_eq!(ips(&subset.addresses), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips(&subset.not_ready_addresses), ["10.0.0.3"]);
        assert_eq!(subset.ports.as_ref().unwrap()[0].port, 80);
    }

    #[test]
    fn ending_pods_are_left_out_unless_their_addresses_are_published_early() {
        let mut ending = pod("a", "10.0.0.1", 80);
        ending.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        let pods = [Arc::new(ending)];
        let mut service = service("web", "http");
        assert_eq!(desired(&service, &pods, None).subsets, None);
        service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        let subsets = desired(&service, &pods, None).subsets.unwrap();
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
    }

    #[test]
    fn too_many_addresses_are_cut_and_said_so() {
        let pods: Vec<Arc<Pod>> = (0..1001)
            .map(|n| {
                let pod = pod(&n.to_string(), &format!("10.0.{}.{}", n / 200, n % 200), 80);
                Arc::new(if n == 0 { unready(pod) } else { pod })
            })
            .collect();
        let endpoints = desired(&service("web", "http"), &pods, None);
        let subset = &endpoints.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap().len(), 1000);
        assert_eq!(subset.not_ready_addresses, None);
        assert_eq!(endpoints.annotations()[OVER_CAPACITY], "truncated");
    }

    #[test]
    fn later_trigger_time_alone_is_no_change() {
        let service = service("web", "http");
        let first = desired(&service, &[Arc::new(pod("a", "10.0.0.1", 80))], None);
        let mut later = first.clone();
        later.metadata.annotations.as_mut().unwrap().insert(TRIGGER_TIME.into(), "later".into());
        assert!(same(&first, &later));
    }
}
