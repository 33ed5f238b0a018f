//! Rules of the shape that kube-proxy v1.36 writes, for the iptables and the nftables peer.
//!
//! Written from its documented behaviour (KEP-3866 for nftables): a chain a service port, a chain an endpoint, a random
//! choice between the two, a mark for what has to be masqueraded, conntrack for everything after a flow's first
//! packet. iptables looks for the service rule by rule, nftables in one verdict map. Chain names have kube-proxy's
//! length, but count instead of hashing.

use std::{
    fmt::Write as _,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    lab::{CLUSTER_CIDR, NODE, Namespace},
    measure::Watchdog,
    objects::{Port, Spec},
};

/// Loads what kube-proxy's iptables mode has for `specs`.
pub(crate) fn load_iptables(node: &Namespace, specs: &[Spec]) -> Result<()> {
    let mut command = Command::new("timeout");
    command.args([&PATIENCE.as_secs().to_string(), "iptables-restore"]);
    node.feed(&mut command, &iptables(specs))
}

/// Loads what kube-proxy's nftables mode has for `specs`.
///
/// In parts: in one transaction each new rule is a walk over all before it, which takes minutes at 10,000 services.
pub(crate) fn load_nftables(node: &Namespace, specs: &[Spec]) -> Result<()> {
    let load = |rules: &str| node.feed(Command::new("nft").args(["-f", "-"]), rules);
    load(&format!(
        "table ip kube-proxy {{\n{NFTABLES_FIXED}}}\nadd element ip kube-proxy nodeport-ips {{ {NODE} }}\n"
    ))?;
    let started = Instant::now();
    let mut first = 0;
    for part in specs.chunks(SERVICES_A_TRANSACTION) {
        load(&nftables(part, first))?;
        first += ports(part).count();
        Watchdog::pat();
        ensure!(started.elapsed() < PATIENCE, "not loaded after {PATIENCE:?}");
    }
    Ok(())
}

const SERVICES_A_TRANSACTION: usize = 250;
/// How long rules may take to load: a peer that takes longer is left out.
const PATIENCE: Duration = Duration::from_secs(240);

/// One service port, numbered over all.
fn ports(specs: &[Spec]) -> impl Iterator<Item = (usize, &Spec, &Port)> {
    specs
        .iter()
        .flat_map(|spec| spec.ports.iter().map(move |port| (spec, port)))
        .enumerate()
        .map(|(number, (spec, port))| (number, spec, port))
}

fn iptables(specs: &[Spec]) -> String {
    let mut chains = String::new();
    let mut services = String::new();
    let mut node_ports = String::new();
    let mut rules = String::new();
    for (number, spec, port) in ports(specs) {
        let title = format!("default/{}:{}", spec.name, port.name);
        let protocol = port.protocol.to_lowercase();
        let chain = format!("KUBE-SVC-{number:016}");
        let to = format!("-m {protocol} -p {protocol} -d {} --dport {}", spec.address, port.port);
        let _ = writeln!(chains, ":{chain} - [0:0]");
        let _ = writeln!(
            services,
            "-A KUBE-SERVICES -m comment --comment \"{title} cluster IP\" {to} -j {chain}"
        );
        let _ = writeln!(
            rules,
            "-A {chain} -m comment --comment \"{title} cluster IP\" {to} ! -s {CLUSTER_CIDR} -j KUBE-MARK-MASQ"
        );
        if let Some(node_port) = port.node_port {
            let external = format!("KUBE-EXT-{number:016}");
            let _ = writeln!(chains, ":{external} - [0:0]");
            let _ = writeln!(
                node_ports,
                "-A KUBE-NODEPORTS -m comment --comment {title} -m {protocol} -p {protocol} --dport {node_port} \
                 -j {external}"
            );
            let _ = writeln!(
                rules,
                "-A {external} -m comment --comment \"masquerade traffic for {title} external destinations\" \
                 -j KUBE-MARK-MASQ\n-A {external} -j {chain}"
            );
        }
        let count = spec.endpoints.len();
        for (index, endpoint) in spec.endpoints.iter().enumerate() {
            let target = format!("{endpoint}:{}", port.target_port);
            let endpoint_chain = format!("KUBE-SEP-{:016}", number * 1000 + index);
            let _ = writeln!(chains, ":{endpoint_chain} - [0:0]");
            let choice = if index + 1 < count {
                let probability = 1.0 / (count - index) as f64;
                format!(" -m statistic --mode random --probability {probability:.10}")
            } else {
                String::new()
            };
            let _ = writeln!(
                rules,
                "-A {chain} -m comment --comment \"{title} -> {target}\"{choice} -j {endpoint_chain}\n\
                 -A {endpoint_chain} -m comment --comment {title} -s {endpoint} -j KUBE-MARK-MASQ\n\
                 -A {endpoint_chain} -m comment --comment {title} -m {protocol} -p {protocol} \
                 -j DNAT --to-destination {target}"
            );
        }
    }
    format!(
        "{IPTABLES_FILTER}{IPTABLES_NAT}{chains}{IPTABLES_NAT_FIXED}{services}{IPTABLES_LAST}{node_ports}{rules}COMMIT\n"
    )
}

