//! From a question to its answer, without I/O.

use std::net::IpAddr;

use hawser_services::{EndpointPort, Key, Protocol};
use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT},
    },
};

use crate::records::{Endpoint, Entry, Records};

/// Version of the specification that is served, as `dns-version.<zone>` says.
const SCHEMA_VERSION: &str = "1.1.0";

#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    /// Ours. Without answers the zone's SOA tells how long that may be remembered.
    Local { code: ResponseCode, answers: Vec<Record>, additionals: Vec<Record>, soa: Option<Box<Record>> },
    /// Not ours: a resolver outside knows.
    Forward,
}

/// What a name stands for.
enum Found<'a> {
    /// The name exists, but has no records of its own.
    Nothing,
    Addresses(Vec<IpAddr>),
    Alias(&'a str),
    Services(Vec<Target>),
    Text(&'static str),
}

/// One SRV record, and the addresses of its target.
struct Target {
    labels: Vec<String>,
    port: u16,
    ips: Vec<IpAddr>,
}

/// Answers one question about the zone, or says that it is none.
pub(crate) fn answer(records: &Records, zone: &Name, ttl: u32, query: &Query) -> Answer {
    let name = query.name().to_lowercase();
    if !zone.zone_of(&name) {
        return reverse(records, zone, ttl, query);
    }
    let depth = name.iter().len() - zone.iter().len();
    let labels: Vec<String> =
        name.iter().take(depth).map(|label| String::from_utf8_lossy(label).into_owned()).collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match find(records, &labels) {
        Some(found) => present(found, zone, ttl, query),
        None => empty(ResponseCode::NXDomain, zone, ttl),
    }
}

fn find<'a>(records: &'a Records, labels: &[&str]) -> Option<Found<'a>> {
    match labels {
        [] | ["svc"] | ["pod"] => Some(Found::Nothing),
        ["dns-version"] => Some(Found::Text(SCHEMA_VERSION)),
        [namespace, "svc" | "pod"] => records.has_namespace(namespace).then_some(Found::Nothing),
        [dashed, namespace, "pod"] => {
            let ip = parse_dashed(dashed)?;
            records.has_namespace(namespace).then(|| Found::Addresses(vec![ip]))
        }
        [service, namespace, "svc"] => Some(match entry(records, service, namespace)? {
            Entry::Addressed(service) => Found::Addresses(service.cluster_ips.to_vec()),
            Entry::Headless { endpoints } => {
                // A service without endpoints has no such name (specification 2.4.1).
                (!endpoints.is_empty()).then(|| Found::Addresses(unique(endpoints.iter())))?
            }
            Entry::External { target } => Found::Alias(target),
        }),
        [label, service, namespace, "svc"] if !label.starts_with('_') => {
            let Entry::Headless { endpoints } = entry(records, service, namespace)? else { return None };
            let ips = unique(endpoints.iter().filter(|endpoint| *endpoint.label == **label));
            (!ips.is_empty()).then_some(Found::Addresses(ips))
        }
        [port, protocol, service, namespace, "svc"] => {
            let (port, protocol) = (port.strip_prefix('_')?, protocol.strip_prefix('_')?);
            let is_asked = |name: &str, number: u16, known: Protocol| {
                name == port && number != 0 && known.as_str().eq_ignore_ascii_case(protocol)
            };
            let path = [*service, *namespace, "svc"].map(str::to_owned);
            let targets: Vec<Target> = match entry(records, service, namespace)? {
                Entry::Addressed(service) => service
                    .ports
                    .iter()
                    .filter(|known| is_asked(&known.name, known.port, known.protocol))
                    .map(|known| Target {
                        labels: path.to_vec(),
                        port: known.port,
                        ips: service.cluster_ips.to_vec(),
                    })
                    .collect(),
                Entry::Headless { endpoints } => endpoints
                    .iter()
                    .flat_map(|endpoint| {
                        endpoint_targets(endpoint, &path, |known| {
                            is_asked(&known.name, known.port, known.protocol)
                        })
                    })
                    .collect(),
                Entry::External { .. } => return None,
            };
            (!targets.is_empty()).then_some(Found::Services(targets))
        }
        _ => None,
    }
}

