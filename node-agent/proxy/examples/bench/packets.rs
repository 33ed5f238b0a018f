//! `bench xdp`: nanoseconds per packet of the programs that packets from outside meet.
//!
//! Programs run over packets of 1, 1,024 and 32,768 flows by BPF_PROG_TEST_RUN, under the wrapper of `restore`, whose
//! own cost is measured beside each and subtracted. That a program did what its case says is shown by its verdict and
//! by the counters, which must have moved with the packets.

use std::{net::IpAddr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use hawser_proxy::{Config, Proxy, Xdp};
use hawser_services::{EndpointSlice, Service};
use k8s_openapi::api;
use serde_json::{from_value, json};

use crate::{
    lab::{Cluster, Machine, Place},
    measure::{Spread, Watchdog},
    report::{Format, Record},
    restore::{Hook, Restorer, Template},
};

const FLOWS: [u32; 3] = [1, 1024, 32_768];
/// Packets of one run. A run is one system call, so its length is bounded by this.
const PACKETS: u32 = 200_000;
/// First packets of one run: fewer than the flow table has room for, and the node source ports.
const NEW_FLOWS: u32 = 20_000;
/// Backends on the other node: flows to one backend are bounded by the node's source ports.
const THERE_BACKENDS: u32 = 16;

const HERE_PORT: u16 = 30080;
const THERE_PORT: u16 = 30090;
const TARGET_PORT: u16 = 8080;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

const PASS: i32 = -1;
const REDIRECT: i32 = 7;
const XDP_PASS: i32 = 2;
const XDP_REDIRECT: i32 = 4;

/// The addresses of one family.
struct Family {
    name: &'static str,
    client: &'static str,
    node: &'static str,
    here: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { name: "v4", client: "10.90.0.2", node: "10.90.0.1", here: "10.91.0.3" },
    Family { name: "v6", client: "fd90::2", node: "fd90::1", here: "fd91::3" },
];

/// What one program does with one kind of packet.
struct Case {
    name: &'static str,
    program: &'static str,
    verdict: i32,
    /// Moves once a packet.
    counter: Option<&'static str>,
    template: fn(&Family, u32) -> Template,
}

/// Flows to a backend here, which the program leaves to the host; and packets that are nobody's.
const HERE: [Case; 3] = [
    Case {
        name: "known",
        program: "from_wire",
        verdict: PASS,
        counter: Some("packet_forwarded"),
        template: |family, flows| from_client(family, HERE_PORT, ACK, flows),
    },
    Case {
        name: "reply",
        program: "to_wire",
        verdict: PASS,
        counter: Some("packet_replied"),
        template: |family, flows| to_client(family, ACK, flows),
    },
    Case {
        name: "miss",
        program: "from_wire",
        verdict: PASS,
        counter: None,
        template: |family, flows| from_client(family, 22, SYN, flows),
    },
];

/// Flows to a backend of another node: they get a source of this node's, and the program sends them on.
const THERE: [Case; 3] = [
    Case {
        name: "known_sent_on",
        program: "from_wire",
        verdict: REDIRECT,
        counter: Some("packet_forwarded"),
        template: |family, flows| from_client(family, THERE_PORT, ACK, flows),
    },
    Case {
        name: "known_sent_on",
        program: AT_XDP,
        verdict: XDP_REDIRECT,
        counter: Some("packet_at_xdp"),
        template: |family, flows| from_client(family, THERE_PORT, ACK, flows),
    },
    Case {
        name: "miss",
        program: AT_XDP,
        verdict: XDP_PASS,
        counter: None,
        template: |family, flows| from_client(family, 22, SYN, flows),
    },
];

const AT_XDP: &str = "from_wire_xdp";

fn hook_of(program: &str) -> Result<Hook> {
    if program != AT_XDP {
        return Ok(Hook::Tc);
    }
    Ok(Hook::Xdp(nix::net::if_::if_nametoindex("up0")?))
}

pub(crate) fn run(machine: &Machine, rounds: usize, format: Format) -> Result<()> {
    let cluster = Cluster::new()?;
    let node = Place { namespace: &cluster.node, cgroup: machine.unserved() };
    let bpffs = machine.bpffs("packets")?;
    let mut config = Config::new(bpffs.clone(), machine.node_cgroup("packets")?, "node-a".to_owned());
    config.uplinks = vec!["up0".to_owned(), "up1".to_owned()];
    config.xdp = Xdp::On;
    config.node_addresses = FAMILIES.iter().map(|family| family.node.parse()).collect::<Result<_, _>>()?;
    // XDP leaves packets to neighbours that the kernel does not know to tc, and so what is for another host.
    cluster.node.ip("link set up0 address 02:00:00:00:00:01\n\
         neigh replace 10.92.0.2 lladdr 02:00:00:00:00:11 dev up1 nud permanent\n\
         neigh replace fd92::2 lladdr 02:00:00:00:00:11 dev up1 nud permanent")?;
    let outcome = node.run(|| {
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &first_cpu()?)?;
        for family in &FAMILIES {
            new_flows(family, &config, rounds, format)?;
        }
        for family in &FAMILIES {
            for flows in FLOWS {
                for (port, cases) in [(HERE_PORT, &HERE[..]), (THERE_PORT, &THERE)] {
                    let proxy = start(&config)?;
                    known_flows(family, &proxy, flows, (port, cases), rounds, format)
                        .with_context(|| format!("{} with {flows} flows", family.name))?;
                    drop(proxy);
                    // Flows of the next run find an empty table.
                    Proxy::remove_all(&config.bpffs_dir)?;
                }
            }
        }
        Ok(())
    });
    Proxy::remove_all(&bpffs)?;
    outcome
}

