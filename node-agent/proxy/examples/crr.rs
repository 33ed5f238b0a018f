//! Connections a second (connect, request, response, close) through a cluster IP, beside the backend's own address.
//!
//! ```text
//! cargo run -p hawser-proxy --release --example crr -- [services] [rounds] [milliseconds a round]
//! ```
//! Client and server run in network namespaces of their own. The peers take turns: `bare` is the backend's address
//! from outside of the node's cgroup (no program at all), `direct` the same address from inside (the programs look it
//! up in vain), `socket` the cluster IP. Medians over the rounds, one JSON object a line, and the ratios.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use support::{NODE, POD, Spec, run, service, slice};

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let services = arguments.next().unwrap_or(10).clamp(1, 60_000);
    let rounds = arguments.next().unwrap_or(9).clamp(1, 100);
    let length = Duration::from_millis(arguments.next().unwrap_or(300).clamp(10, 5_000));

    run("crr", |lab| {
        let listener = lab.inside(POD, || TcpListener::bind("10.91.0.2:8080").expect("bind"));
        thread::spawn(move || serve(&listener));
        let mut config = lab.config();
        config.max_frontends = 131_072;
        config.max_backends = 524_288;
        let mut proxy = hawser_proxy::Proxy::start(config).expect("start the proxy");
        let names: Vec<String> = (0..services).map(|n| format!("s{n}")).collect();
        let addresses: Vec<String> =
            (0..services).map(|n| format!("10.96.{}.{}", n / 250, n % 250 + 1)).collect();
        let all_services: Vec<_> = names
            .iter()
            .zip(&addresses)
            .map(|(name, address)| service(&Spec { name, cluster_ips: &[address], ..Spec::default() }))
            .collect();
        let mut slices: Vec<_> =
            names.iter().map(|name| slice(name, "TCP", 8080, &[("10.91.0.2", "node-a", true)])).collect();
        // One service has an endpoint of its own, whose readiness changes.
        let one_pod = "10.91.0.3".parse().expect("an address");
        slices[0] =
            slice(&names[0], "TCP", 8080, &[("10.91.0.2", "node-a", true), ("10.91.0.3", "node-a", true)]);
        let started = Instant::now();
        let report = proxy.sync(&all_services, &slices, &[]).expect("sync");
        eprintln!("{} frontends in {:?}", report.frontends, started.elapsed());
        let started = Instant::now();
        proxy.sync(&all_services, &slices, &[]).expect("sync");
        eprintln!("nothing changed: {:?}", started.elapsed());

        let mut changes = Vec::new();
        for round in 0..200 {
            let started = Instant::now();
            proxy.local_endpoint_changed(one_pod, round % 2 == 1).expect("change");
            changes.push(started.elapsed());
        }
        changes.sort();
        eprintln!("local endpoint change: p50 {:?}, p99 {:?}", changes[100], changes[198]);

        let through = format!("{}:80", addresses.last().expect("at least one service"));
        let mut rates: [Vec<f64>; 3] = Default::default();
        for _ in 0..rounds {
            rates[0].push(lab.inside_unserved(NODE, || rate("10.91.0.2:8080", length)));
            rates[1].push(lab.inside(NODE, || rate("10.91.0.2:8080", length)));
            rates[2].push(lab.inside(NODE, || rate(&through, length)));
        }
        let medians = rates.each_mut().map(|rates| {
            rates.sort_by(f64::total_cmp);
            (rates[rates.len() / 2], rates[0], rates[rates.len() - 1])
        });
        for (peer, (median, low, high)) in ["bare", "direct", "socket"].iter().zip(medians) {
            println!(
                r#"{{"case":"tcp_crr","peer":"{peer}","services":{services},"metric":"rate","value":{median:.0},"low":{low:.0},"high":{high:.0},"unit":"conn/s"}}"#
            );
        }
        println!("socket/direct {:.3}", medians[2].0 / medians[1].0);
        println!("socket/bare   {:.3}", medians[2].0 / medians[0].0);
    });
}

/// Connections a second, one after the other, for `length`.
fn rate(address: &str, length: Duration) -> f64 {
    let address = address.parse().expect("an address");
    let started = Instant::now();
    let mut connections = 0u32;
    while started.elapsed() < length {
        for _ in 0..50 {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).expect("connect");
            stream.write_all(b"?").expect("request");
            let mut response = Vec::with_capacity(8);
            stream.read_to_end(&mut response).expect("response");
            assert_eq!(response, b"!");
            connections += 1;
        }
    }
    f64::from(connections) / started.elapsed().as_secs_f64()
}

fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let mut request = [0];
        if stream.read_exact(&mut request).is_ok() {
            let _ = stream.write_all(b"!");
        }
    }
}