const IPTABLES_FILTER: &str = "\
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

const IPTABLES_NAT: &str = "\
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
";

const IPTABLES_NAT_FIXED: &str = "\
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
";

const IPTABLES_LAST: &str = "\
-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
";

/// Chains and map entries of `specs`, whose first port has the number `first`.
fn nftables(specs: &[Spec], first: usize) -> String {
    let mut chains = String::new();
    let mut cluster_ips = String::new();
    let mut service_ips = String::new();
    let mut node_ports = String::new();
    for spec in specs {
        let _ = write!(cluster_ips, "{}, ", spec.address);
    }
    for (number, spec, port) in ports(specs) {
        let number = first + number;
        let protocol = port.protocol.to_lowercase();
        let title = format!("default/{}/{protocol}/{}", spec.name, port.name);
        let service = format!("service-{number:08}-{title}");
        let _ = write!(service_ips, "{} . {protocol} . {} : goto {service}, ", spec.address, port.port);
        if let Some(node_port) = port.node_port {
            let external = format!("external-{number:08}-{title}");
            let _ = write!(node_ports, "{protocol} . {node_port} : goto {external}, ");
            let _ = writeln!(
                chains,
                "  chain {external} {{\n    jump mark-for-masquerade\n    goto {service}\n  }}"
            );
        }
        let mut choices = Vec::new();
        for (index, endpoint) in spec.endpoints.iter().enumerate() {
            let chain = format!("endpoint-{number:08}-{title}__{endpoint}/{}", port.target_port);
            choices.push(format!("{index} : goto {chain}"));
            let _ = writeln!(
                chains,
                "  chain {chain} {{\n    ip saddr {endpoint} jump mark-for-masquerade\n    \
                 meta l4proto {protocol} dnat to {endpoint}:{}\n  }}",
                port.target_port
            );
        }
        let _ = writeln!(
            chains,
            "  chain {service} {{\n    ip daddr {} {protocol} dport {} ip saddr != {CLUSTER_CIDR} \
             jump mark-for-masquerade\n    numgen random mod {} vmap {{ {} }}\n  }}",
            spec.address,
            port.port,
            choices.len(),
            choices.join(", ")
        );
    }
    let elements = |name: &str, elements: String| {
        if elements.is_empty() {
            return String::new();
        }
        format!("add element ip kube-proxy {name} {{ {} }}\n", elements.trim_end_matches(", "))
    };
    format!(
        "table ip kube-proxy {{\n{chains}}}\n{}{}{}",
        elements("cluster-ips", cluster_ips),
        elements("service-ips", service_ips),
        elements("service-nodeports", node_ports),
    )
}

const NFTABLES_FIXED: &str = "
  comment \"rules for kube-proxy\"
  set cluster-ips { type ipv4_addr; comment \"Active ClusterIPs\"; }
  set nodeport-ips { type ipv4_addr; comment \"IPs that accept NodePort traffic\"; }
  map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map service-nodeports { type inet_proto . inet_service : verdict; }
  chain reject-chain { reject; }
  chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
  chain masquerading {
    meta mark & 0x4000 == 0 return
    meta mark set meta mark ^ 0x4000
    masquerade fully-random
  }
  chain cluster-ips-check {
    ip daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"
  }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }
  chain filter-prerouting {
    type filter hook prerouting priority -110; policy accept;
    ct state new jump firewall-check
  }
  chain filter-input {
    type filter hook input priority -110; policy accept;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }
  chain filter-forward {
    type filter hook forward priority -110; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain filter-output {
    type filter hook output priority -110; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump firewall-check
  }
  chain filter-output-post-dnat {
    type filter hook output priority -90; policy accept;
    ct state new jump cluster-ips-check
  }
  chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }
  chain nat-output { type nat hook output priority -100; policy accept; jump services; }
  chain nat-postrouting { type nat hook postrouting priority srcnat; policy accept; jump masquerading; }
";