/// Each packet starts a flow, in a table that was empty at first.
fn new_flows(family: &Family, config: &Config, rounds: usize, format: Format) -> Result<()> {
    let cases = [
        ("new", "from_wire", HERE_PORT),
        ("new_sent_on", "from_wire", THERE_PORT),
        ("new_sent_on", AT_XDP, THERE_PORT),
    ];
    for (name, program, port) in cases {
        let hook = hook_of(program)?;
        let mut costs = Vec::new();
        for _ in 0..rounds {
            Watchdog::pat();
            let proxy = start(config)?;
            let restorer = Restorer::new(hook, from_client(family, port, SYN, 1 << 20))?;
            let alone = restorer.run_nothing(NEW_FLOWS)?;
            let before = counter(&proxy, "packet_new_flow")?;
            let run = restorer.run(proxy.program(program)?, NEW_FLOWS)?;
            let moved = counter(&proxy, "packet_new_flow")? - before;
            ensure!(moved == u64::from(NEW_FLOWS), "{name}: {moved} new flows of {NEW_FLOWS}");
            costs.push(f64::from(run.nanoseconds) - f64::from(alone.nanoseconds));
            drop(proxy);
            Proxy::remove_all(&config.bpffs_dir)?;
        }
        print(name, hook, family, NEW_FLOWS, costs, format);
    }
    Ok(())
}

/// Measures `cases`, whose flows lead to the node's port `port`.
fn known_flows(
    family: &Family,
    proxy: &Proxy,
    flows: u32,
    (port, cases): (u16, &[Case]),
    rounds: usize,
    format: Format,
) -> Result<()> {
    // First packets make the flows; answers, and what answers those, confirm the ones of the backend here.
    Restorer::new(Hook::Tc, from_client(family, port, SYN, flows))?
        .run(proxy.program("from_wire")?, flows)?;
    Restorer::new(Hook::Tc, to_client(family, SYN | ACK, flows))?.run(proxy.program("to_wire")?, flows)?;
    Restorer::new(Hook::Tc, from_client(family, port, ACK, flows))?
        .run(proxy.program("from_wire")?, flows)?;
    let restorers = cases
        .iter()
        .map(|case| Restorer::new(hook_of(case.program)?, (case.template)(family, flows)))
        .collect::<Result<Vec<_>>>()?;
    let mut costs = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for ((case, restorer), costs) in cases.iter().zip(&restorers).zip(&mut costs) {
            Watchdog::pat();
            let alone = restorer.run_nothing(PACKETS)?;
            let before = counts(proxy, case)?;
            let run = restorer.run(proxy.program(case.program)?, PACKETS)?;
            let after = counts(proxy, case)?;
            ensure!(run.verdict == case.verdict, "{}: verdict {}", case.name, run.verdict);
            // A flow that found all its places taken when it began has no entry: a few of very many.
            let moved = after - before;
            let least = if case.counter.is_some() { u64::from(PACKETS) * 99 / 100 } else { 0 };
            ensure!(moved >= least, "{}: {moved} of {PACKETS} packets", case.name);
            costs.push(f64::from(run.nanoseconds) - f64::from(alone.nanoseconds));
        }
    }
    for (case, costs) in cases.iter().zip(costs) {
        print(case.name, hook_of(case.program)?, family, flows, costs, format);
    }
    Ok(())
}

