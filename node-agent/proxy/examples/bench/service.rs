//! `bench service`: what a client gets through a service, beside what it gets without one, and through kube-proxy.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{
    lab::Machine,
    load::{CASES, Case},
    measure::{self, Spread, Watchdog},
    peers::{Peer, Rig},
    report::{Format, Record, Samples, cpu_ratio, latency_ratio, rate_ratio},
};

pub(crate) struct Options {
    pub(crate) services: Vec<u32>,
    pub(crate) rounds: usize,
    pub(crate) length: Duration,
    /// Empty: all.
    pub(crate) cases: Vec<String>,
    pub(crate) format: Format,
}

/// Which peer stands beside which: `(peer, wiring)` each. What is promised of them is in SPECIFICATION.md.
const RATIOS: [[(&str, &str); 2]; 9] = [
    [("socket", "plain"), ("direct", "plain")],
    [("socket", "hawser"), ("direct", "hawser")],
    [("socket", "hawser"), ("direct", "plain")],
    [("socket", "plain"), ("iptables", "plain")],
    [("socket", "hawser"), ("iptables", "plain")],
    [("socket", "plain"), ("nftables", "plain")],
    [("socket", "hawser"), ("nftables", "plain")],
    [("packet", "hawser"), ("iptables", "plain")],
    [("packet", "hawser"), ("nftables", "plain")],
];

pub(crate) fn run(machine: &Machine, options: &Options) -> Result<()> {
    for services in &options.services {
        let rig = Rig::new(machine, *services)?;
        Watchdog::pat();
        let peers = rig.peers();
        let chosen = |case: &&Case| {
            options.cases.is_empty() || options.cases.iter().any(|name| case.name.starts_with(name.as_str()))
        };
        for case in CASES.iter().filter(chosen) {
            let peers: Vec<&Peer<'_>> = peers.iter().filter(|peer| peer.has(case.path)).collect();
            measure_case(case, &peers, *services, options)
                .with_context(|| format!("{} with {services} services", case.name))?;
        }
    }
    Ok(())
}

fn measure_case(case: &Case, peers: &[&Peer<'_>], services: u32, options: &Options) -> Result<()> {
    for peer in peers {
        Watchdog::pat();
        peer.check(|turn| (case.run)(turn).map(drop), case.path)?;
    }
    let samples = measure::rounds(peers, options.rounds, |peer, round| {
        let turn = peer.turn(case.path, options.length, round);
        (case.run)(&turn).with_context(|| format!("{} over {} wiring", peer.name, peer.wiring))
    })?;
    let samples: Samples = peers.iter().map(|peer| (peer.name, peer.wiring)).zip(samples).collect();
    for ((peer, wiring), samples) in &samples {
        let labels = || vec![("peer", json!(peer)), ("wiring", json!(wiring)), ("services", json!(services))];
        let Some(spread) = Spread::of(samples.iter().map(|sample| sample.rate)) else { continue };
        let cpu = Spread::of(samples.iter().map(|sample| sample.cpu_us)).map(|cpu| (cpu, case.per));
        let record =
            Record { case: case.name, labels: labels(), metric: "rate", unit: case.unit, spread, cpu };
        record.print(options.format);
        for (which, metric) in ["p50", "p99", "p999"].into_iter().enumerate() {
            let latencies = samples.iter().filter_map(|sample| Some(sample.latency_us?[which]));
            let Some(spread) = Spread::of(latencies) else { continue };
            let record = Record { case: case.name, labels: labels(), metric, unit: "us", spread, cpu: None };
            record.print(options.format);
        }
    }
    print_ratios(case, &samples, services, options.format);
    Ok(())
}

fn print_ratios(case: &Case, samples: &Samples, services: u32, format: Format) {
    for [of, to] in RATIOS {
        let (Some(of_samples), Some(to_samples)) = (samples.get(&of), samples.get(&to)) else { continue };
        let ratios = [
            ("rate_ratio", rate_ratio(of_samples, to_samples)),
            ("cpu_ratio", cpu_ratio(of_samples, to_samples)),
            ("p50_ratio", latency_ratio(of_samples, to_samples, 0)),
            ("p99_ratio", latency_ratio(of_samples, to_samples, 1)),
        ];
        for (metric, spread) in ratios {
            let Some(spread) = spread else { continue };
            let labels = vec![
                ("peer", json!(format!("{}/{}", of.0, of.1))),
                ("to", json!(format!("{}/{}", to.0, to.1))),
                ("services", json!(services)),
            ];
            Record { case: case.name, labels, metric, unit: "", spread, cpu: None }.print(format);
        }
    }
}
