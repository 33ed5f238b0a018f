//! An address of a service that this node answers for is the service's alone: the node's own programs, which listen on
//! all addresses, are not reached at it.
//!
//! The service path takes packets for ports that are served before these rules see them.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{Error, nft};

const TABLE: &str = "inet hawser-lent";

/// Keeps the node's programs away from exactly these addresses.
pub(crate) async fn install(addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
    nft::apply(&ruleset(addresses)).await
}

fn ruleset(addresses: &BTreeSet<IpAddr>) -> String {
    // Made first, so that deleting does not fail where it is not there.
    let mut rules = format!("add table {TABLE}\ndelete table {TABLE}\n");
    if addresses.is_empty() {
        return rules;
    }
    rules.push_str(&format!(
        "table {TABLE} {{\n  chain input {{\n    type filter hook input priority filter; policy accept;\n"
    ));
    for address in addresses {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        rules.push_str(&format!(
            "    {family} daddr {address} meta l4proto tcp reject with tcp reset\n    \
             {family} daddr {address} meta l4proto != {{ icmp, icmpv6 }} reject with icmpx port-unreachable\n"
        ));
    }
    rules.push_str("  }\n}\n");
    rules
}