fn print(name: &str, hook: Hook, family: &Family, flows: u32, costs: Vec<f64>, format: Format) {
    let Some(spread) = Spread::of(costs) else { return };
    let hook = if hook == Hook::Tc { "tc" } else { "xdp" };
    let labels = vec![("family", json!(family.name)), ("hook", json!(hook)), ("flows", json!(flows))];
    Record { case: name, labels, metric: "cost", unit: "ns/packet", spread, cpu: None }.print(format);
}

fn counts(proxy: &Proxy, case: &Case) -> Result<u64> {
    case.counter.map_or(Ok(0), |name| counter(proxy, name))
}

fn counter(proxy: &Proxy, name: &str) -> Result<u64> {
    let counters = proxy.counters()?;
    let found = counters.iter().find(|counter| counter.name == name);
    Ok(found.with_context(|| format!("no counter {name}"))?.value)
}

/// A proxy with two node ports for both families: one leads to a backend here, the other to one of another node.
fn start(config: &Config) -> Result<Proxy> {
    let mut proxy = Proxy::start(config.clone())?;
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    let here = [vec!["10.91.0.3".to_owned()], vec!["fd91::3".to_owned()]];
    let there = ["10.93.0.", "fd93::"]
        .map(|prefix| (2..2 + THERE_BACKENDS).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>());
    for (name, number, node_port, node, endpoints) in
        [("here", 1, HERE_PORT, "node-a", here), ("there", 2, THERE_PORT, "node-b", there)]
    {
        let addresses = [format!("10.96.0.{number}"), format!("fd96::{number}")];
        let service: api::core::v1::Service = from_value(json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "type": "NodePort",
                "clusterIP": addresses[0],
                "clusterIPs": addresses,
                "ports": [{ "port": 80, "protocol": "TCP", "nodePort": node_port }],
            },
        }))?;
        services.push(Arc::new(Service::from(&service)));
        for (family, addresses) in ["IPv4", "IPv6"].iter().zip(endpoints) {
            let endpoint = |address| json!({ "addresses": [address], "nodeName": node, "conditions": { "ready": true } });
            let endpoints: Vec<_> = addresses.into_iter().map(endpoint).collect();
            let slice: api::discovery::v1::EndpointSlice = from_value(json!({
                "metadata": {
                    "name": format!("{name}-{family}"),
                    "namespace": "default",
                    "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": family,
                "endpoints": endpoints,
                "ports": [{ "port": TARGET_PORT, "protocol": "TCP" }],
            }))?;
            slices.extend(EndpointSlice::of(&slice).map(Arc::new));
        }
    }
    proxy.sync(&services, &slices, &[])?;
    Ok(proxy)
}

/// From one of `flows` clients to a port of the node.
fn from_client(family: &Family, port: u16, flags: u8, flows: u32) -> Template {
    let headers = Headers::new(family.client, family.node, 0, port, flags);
    Template {
        header_len: headers.bytes.len(),
        port_offset: headers.l4,
        address_offset: headers.source + headers.address_len - 2,
        packet: headers.bytes,
        flows,
    }
}

/// From the backend here to one of `flows` clients.
fn to_client(family: &Family, flags: u8, flows: u32) -> Template {
    let headers = Headers::new(family.here, family.client, TARGET_PORT, 0, flags);
    Template {
        header_len: headers.bytes.len(),
        port_offset: headers.l4 + 2,
        address_offset: headers.source + 2 * headers.address_len - 2,
        packet: headers.bytes,
        flows,
    }
}

/// An Ethernet, IP and TCP header. Checksums are left out: programs correct them by the difference.
struct Headers {
    bytes: Vec<u8>,
    /// Where the source address is; the destination follows it.
    source: usize,
    address_len: usize,
    l4: usize,
}

impl Headers {
    fn new(source: &str, destination: &str, source_port: u16, destination_port: u16, flags: u8) -> Self {
        let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        let addresses: Vec<IpAddr> =
            [source, destination].iter().map(|text| text.parse().expect("an address")).collect();
        let is_v4 = addresses[0].is_ipv4();
        if is_v4 {
            bytes.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        } else {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        }
        let at = bytes.len();
        for address in &addresses {
            match address {
                IpAddr::V4(address) => bytes.extend(address.octets()),
                IpAddr::V6(address) => bytes.extend(address.octets()),
            }
        }
        let l4 = bytes.len();
        bytes.extend(source_port.to_be_bytes());
        bytes.extend(destination_port.to_be_bytes());
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
        Self { bytes, source: at, address_len: if is_v4 { 4 } else { 16 }, l4 }
    }
}

fn first_cpu() -> Result<nix::sched::CpuSet> {
    let mut set = nix::sched::CpuSet::new();
    set.set(0)?;
    Ok(set)
}
