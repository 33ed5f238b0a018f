//! XDP at uplinks: where it is used, and what the programs know of it.
//!
//! The program at XDP does a part of what the one at tc does, and sooner. So an uplink without it lacks nothing but
//! speed, and whatever is in its way there is logged and no error.

use std::io;

use hawser_ebpf_abi::{XdpLink, xdp::XDP_LINKS};
use tracing::{info, warn};

use crate::{
    attach::remove_link,
    error::Error,
    kernel::{link, loader::XDP_PROGRAM, sys},
    proxy::{Config, Proxy},
};

/// Whether packets are sent on at XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// At uplinks whose driver can. Not at veth: there XDP turns the sender's segmentation offload off, and the other end
    /// must compute the checksums of what it sends, and be ready for what XDP sends. Nor at bonds, whose members run the
    /// program instead.
    #[default]
    Auto,
    /// At veth too.
    On,
    Off,
}

impl Xdp {
    fn is_for(self, ifindex: u32) -> io::Result<bool> {
        match self {
            Self::Auto => Ok(!matches!(sys::driver(ifindex)?.as_deref(), Some("veth" | "bonding" | "team"))),
            Self::On => Ok(true),
            Self::Off => Ok(false),
        }
    }
}

/// Tells whether an uplink may run XDP: then the program is loaded, which takes a while.
pub(crate) fn is_wanted(config: &Config) -> bool {
    config.uplinks.iter().any(|name| {
        sys::interface_index(name).and_then(|ifindex| config.xdp.is_for(ifindex)).unwrap_or(false)
    })
}

impl Proxy {
    /// Attaches the program to an uplink, or replaces it; detaches it where the configuration wants none.
    pub(crate) fn attach_xdp(&self, name: &str, ifindex: u32) -> Result<(), Error> {
        let pin = self.link_pin(&format!("uplink-{name}-{XDP_PROGRAM}"));
        match self.try_attach_xdp(ifindex, &pin) {
            Ok(true) => {
                info!(uplink = name, "packets are sent on at XDP");
                return Ok(());
            }
            Ok(false) => {}
            Err(error) if self.config.xdp == Xdp::On => {
                warn!(uplink = name, %error, "no XDP here, tc alone");
            }
            Err(error) => info!(uplink = name, %error, "no XDP here, tc alone"),
        }
        // First of all nothing may be sent to it any more.
        self.keep_xdp_links(|link| link.ifindex != ifindex)?;
        remove_link(&pin)
    }

    fn try_attach_xdp(&self, ifindex: u32, pin: &std::path::Path) -> io::Result<bool> {
        if !self.config.xdp.is_for(ifindex)? {
            return Ok(false);
        }
        let Some(program) = self.programs.find(XDP_PROGRAM) else { return Ok(false) };
        link::attach_interface(program, ifindex, link::XDP, pin)?;
        let mac = sys::link_layer_address(ifindex)?;
        let word = |at: usize| u16::from_ne_bytes([mac[at], mac[at + 1]]);
        let link = XdpLink { ifindex, mac: [word(0), word(2), word(4)], pad: 0 };
        let mut known = self.maps.xdp_links.get(&0)?.unwrap_or_default();
        let place = known.links.iter().position(|other| other.ifindex == ifindex);
        let free = || known.links.iter().position(|other| other.ifindex == 0);
        let place = place.or_else(free).ok_or_else(|| {
            io::Error::other(format!("{XDP_LINKS} interfaces run it, which is as many as there may be"))
        })?;
        known.links[place] = link;
        self.maps.xdp_links.set(&0, &known)?;
        Ok(true)
    }

    /// Makes the programs forget interfaces that are none of the uplinks.
    pub(crate) fn forget_xdp_links(&self) -> Result<(), Error> {
        self.keep_xdp_links(|link| {
            sys::interface_name(link.ifindex).is_ok_and(|name| self.config.uplinks.contains(&name))
        })
    }

    fn keep_xdp_links(&self, keep: impl Fn(&XdpLink) -> bool) -> Result<(), Error> {
        let failed = |source| Error::Map { name: "XDP_LINKS", source };
        let mut known = self.maps.xdp_links.get(&0).map_err(failed)?.unwrap_or_default();
        let before = known;
        for link in known.links.iter_mut().filter(|link| !keep(link)) {
            *link = XdpLink::default();
        }
        if known != before { self.maps.xdp_links.set(&0, &known).map_err(failed) } else { Ok(()) }
    }
}
