//! Addresses for Services of `type: LoadBalancer`, from a pool of the cluster's own.
//!
//! Each gets one address of each of its families in `status.loadBalancer.ingress` (`ipMode: VIP`); the nodes serve it,
//! and one of them answers for it on the network. `spec.loadBalancerIP` is honoured where it is free. Services with a
//! `loadBalancerClass` are another implementation's.
//!
//! What is given is in the API alone: an address is taken while some Service's status has it. One worker gives them
//! out, and remembers its own writes until the cache shows them. Should two Services ever have one address (two control
//! planes that gave it at the same moment), the younger one gets another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use hawser_api::{AddressRange, Api, Error, resource::ObjectKey};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service, ServiceStatus};
use parking_lot::Mutex;
use tracing::info;

use crate::{
    Context, Starts,
    events::Recorder,
    meta::MetaExt,
    queue::Queue,
    worker::{Next, Reconciler},
};

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("service-lb") || starts.context.config.load_balancer_ranges.is_empty() {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let state: Arc<State> = Arc::default();
    let (changed, shared) = (queue.clone(), state.clone());
    context.caches.services.on_change(move |change| {
        changed.add(change.key.clone());
        let held = |service: Option<&Arc<Service>>| service.map(|it| addresses(it)).unwrap_or_default();
        let (before, after) = (held(change.old), held(change.new));
        if before.iter().any(|address| !after.contains(address)) {
            // Those that wait take what became free.
            shared.waiting.lock().iter().for_each(|key| changed.add(key.clone()));
        }
    });
    let recorder = context.recorder.of("service-lb-controller");
    // One worker: two would give the same address at the same moment.
    starts.add(Controller { context, state, recorder }, queue, 1);
}

#[derive(Default)]
struct State {
    /// Services that found no address; bounded by the cluster's Services.
    waiting: Mutex<BTreeSet<ObjectKey>>,
    /// Written by this controller, by address; what the cache shows by now is removed at the next look.
    written: Mutex<BTreeMap<IpAddr, ObjectKey>>,
}

struct Controller {
    context: Arc<Context>,
    state: Arc<State>,
    recorder: Recorder,
}

/// What a Service should have.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    addresses: Vec<IpAddr>,
    /// Why it does not have more.
    lacks: Option<String>,
}

/// An address that came free while a Service was looked at, or that was only reserved, wakes nobody.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "service-lb";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        self.state.waiting.lock().remove(key);
        let Some(service) = self.context.caches.services.get(key) else {
            self.state.written.lock().retain(|_, owner| owner != key);
            return Ok(Next::Done);
        };
        if service.is_deleting() || has_class(&service) {
            return Ok(Next::Done);
        }
        let plan = if is_balanced(&service) { self.plan(key, &service) } else { Plan::default() };
        let has = addresses(&service);
        if has != plan.addresses {
            // Before the write: whatever becomes of its answer, nobody else gets them.
            self.reserve(key, &plan.addresses);
            self.write(key, &service, &plan.addresses).await?;
            let shown: Vec<String> = plan.addresses.iter().map(ToString::to_string).collect();
            if !shown.is_empty() {
                info!(service = %key, addresses = ?shown, "load balancer addresses");
                self.recorder.normal(&*service, "IPAllocated", format!("Assigned IP {}", shown.join(", ")));
            }
        }
        // What an earlier attempt wanted and this one does not is free again.
        self.keep_reserved(key, &plan.addresses);
        if let Some(lacks) = plan.lacks {
            self.recorder.warning(
                &*service,
                "AllocationFailed",
                format!("Failed to allocate an IP: {lacks}"),
            );
            self.state.waiting.lock().insert(key.clone());
            return Ok(Next::After(LOOK_AGAIN));
        }
        Ok(Next::Done)
    }
}

impl Controller {
    fn plan(&self, key: &ObjectKey, service: &Service) -> Plan {
        let owners = self.owners();
        let yields = |address: IpAddr| {
            owners.get(&address).is_some_and(|owners| {
                owners.iter().any(|other| other != key && is_before(self.service(other).as_deref(), service))
            })
        };
        let is_taken = |address: IpAddr| {
            owners.get(&address).is_some_and(|owners| owners.iter().any(|other| other != key))
        };
        plan(&self.context.config.load_balancer_ranges, service, &is_taken, &yields)
    }

