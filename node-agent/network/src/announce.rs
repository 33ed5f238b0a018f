//! Addresses of services that this node answers for on its uplink (ARP, NDP), so that packets from outside come here.
//!
//! Such an address is added to the uplink as a /32 or /128 that is never a source. The service path takes its packets
//! before the host sees them. It was chosen over proxy neighbour entries, because Linux answers ARP by those only where
//! the address's route leads elsewhere, and over a responder of our own, which would go silent with the agent.
//!
//! The kernel drops an address by itself [`LIFETIME`] after the last renewal: the agent of a node that is lost cannot
//! take it back, and by the time another node takes over this one is silent. State is in the kernel alone: what an
//! earlier agent added is found by its mark.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tracing::{debug, warn};

use crate::{Config, Error, gratuitous, guard, netlink::Netlink};

/// A node without heartbeats is lost for the others after 40 s.
pub const LIFETIME: Duration = Duration::from_secs(40);
/// A takeover is told this often, at this distance: one frame may get lost.
const TELLINGS: u32 = 3;
const BETWEEN_TELLINGS: Duration = Duration::from_secs(1);

/// What a call changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// This node has begun to answer for them.
    pub taken: Vec<IpAddr>,
    pub released: Vec<IpAddr>,
}

pub(crate) async fn replace(
    netlink: &Netlink,
    config: &Config,
    wanted: &BTreeSet<IpAddr>,
    guarded: &mut Option<BTreeSet<IpAddr>>,
) -> Result<Announced, Error> {
    let uplink = netlink.uplink(config.uplink.as_deref(), config.node_ip).await?;
    let mut announced = Announced::default();
    let mut outcome = Ok(());
    let (mut lent, mut own) = (BTreeSet::new(), BTreeSet::new());
    for (address, message, is_lent) in netlink.addresses(uplink.index).await? {
        if !is_lent {
            own.insert(address);
        } else if wanted.contains(&address) {
            lent.insert(address);
        } else {
            outcome = outcome.and(netlink.delete_found_address(message).await);
            announced.released.push(address);
        }
    }
    // One that the node has for other reasons is answered for already, and is not ours to limit.
    let ours: BTreeSet<IpAddr> = wanted.difference(&own).copied().collect();
    if guarded.as_ref() != Some(&ours) {
        match guard::install(&ours).await {
            Ok(()) => *guarded = Some(ours.clone()),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    // One that cannot be guarded is not taken; those that are there are kept up.
    let is_guarded = guarded.as_ref() == Some(&ours);
    for address in ours.into_iter().filter(|address| is_guarded || lent.contains(address)) {
        match netlink.replace_lent_address(uplink.index, address, LIFETIME).await {
            Ok(()) if !lent.contains(&address) => announced.taken.push(address),
            other => outcome = outcome.and(other),
        }
    }
    if !announced.taken.is_empty() {
        tell(uplink.index, &uplink.mac, announced.taken.clone());
    }
    outcome.map(|()| announced)
}

/// Tells the neighbours at once, and again a little later by a task that ends by itself.
fn tell(link: u32, mac: &[u8], addresses: Vec<IpAddr>) {
    let Ok(mac) = <[u8; 6]>::try_from(mac) else {
        return debug!(link, "no neighbours to tell on a link without link-layer addresses");
    };
    let once = move || {
        for address in &addresses {
            if let Err(error) = gratuitous::send(link, mac, *address) {
                // Neighbours find out by themselves when their entry gets stale.
                warn!(%address, %error, "neighbours were not told of an address that moved here");
            }
        }
    };
    once();
    tokio::spawn(async move {
        for _ in 1..TELLINGS {
            tokio::time::sleep(BETWEEN_TELLINGS).await;
            once();
        }
    });
}
