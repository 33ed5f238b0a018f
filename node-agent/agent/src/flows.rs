//! `node-agent flows`: the flows that this node's kernel holds, or what it counts, read from the pinned maps; the agent
//! need not run.
//!
//! Connections that were translated at their socket are not among them: nothing is done to their packets.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use hawser_network::pod_addresses;
use hawser_proxy::{Counter, Datapath, FlowState, FlowView};

use crate::services::{pins, print_line};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The agent's --state-dir
    #[arg(long, env = "HAWSER_STATE_DIR", default_value = "/run/hawser/agent")]
    state_dir: PathBuf,
    /// Flows from or to this pod: <namespace>/<name> of a pod of this node, or any address
    #[arg(long)]
    pod: Option<String>,
    /// Flows of this service: <address> or <address>:<port>
    #[arg(long)]
    service: Option<String>,
    /// Flows in this state
    #[arg(long, value_enum)]
    verdict: Option<Verdict>,
    /// What the datapath counts, drops first, instead of flows
    #[arg(long, conflicts_with_all = ["pod", "service", "verdict"])]
    drops: bool,
    /// Show what is new every second, until interrupted or for --count rounds
    #[arg(long, short)]
    watch: bool,
    /// Most rounds of --watch
    #[arg(long, default_value_t = 3600, requires = "watch")]
    count: u32,
    /// Most lines a round; the rest is counted
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Verdict {
    /// The backend has not answered
    Unconfirmed,
    Established,
    /// A FIN or RST was seen
    Closing,
}

const ROUND: Duration = Duration::from_secs(1);

/// Which flows are shown.
#[derive(Debug, Default)]
struct Filter {
    pods: Option<Vec<IpAddr>>,
    service: Option<(IpAddr, Option<u16>)>,
    state: Option<FlowState>,
}

impl Filter {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let pods = match &options.pod {
            None => None,
            Some(pod) => Some(pods(pod, &options.state_dir)?),
        };
        let service = match &options.service {
            None => None,
            Some(text) => Some(match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
                (Ok(address), _) => (address, None),
                (_, Ok(address)) => (address.ip(), Some(address.port())),
                _ => bail!("--service {text:?}: <address> or <address>:<port> is expected"),
            }),
        };
        let state = options.verdict.map(|verdict| match verdict {
            Verdict::Unconfirmed => FlowState::Unconfirmed,
            Verdict::Established => FlowState::Established,
            Verdict::Closing => FlowState::Closing,
        });
        Ok(Self { pods, service, state })
    }

    fn shows(&self, flow: &FlowView) -> bool {
        let of_pod =
            |pods: &Vec<IpAddr>| pods.contains(&flow.client.ip()) || pods.contains(&flow.backend.ip());
        let of_service = |(address, port): &(IpAddr, Option<u16>)| {
            flow.service.ip() == *address && port.is_none_or(|port| flow.service.port() == port)
        };
        self.pods.as_ref().is_none_or(of_pod)
            && self.service.as_ref().is_none_or(of_service)
            && self.state.is_none_or(|state| flow.state == state)
    }
}

/// The addresses of a pod, named or written out.
pub(crate) fn pods(text: &str, state_dir: &std::path::Path) -> anyhow::Result<Vec<IpAddr>> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let Some((namespace, name)) = text.split_once('/') else {
        bail!("{text:?}: <namespace>/<name> or an address is expected");
    };
    let known =
        pod_addresses(&state_dir.join("network")).context("cannot read the records of this node's pods")?;
    let found: Vec<IpAddr> = known
        .into_iter()
        .filter(|(pod, _)| pod.namespace == namespace && pod.name == name)
        .flat_map(|(_, addresses)| addresses)
        .collect();
    if found.is_empty() {
        bail!("pod {text} has no address on this node; name pods of other nodes by their address");
    }
    Ok(found)
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let pins = pins(&options.state_dir);
    let datapath = Datapath::open(&pins)
        .with_context(|| format!("cannot read the datapath's maps below {}", pins.display()))?;
    if options.drops { run_counters(options, &datapath) } else { run_flows(options, &datapath) }
}

fn run_flows(options: &Options, datapath: &Datapath) -> anyhow::Result<()> {
    let filter = Filter::new(options)?;
    print_line(HEADER);
    let mut shown: BTreeSet<(SocketAddr, SocketAddr, SocketAddr, FlowState)> = BTreeSet::new();
    for round in 0..rounds(options) {
        if round > 0 {
            thread::sleep(ROUND);
        }
        let mut flows = datapath.flows()?;
        flows.retain(|flow| filter.shows(flow));
        let key = |flow: &FlowView| (flow.client, flow.service, flow.backend, flow.state);
        let news: Vec<&FlowView> = flows.iter().filter(|flow| !shown.contains(&key(flow))).collect();
        for flow in news.iter().take(options.limit) {
            if !print_line(line(flow)) {
                return Ok(());
            }
        }
        if news.len() > options.limit {
            eprintln!("{} more; see --limit, --pod, --service, --verdict", news.len() - options.limit);
        }
        // What is gone is forgotten, so this holds what the table holds.
        shown = flows.iter().map(key).collect();
    }
    Ok(())
}

