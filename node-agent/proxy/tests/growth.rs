//! Maps that are full grow, and nobody who is served notices.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use hawser_proxy::{Config, Proxy, Sizes};
use hawser_services::{EndpointSlice, Service};
use serde_json::json;
use support::{
    CLIENT, Lab, OTHER, POD, Spec, connect, counter, echo, load::under_load, patience, run, service,
    service_with, slice,
};

/// Tells the victim where its datapath is.
const VICTIM_BPFFS: &str = "HAWSER_TEST_VICTIM_BPFFS";
/// Tells it the cgroup.
const VICTIM_CGROUP: &str = "HAWSER_TEST_VICTIM_CGROUP";
/// Tells it how many services there are.
const VICTIM_SERVICES: &str = "HAWSER_TEST_VICTIM_SERVICES";
/// What it says before it makes the maps grow.
const GROWS: &str = "the maps grow";

const SMALL: Sizes =
    Sizes { frontends: 8, backends: 16, members: 2, maglev_blocks: 8, affinities: 4, source_ranges: 1 };

fn small(mut config: Config) -> Config {
    config.sizes = SMALL;
    config
}

/// `web`, which clients use all the time, and `count` services that need room in every map.
fn objects(count: u16) -> (Vec<Arc<Service>>, Vec<Arc<EndpointSlice>>) {
    let mut services = vec![service(&Spec { node_port: Some(30080), ..Spec::default() })];
    let mut slices =
        vec![slice("web", "TCP", 8080, &[("10.91.0.2", "node-a", true), ("10.93.0.2", "node-b", true)])];
    for number in 0..count {
        let protocol = if number % 2 == 0 { "TCP" } else { "UDP" };
        let (name, address) = (format!("s{number}"), address(number));
        let node_port = Some(31_000 + i32::from(number));
        let spec = Spec { name: &name, protocol, cluster_ips: &[&address], node_port, ..Spec::default() };
        let ingress = format!("10.96.{}.{}", 200 + number / 200, number % 200);
        services.push(service_with(
            &spec,
            &json!({
                "type": "LoadBalancer",
                "loadBalancerSourceRanges": [format!("10.{}.{}.0/24", 100 + number / 200, number % 200)],
                "status": { "loadBalancer": { "ingress": [{ "ip": ingress }] } },
            }),
        ));
        slices.push(slice(
            &name,
            protocol,
            8080,
            &[("10.91.0.2", "node-a", true), ("10.93.0.2", "node-b", true)],
        ));
    }
    (services, slices)
}

fn address(number: u16) -> String {
    format!("10.96.{}.{}", 1 + number / 200, number % 200)
}

fn servers(lab: &Lab) {
    lab.tcp_server(POD, "10.91.0.2:8080");
    lab.tcp_server(OTHER, "10.93.0.2:8080");
}

/// Checks that all of the services are there, and that those of TCP answer.
fn check(proxy: &Proxy, count: u16) {
    let dump = proxy.dump_services().unwrap();
    for number in 0..count {
        let (address, protocol) = (address(number), if number % 2 == 0 { "TCP" } else { "UDP" });
        let line = format!("{address}:80/{protocol} -> 10.91.0.2:8080 10.93.0.2:8080");
        assert!(dump.iter().any(|view| view.to_string() == line), "{line} in {dump:?}");
        if protocol == "TCP" {
            connect(&format!("{address}:80")).unwrap();
        }
    }
}

fn left_overs(bpffs: &Path) -> Vec<String> {
    let names = fs::read_dir(bpffs.join("maps")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("larger")).collect()
}

#[test]
fn full_maps_grow_and_nothing_is_interrupted() {
    run("full_maps_grow_and_nothing_is_interrupted", |lab| {
        servers(lab);
        let mut proxy = Proxy::start(small(lab.config())).unwrap();
        lab.attach_pod(&proxy);
        let (services, slices) = objects(0);
        proxy.sync(&services, &slices, &[]).unwrap();
        let (mut at_socket, _) = connect("10.96.0.10:80").unwrap();
        let mut by_packets: Vec<_> =
            (0..8).map(|_| lab.inside(CLIENT, || connect("10.90.0.1:30080").unwrap().0)).collect();
        let mut proxy = under_load(lab, &[(POD, "10.96.0.10:80"), (CLIENT, "10.90.0.1:30080")], |more| {
            for count in [20, 60, 200] {
                more("connections before");
                let forwarded = counter(&proxy, "packet_forwarded");
                let (services, slices) = objects(count);
                let report = proxy.sync(&services, &slices, &[]).unwrap();
                assert!(report.skipped.is_empty(), "{:?}", report.skipped);
                check(&proxy, count);
                more("connections with larger maps");
                echo(&mut at_socket);
                by_packets.iter_mut().for_each(echo);
                assert!(counter(&proxy, "packet_forwarded") > forwarded, "the counters go on");
            }
            proxy
        });
        let (services, slices) = objects(200);
        let report = proxy.sync(&services, &slices, &[]).unwrap();
        assert_eq!((report.frontends_written, report.backends_written), (0, 0), "all is written");
        drop(proxy);
        let mut proxy = Proxy::start(small(lab.config())).unwrap();
        let report = proxy.sync(&services, &slices, &[]).unwrap();
        assert_eq!((report.frontends_written, report.backends_written), (0, 0), "a restart finds it all");
        assert_eq!(left_overs(&lab.bpffs()), Vec::<String>::new());
    });
}