    fn reserve(&self, key: &ObjectKey, addresses: &[IpAddr]) {
        let mut written = self.state.written.lock();
        for address in addresses {
            written.insert(*address, key.clone());
        }
    }

    fn keep_reserved(&self, key: &ObjectKey, addresses: &[IpAddr]) {
        self.state.written.lock().retain(|address, owner| owner != key || addresses.contains(address));
    }

    fn service(&self, key: &ObjectKey) -> Option<Arc<Service>> {
        self.context.caches.services.get(key)
    }

    /// Who has each address: by the cache, and by what was written and the cache does not show yet.
    fn owners(&self) -> BTreeMap<IpAddr, BTreeSet<ObjectKey>> {
        let services = self.context.caches.services.filter(|service| !addresses(service).is_empty());
        let mut owners: BTreeMap<IpAddr, BTreeSet<ObjectKey>> = BTreeMap::new();
        for service in &services {
            for address in addresses(service) {
                owners.entry(address).or_default().insert(ObjectKey::of(&**service));
            }
        }
        let mut written = self.state.written.lock();
        written.retain(|address, owner| {
            let is_shown = owners.get(address).is_some_and(|owners| owners.contains(owner));
            !is_shown && self.context.caches.services.get(owner).is_some()
        });
        for (address, owner) in &*written {
            owners.entry(*address).or_default().insert(owner.clone());
        }
        owners
    }

