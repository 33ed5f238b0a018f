//! Pods that talk to the outside do so from the node's address.
//!
//! Pods' traffic among themselves never matches. The service path sends from ports of its own, from 61000 on, which
//! are none of these.

use ipnet::IpNet;

use crate::{Error, nft};

const TABLE: &str = "inet hawser";

/// Installs the rules for pods of `pod_cidrs`; without any, removes what is there.
pub(crate) async fn install(pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet]) -> Result<(), Error> {
    if pod_cidrs.is_empty() {
        return remove().await;
    }
    nft::apply(&ruleset(pod_cidrs, cluster_cidrs)).await
}

pub(crate) async fn remove() -> Result<(), Error> {
    // Made first, so that deleting does not fail where it is not there.
    nft::apply(&format!("add table {TABLE}\ndelete table {TABLE}\n")).await
}

fn ruleset(pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet]) -> String {
    let mut rules = String::new();
    for pods in pod_cidrs {
        let family = family(pods);
        for cluster in cluster_cidrs.iter().filter(|cluster| family == self::family(cluster)) {
            rules.push_str(&format!("    {family} saddr {pods} {family} daddr {cluster} return\n"));
        }
        rules.push_str(&format!(
            "    {family} saddr {pods} meta l4proto {{ tcp, udp }} masquerade to :1024-60999 fully-random\n    \
             {family} saddr {pods} masquerade fully-random\n"
        ));
    }
    format!(
        "add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n  chain postrouting {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n{rules}  }}\n}}\n"
    )
}

fn family(range: &IpNet) -> &'static str {
    if range.addr().is_ipv4() { "ip" } else { "ip6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_inside_the_cluster_keeps_its_address() {
        let rules = ruleset(&["10.244.1.0/24".parse().unwrap()], &["10.244.0.0/16".parse().unwrap()]);
        let inside = rules.find("daddr 10.244.0.0/16 return").expect("a rule for inside");
        let outside = rules.find("masquerade").expect("a rule for outside");
        assert!(inside < outside);
    }
}