fn run_counters(options: &Options, datapath: &Datapath) -> anyhow::Result<()> {
    let mut before: Vec<Counter> = Vec::new();
    for round in 0..rounds(options) {
        if round > 0 {
            thread::sleep(ROUND);
        }
        let counters = datapath.counters()?;
        for text in counter_lines(&counters, &before) {
            if !print_line(text) {
                return Ok(());
            }
        }
        before = counters;
    }
    Ok(())
}

fn rounds(options: &Options) -> u32 {
    if options.watch { options.count } else { 1 }
}

const HEADER: &str =
    "PROTO CLIENT                 SERVICE                BACKEND                STATE         IDLE  SOURCE";

fn line(flow: &FlowView) -> String {
    let source = flow.source.map(|source| source.to_string()).unwrap_or_else(|| "-".into());
    format!(
        "{:<5} {:<22} {:<22} {:<22} {:<11} {:>5}s  {source}",
        flow.protocol,
        flow.client.to_string(),
        flow.service.to_string(),
        flow.backend.to_string(),
        flow.state,
        flow.idle.as_secs(),
    )
}

/// Drops first; after the first round what has changed alone, with the difference.
fn counter_lines(counters: &[Counter], before: &[Counter]) -> Vec<String> {
    let mut sorted: Vec<&Counter> = counters.iter().collect();
    sorted.sort_by_key(|counter| !counter.name.starts_with("drop_"));
    sorted
        .into_iter()
        .filter_map(|counter| {
            let Some(old) = before.iter().find(|old| old.name == counter.name) else {
                return Some(format!("{:<28} {:>14}", counter.name, counter.value));
            };
            let added = counter.value.checked_sub(old.value).filter(|added| *added > 0)?;
            Some(format!("{:<28} {:>14}  +{added}", counter.name, counter.value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(client: &str, service: &str, backend: &str) -> FlowView {
        FlowView {
            client: client.parse().unwrap(),
            service: service.parse().unwrap(),
            backend: backend.parse().unwrap(),
            protocol: "TCP",
            state: FlowState::Established,
            source: None,
            idle: Duration::from_secs(3),
            service_id: 1,
        }
    }

    #[track_caller]
    fn check(what: &str, filter: &Filter, expected: bool) {
        let flow = flow("192.0.2.1:4000", "10.203.0.11:30080", "10.244.1.5:8080");
        assert_eq!(filter.shows(&flow), expected, "{what}");
    }

    #[test]
    fn filters_choose_by_pod_service_and_state() {
        let pods = |text: &str| Filter { pods: Some(vec![text.parse().unwrap()]), ..Filter::default() };
        let service =
            |text: &str, port| Filter { service: Some((text.parse().unwrap(), port)), ..Filter::default() };
        let state = |state| Filter { state: Some(state), ..Filter::default() };
        check("no filter", &Filter::default(), true);
        check("backend", &pods("10.244.1.5"), true);
        check("client", &pods("192.0.2.1"), true);
        check("another pod", &pods("10.244.1.6"), false);
        check("service address", &service("10.203.0.11", None), true);
        check("service port", &service("10.203.0.11", Some(30_080)), true);
        check("another port", &service("10.203.0.11", Some(30_081)), false);
        check("state", &state(FlowState::Established), true);
        check("another state", &state(FlowState::Closing), false);
    }

    #[test]
    fn columns_stand_under_their_headings() {
        let line = line(&flow("192.0.2.1:4000", "10.203.0.11:30080", "10.244.1.5:8080"));
        for (heading, value) in [
            ("CLIENT", "192.0.2.1:4000"),
            ("SERVICE", "10.203.0.11:30080"),
            ("BACKEND", "10.244.1.5:8080"),
            ("STATE", "established"),
            ("SOURCE", "-"),
        ] {
            assert_eq!(HEADER.find(heading), line.find(value), "{heading}\n{HEADER}\n{line}");
        }
    }

    #[test]
    fn counters_show_drops_first_and_then_what_is_new() {
        let counter = |name, value| Counter { name, value };
        let first = [counter("socket_connected", 5), counter("drop_no_route", 1)];
        let lines = counter_lines(&first, &[]);
        assert!(lines[0].starts_with("drop_no_route"), "{lines:?}");
        let second = [counter("socket_connected", 7), counter("drop_no_route", 1)];
        let lines = counter_lines(&second, &first);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("socket_connected") && lines[0].ends_with("+2"), "{lines:?}");
    }
}