    async fn write(&self, key: &ObjectKey, service: &Service, wanted: &[IpAddr]) -> Result<(), Error> {
        let ingress = wanted.iter().map(|address| LoadBalancerIngress {
            ip: Some(address.to_string()),
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        });
        let ingress: Vec<_> = ingress.collect();
        let status = ServiceStatus {
            conditions: service.status.as_ref().and_then(|status| status.conditions.clone()),
            load_balancer: Some(LoadBalancerStatus {
                ingress: Some(ingress).filter(|ingress| !ingress.is_empty()),
            }),
        };
        let changed = Service { status: Some(status), ..service.clone() };
        let api: Api<Service> = Api::namespaced(self.context.client.clone(), &key.namespace);
        // Its resource version guards against a type that has changed meanwhile.
        match api.update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

/// Chooses addresses: those it has stay where nothing speaks against them.
///
/// `is_taken` tells whether another Service has an address, `yields` whether this one has to give it up for another.
fn plan(
    pool: &[AddressRange],
    service: &Service,
    is_taken: &dyn Fn(IpAddr) -> bool,
    yields: &dyn Fn(IpAddr) -> bool,
) -> Plan {
    let has = addresses(service);
    let asked = asked_for(service);
    let mut plan = Plan::default();
    for is_v4 in families(service) {
        let ranges: Vec<&AddressRange> = pool.iter().filter(|range| range.is_v4() == is_v4).collect();
        let is_of_pool = |address: &IpAddr| ranges.iter().any(|range| range.contains(*address));
        if let Some(asked) = asked.filter(|asked| asked.is_ipv4() == is_v4) {
            if !is_of_pool(&asked) {
                plan.lacks = Some(format!("{asked} is not in the pool"));
            } else if is_taken(asked) && (!has.contains(&asked) || yields(asked)) {
                plan.lacks = Some(format!("{asked} is used by another service"));
            } else {
                plan.addresses.push(asked);
            }
            continue;
        }
        let kept = has.iter().find(|address| is_of_pool(address) && !yields(**address)).copied();
        let free = || ranges.iter().flat_map(|range| range.iter()).find(|address| !is_taken(*address));
        match kept.or_else(free) {
            Some(address) => plan.addresses.push(address),
            // A second family is a bonus where the pool has none of it.
            None if ranges.is_empty() && families(service).len() > 1 => {}
            None => {
                let family = if is_v4 { "IPv4" } else { "IPv6" };
                plan.lacks = Some(format!("no {family} address of the pool is free"));
            }
        }
    }
    plan
}

/// True where `other` has an older claim than `service`: created before it, or, at the same second, by its uid.
fn is_before(other: Option<&Service>, service: &Service) -> bool {
    other.is_some_and(|other| (other.created(), other.uid()) < (service.created(), service.uid()))
}

fn is_balanced(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer")
}

fn has_class(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.load_balancer_class.is_some())
}

/// True for IPv4.
fn families(service: &Service) -> Vec<bool> {
    let named = service.spec.iter().flat_map(|spec| spec.ip_families.iter().flatten());
    let families: Vec<bool> = named.map(|family| family == "IPv4").collect();
    if families.is_empty() { vec![true] } else { families }
}

fn asked_for(service: &Service) -> Option<IpAddr> {
    service.spec.as_ref()?.load_balancer_ip.as_deref()?.parse().ok()
}

/// The addresses in its status.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use hawser_api::client::DeleteOptions;
    use k8s_openapi::api::core::v1::Event;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        Config,
        testing::{FakeApi, Fault, Running, ensure},
    };

    fn config(ranges: &[&str]) -> Config {
        Config {
            controllers: vec!["service-lb".to_owned()],
            load_balancer_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..Config::default()
        }
    }

    fn service(name: &str, spec: Value) -> Value {
        let mut service = json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{ "port": 80 }] },
        });
        for (field, value) in spec.as_object().unwrap() {
            service["spec"][field] = value.clone();
        }
        service
    }

    fn has(api: &FakeApi, name: &str) -> Vec<String> {
        let service: Option<Service> = api.read("default", name);
        service.map(|it| addresses(&it).iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    fn told(api: &FakeApi, reason: &str, word: &str) -> bool {
        api.all::<Event>().iter().any(|event| {
            event.reason.as_deref() == Some(reason) && event.message.iter().any(|text| text.contains(word))
        })
    }

    /// After every write: no address twice.
    fn check_no_doubles(api: &FakeApi) {
        api.check_writes(|objects| {
            let services = objects.iter().filter(|(key, _)| key.0 == "services").map(|(_, object)| object);
            let given: Vec<&Value> = services
                .flat_map(|it| it["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten())
                .map(|ingress| &ingress["ip"])
                .collect();
            let mut seen = BTreeSet::new();
            ensure(given.iter().all(|ip| seen.insert(ip.to_string())), format!("{given:?}"))
        });
    }

    #[tokio::test(start_paused = true)]
    async fn services_get_addresses_of_their_families_and_no_two_the_same() {
        let api = FakeApi::new();
        check_no_doubles(&api);
        let _running = Running::start_with(&api, config(&["10.0.0.10-10.0.0.13", "fd00::10-fd00::20"]));
        for number in 0..3 {
            api.put::<Service>(service(&format!("s{number}"), json!({})));
        }
        api.put::<Service>(service("dual", json!({ "ipFamilies": ["IPv4", "IPv6"] })));
        api.put::<Service>(service("foreign", json!({ "loadBalancerClass": "example.com/lb" })));
        api.put::<Service>(service("inside", json!({ "type": "ClusterIP" })));
        api.until("all have theirs", |api| {
            (0..3).all(|number| has(api, &format!("s{number}")).len() == 1) && has(api, "dual").len() == 2
        })
        .await;
        assert!(has(&api, "dual").iter().any(|address| address.starts_with("fd00::")));
        assert!(has(&api, "foreign").is_empty() && has(&api, "inside").is_empty());
        let dual: Service = api.read("default", "dual").unwrap();
        let ingress = dual.status.unwrap().load_balancer.unwrap().ingress.unwrap();
        assert!(ingress.iter().all(|it| it.ip_mode.as_deref() == Some("VIP")), "{ingress:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn empty_pool_is_told_and_a_released_address_goes_to_who_waits() {
        let api = FakeApi::new();
        check_no_doubles(&api);
        let _running = Running::start_with(&api, config(&["10.0.0.10"]));
        api.put::<Service>(service("first", json!({})));
        api.until("the first has it", |api| has(api, "first") == ["10.0.0.10"]).await;
        api.put::<Service>(service("second", json!({})));
        api.until("the second is told", |api| told(api, "AllocationFailed", "no IPv4 address")).await;
        assert!(has(&api, "second").is_empty());
        api.remove::<Service>("default", "first", &DeleteOptions::default());
        api.until("the second has it", |api| has(api, "second") == ["10.0.0.10"]).await;
        api.put::<Service>(service("third", json!({})));
        api.until("the third waits", |api| {
            api.all::<Event>().iter().any(|event| event.involved_object.name.as_deref() == Some("third"))
        })
        .await;
        api.patch::<Service>("default", "second", json!({ "spec": { "type": "ClusterIP" } }));
        api.until("the third has it", |api| has(api, "third") == ["10.0.0.10"]).await;
        assert!(has(&api, "second").is_empty(), "a cluster IP service gives its address back");
    }

    #[tokio::test(start_paused = true)]
    async fn wanted_address_is_given_when_free_and_refused_when_not() {
        let api = FakeApi::new();
        check_no_doubles(&api);
        let _running = Running::start_with(&api, config(&["10.0.0.10-10.0.0.20"]));
        api.put::<Service>(service("one", json!({ "loadBalancerIP": "10.0.0.15" })));
        api.until("it has what it wants", |api| has(api, "one") == ["10.0.0.15"]).await;
        api.put::<Service>(service("two", json!({ "loadBalancerIP": "10.0.0.15" })));
        api.until("taken", |api| told(api, "AllocationFailed", "10.0.0.15 is used")).await;
        api.put::<Service>(service("three", json!({ "loadBalancerIP": "192.0.2.1" })));
        api.until("not of the pool", |api| told(api, "AllocationFailed", "192.0.2.1 is not in the pool"))
            .await;
        assert!(has(&api, "two").is_empty() && has(&api, "three").is_empty());
        api.patch::<Service>("default", "one", json!({ "spec": { "loadBalancerIP": "10.0.0.16" } }));
        api.until("both have theirs", |api| {
            has(api, "one") == ["10.0.0.16"] && has(api, "two") == ["10.0.0.15"]
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn controller_killed_between_writes_doubles_and_moves_nothing() {
        let api = FakeApi::new();
        check_no_doubles(&api);
        let mut count = 0;
        // Every third write takes effect without an answer, every fifth fails.
        api.fault(move |_, target| {
            count += 1;
            match target.resource.resource.as_ref() {
                "services" if count % 3 == 0 => Fault::AnswerLost,
                "services" if count % 5 == 0 => Fault::Fails,
                _ => Fault::None,
            }
        });
        let names: Vec<String> = (0..20).map(|number| format!("s{number}")).collect();
        let mut before: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for round in 0..4 {
            let running = Running::start_with(&api, config(&["10.0.0.0/27"]));
            let fresh = &names[..(round + 1) * 5];
            for name in &fresh[round * 5..] {
                api.put::<Service>(service(name, json!({})));
            }
            let wanted = fresh.len() - if round < 3 { 2 } else { 0 };
            api.until("most have theirs", |api| {
                fresh.iter().filter(|name| !has(api, name).is_empty()).count() >= wanted
            })
            .await;
            drop(running);
            for (name, addresses) in &before {
                assert_eq!(has(&api, name), *addresses, "{name} keeps its address");
            }
            before = fresh.iter().map(|name| (name.clone(), has(&api, name))).collect();
            before.retain(|_, addresses| !addresses.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_with_one_address_the_younger_gives_way() {
        let api = FakeApi::new();
        for name in ["older", "younger"] {
            api.put::<Service>(service(name, json!({})));
            let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "10.0.0.12" }] } } });
            api.patch_status::<Service>("default", name, status);
        }
        let _running = Running::start_with(&api, config(&["10.0.0.10-10.0.0.20"]));
        api.until("the younger has another", |api| has(api, "younger") == ["10.0.0.10"]).await;
        assert_eq!(has(&api, "older"), ["10.0.0.12"]);
    }
}