#[test]
fn maps_grow_as_far_as_they_may() {
    run("maps_grow_as_far_as_they_may", |lab| {
        servers(lab);
        let mut config = small(lab.config());
        config.max_sizes = Sizes { frontends: 20, ..Sizes::MOST };
        let mut proxy = Proxy::start(config).unwrap();
        let (services, slices) = objects(0);
        proxy.sync(&services, &slices, &[]).unwrap();
        let (services, slices) = objects(30);
        let report = proxy.sync(&services, &slices, &[]).unwrap();
        assert_eq!(report.frontends, 20);
        let full = report.skipped.iter().filter(|skipped| skipped.reason == "the table of frontends is full");
        assert!(full.count() > 0, "{:?}", report.skipped);
        connect("10.96.0.10:80").unwrap();
        let (services, slices) = objects(4);
        let report = proxy.sync(&services, &slices, &[]).unwrap();
        assert!(report.skipped.is_empty(), "{:?}", report.skipped);
        check(&proxy, 4);
    });
}

#[test]
fn agent_that_is_killed_while_maps_grow_leaves_whole_ones() {
    run("agent_that_is_killed_while_maps_grow_leaves_whole_ones", |lab| {
        servers(lab);
        let config = small(lab.config());
        let start = Instant::now();
        let mut proxy = Proxy::start(config.clone()).unwrap();
        // Most of it is loading, as it is for maps that grow.
        let loading = start.elapsed();
        lab.attach_pod(&proxy);
        let (services, slices) = objects(0);
        proxy.sync(&services, &slices, &[]).unwrap();
        drop(proxy);
        under_load(lab, &[(POD, "10.96.0.10:80"), (CLIENT, "10.90.0.1:30080")], |more| {
            // Each time more than maps that have grown for the last ones may hold.
            for (step, count) in [(1, 10), (2, 30), (3, 90), (4, 270), (5, 810)] {
                kill_victim(&config, count, loading * step / 4);
                more("connections after the kill");
                let mut proxy = Proxy::start(config.clone()).unwrap();
                let (services, slices) = objects(count);
                let report = proxy.sync(&services, &slices, &[]).unwrap();
                assert!(report.skipped.is_empty(), "{:?}", report.skipped);
                check(&proxy, count);
                assert_eq!(left_overs(&lab.bpffs()), Vec::<String>::new());
                more("connections after the repair");
            }
        });
    });
}

/// Lets another process take the datapath over, with as many services, and kills it a while after its maps have begun
/// to grow.
fn kill_victim(config: &Config, count: u16, after: Duration) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored", "--nocapture", "--test-threads", "1"])
        .env(VICTIM_BPFFS, &config.bpffs_dir)
        .env(VICTIM_CGROUP, &config.cgroup_dir)
        .env(VICTIM_SERVICES, count.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(GROWS)), "the victim has ended early");
    thread::sleep(after);
    victim.kill().unwrap();
    assert!(!victim.wait().unwrap().success());
}

#[test]
#[ignore = "the victim of agent_that_is_killed_while_maps_grow_leaves_whole_ones"]
fn victim() {
    let of = |name| std::env::var(name).expect("its killer says so");
    // Not started by its killer, but with all the others.
    if std::env::var_os(VICTIM_BPFFS).is_none() {
        return;
    }
    let mut config = support::config(of(VICTIM_BPFFS).into(), of(VICTIM_CGROUP).into());
    config.sizes = SMALL;
    let mut proxy = Proxy::start(config).unwrap();
    let (services, slices) = objects(of(VICTIM_SERVICES).parse().unwrap());
    println!("{GROWS}");
    proxy.sync(&services, &slices, &[]).unwrap();
    thread::sleep(patience());
}