fn entry<'a>(records: &'a Records, service: &str, namespace: &str) -> Option<&'a Entry> {
    records.get(&Key::new(namespace, service))
}

fn endpoint_targets(
    endpoint: &Endpoint,
    path: &[String; 3],
    is_asked: impl Fn(&&EndpointPort) -> bool,
) -> Vec<Target> {
    let labels: Vec<String> =
        std::iter::once(endpoint.label.to_string()).chain(path.iter().cloned()).collect();
    let ports = endpoint.ports().iter().filter(is_asked);
    ports.map(|known| Target { labels: labels.clone(), port: known.port, ips: vec![endpoint.ip] }).collect()
}

fn unique<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = endpoints.map(|endpoint| endpoint.ip).collect();
    ips.sort();
    ips.dedup();
    ips
}

/// Back from the form of pods' names: three dashes are IPv4, others IPv6.
fn parse_dashed(text: &str) -> Option<IpAddr> {
    let v4 = text.replace('-', ".").parse::<std::net::Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| text.replace('-', ":").parse::<std::net::Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// Addresses of the cluster have names here; what is not known here may be known outside.
fn reverse(records: &Records, zone: &Name, ttl: u32, query: &Query) -> Answer {
    let Ok(network) = query.name().parse_arpa_name() else { return Answer::Forward };
    let names: Vec<Record> = records
        .names_of(&network.addr())
        .iter()
        .filter_map(|(key, label)| {
            let labels = label.iter().chain([&key.name, &key.namespace]).map(ToString::to_string);
            let labels = labels.chain(["svc".to_owned()]);
            let target = under(zone, labels)?;
            Some(Record::from_rdata(query.name().clone(), ttl, RData::PTR(PTR(target))))
        })
        .collect();
    if names.is_empty() {
        return Answer::Forward;
    }
    if !matches!(query.query_type(), RecordType::PTR) {
        return empty(ResponseCode::NoError, zone, ttl);
    }
    Answer::Local { code: ResponseCode::NoError, answers: names, additionals: Vec::new(), soa: None }
}

/// The records of the type asked for.
fn present(found: Found<'_>, zone: &Name, ttl: u32, query: &Query) -> Answer {
    let name = || query.name().clone();
    let (mut answers, mut additionals) = (Vec::new(), Vec::new());
    match (found, query.query_type()) {
        (Found::Addresses(ips), wanted) => {
            answers.extend(ips.iter().filter_map(|ip| address(name(), ttl, ip, Some(wanted))));
        }
        (Found::Alias(target), _) => {
            if let Ok(mut target) = Name::from_ascii(target) {
                target.set_fqdn(true);
                answers.push(Record::from_rdata(name(), ttl, RData::CNAME(CNAME(target))));
            }
        }
        (Found::Services(targets), RecordType::SRV) => {
            // All are alike: priority 0, and weights that share 100 among them.
            let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(1).max(1);
            for target in targets {
                let Some(host) = under(zone, target.labels) else { continue };
                additionals.extend(target.ips.iter().filter_map(|ip| address(host.clone(), ttl, ip, None)));
                let record = SRV::new(0, weight, target.port, host);
                answers.push(Record::from_rdata(name(), ttl, RData::SRV(record)));
            }
        }
        (Found::Text(text), RecordType::TXT) => {
            answers.push(Record::from_rdata(name(), ttl, RData::TXT(TXT::new(vec![text.to_owned()]))));
        }
        (Found::Nothing | Found::Services(_) | Found::Text(_), _) => {}
    }
    if answers.is_empty() {
        return empty(ResponseCode::NoError, zone, ttl);
    }
    additionals.dedup();
    Answer::Local { code: ResponseCode::NoError, answers, additionals, soa: None }
}

/// A or AAAA; `None` where another type is wanted.
fn address(name: Name, ttl: u32, ip: &IpAddr, wanted: Option<RecordType>) -> Option<Record> {
    let (kind, data) = match ip {
        IpAddr::V4(v4) => (RecordType::A, RData::A(A(*v4))),
        IpAddr::V6(v6) => (RecordType::AAAA, RData::AAAA(AAAA(*v6))),
    };
    let is_wanted = wanted.is_none_or(|wanted| wanted == kind);
    is_wanted.then(|| Record::from_rdata(name, ttl, data))
}

fn empty(code: ResponseCode, zone: &Name, ttl: u32) -> Answer {
    let host = |label: &str| zone.prepend_label(label).unwrap_or_else(|_| zone.clone());
    // The serial never changes: there are no zone transfers. The last number bounds negative caching (RFC 2308).
    let soa = SOA::new(host("ns"), host("hostmaster"), 1, 7200, 1800, 86400, ttl);
    let soa = Record::from_rdata(zone.clone(), ttl, RData::SOA(soa));
    Answer::Local { code, answers: Vec::new(), additionals: Vec::new(), soa: Some(Box::new(soa)) }
}

/// `None` for labels that make no name: too long, or too many.
fn under(zone: &Name, labels: impl IntoIterator<Item = String>) -> Option<Name> {
    let labels: Vec<String> = labels.into_iter().collect();
    let mut name = zone.clone();
    for label in labels.iter().rev() {
        name = name.prepend_label(label.as_str()).ok()?;
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hawser_services::{EndpointSlice, Service};
    use k8s_openapi::api;

    use super::*;
    use crate::records::dashed;

    fn service(spec: &str) -> Arc<Service> {
        let text =
            format!("{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{}},\"spec\":{spec}}}");
        Arc::new(Service::from(&serde::<api::core::v1::Service>(&text)))
    }

    fn serde<T: k8s_openapi::serde::de::DeserializeOwned>(json: &str) -> T {
        serde_json::from_str(json).expect("a valid object")
    }

    fn records() -> Records {
        let slice: api::discovery::v1::EndpointSlice = serde(
            r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice",
                "metadata":{"labels":{"kubernetes.io/service-name":"any"}},"addressType":"IPv4",
                "ports":[{"name":"http","protocol":"TCP","port":8080}],
                "endpoints":[
                  {"addresses":["10.1.0.2"],"hostname":"db-0","conditions":{"ready":true}},
                  {"addresses":["10.1.0.3"],"conditions":{"ready":true}},
                  {"addresses":["10.1.0.4"],"hostname":"db-2","conditions":{"ready":false}}]}"#,
        );
        let slices = [Arc::new(EndpointSlice::of(&slice).unwrap())];
        let mut records = Records::default();
        let mut set = |name: &str, spec: &str| {
            records.set(&Key::new("shop", name), Entry::of(service(spec), &slices));
        };
        set(
            "web",
            r#"{"clusterIP":"10.96.0.7","clusterIPs":["10.96.0.7","fd00::7"],"ports":[{"name":"http","port":80}]}"#,
        );
        set("db", r#"{"clusterIP":"None"}"#);
        set("all", r#"{"clusterIP":"None","publishNotReadyAddresses":true}"#);
        set("out", r#"{"type":"ExternalName","externalName":"example.com"}"#);
        records
    }

    #[track_caller]
    fn check(name: &str, kind: RecordType, expected: &[&str]) {
        let query = Query::query(Name::from_ascii(name).unwrap(), kind);
        let zone = Name::from_ascii("cluster.local.").unwrap();
        let shown = match answer(&records(), &zone, 5, &query) {
            Answer::Forward => vec!["forward".to_owned()],
            Answer::Local { code, answers, soa, .. } if answers.is_empty() => {
                assert!(soa.is_some(), "an empty answer carries the SOA");
                vec![format!("{code:?}")]
            }
            Answer::Local { answers, .. } => answers.iter().map(|record| record.data.to_string()).collect(),
        };
        assert_eq!(shown, expected, "{name} {kind}");
    }

    #[test]
    fn services_have_addresses_of_the_family_asked_for() {
        check("web.shop.svc.cluster.local.", RecordType::A, &["10.96.0.7"]);
        check("WEB.Shop.svc.CLUSTER.local.", RecordType::A, &["10.96.0.7"]);
        check("web.shop.svc.cluster.local.", RecordType::AAAA, &["fd00::7"]);
        check("web.shop.svc.cluster.local.", RecordType::MX, &["NoError"]);
        check("none.shop.svc.cluster.local.", RecordType::A, &["NXDomain"]);
        check("web.other.svc.cluster.local.", RecordType::A, &["NXDomain"]);
        check("out.shop.svc.cluster.local.", RecordType::A, &["example.com."]);
    }

    #[test]
    fn headless_services_stand_for_their_ready_endpoints() {
        check("db.shop.svc.cluster.local.", RecordType::A, &["10.1.0.2", "10.1.0.3"]);
        check("db-0.db.shop.svc.cluster.local.", RecordType::A, &["10.1.0.2"]);
        check("10-1-0-3.db.shop.svc.cluster.local.", RecordType::A, &["10.1.0.3"]);
        check("db-2.db.shop.svc.cluster.local.", RecordType::A, &["NXDomain"]);
        check("db-2.all.shop.svc.cluster.local.", RecordType::A, &["10.1.0.4"]);
    }

    #[test]
    fn ports_are_found_by_name() {
        check(
            "_http._tcp.web.shop.svc.cluster.local.",
            RecordType::SRV,
            &["0 100 80 web.shop.svc.cluster.local."],
        );
        check(
            "_http._tcp.db.shop.svc.cluster.local.",
            RecordType::SRV,
            &["0 50 8080 db-0.db.shop.svc.cluster.local.", "0 50 8080 10-1-0-3.db.shop.svc.cluster.local."],
        );
        check("_dns._udp.web.shop.svc.cluster.local.", RecordType::SRV, &["NXDomain"]);
    }

    #[test]
    fn pods_and_the_zone_itself_answer() {
        check("10-1-0-2.shop.pod.cluster.local.", RecordType::A, &["10.1.0.2"]);
        check("nonsense.shop.pod.cluster.local.", RecordType::A, &["NXDomain"]);
        check("dns-version.cluster.local.", RecordType::TXT, &["1.1.0"]);
        check("shop.svc.cluster.local.", RecordType::A, &["NoError"]);
        check("cluster.local.", RecordType::A, &["NoError"]);
    }

    #[test]
    fn addresses_have_names_and_other_names_are_forwarded() {
        check("7.0.96.10.in-addr.arpa.", RecordType::PTR, &["web.shop.svc.cluster.local."]);
        check(
            "2.0.1.10.in-addr.arpa.",
            RecordType::PTR,
            &["db-0.all.shop.svc.cluster.local.", "db-0.db.shop.svc.cluster.local."],
        );
        check("1.1.1.1.in-addr.arpa.", RecordType::PTR, &["forward"]);
        check("example.com.", RecordType::A, &["forward"]);
        check("evilcluster.local.", RecordType::A, &["forward"]);
    }

    #[test]
    fn service_that_goes_takes_its_names_along() {
        let mut records = records();
        for name in ["web", "db", "all", "out"] {
            records.set(&Key::new("shop", name), None);
        }
        assert!(!records.has_namespace("shop"));
        assert_eq!(records.names_of(&"10.1.0.2".parse().unwrap()).len(), 0);
    }

    #[test]
    fn dashed_addresses_are_read_back() {
        for text in ["10.1.2.3", "fd00::1:2"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(parse_dashed(&dashed(&ip)), Some(ip));
        }
    }
}
