//! Packet programs on kernels before 6.6, which have no tcx: a `clsact` queueing discipline with one filter each way.
//!
//! Filters live with the interface and need no pin, but nothing lists them for us. So a directory in the bpffs, named
//! after interface and direction, records each one. Priority and handle are fixed: an agent that starts replaces the
//! filter of its predecessor in place.

use std::{
    fs, io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    links::Link as _,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};

use super::{link, sys};

const PRIORITY: u16 = 50;
const HANDLE: TcHandle = TcHandle::new(0, 1);
const PREFIX: &str = "clsact";

/// A filter of ours, as its record names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) ifindex: u32,
    pub(crate) is_ingress: bool,
    /// What the interface is to us: `uplink-eth0`, `pod-12`.
    pub(crate) role: String,
}

impl Filter {
    pub(crate) fn new(ifindex: u32, attach_type: u32, role: &str) -> Self {
        Self { ifindex, is_ingress: attach_type == link::TCX_INGRESS, role: role.to_owned() }
    }

    /// Reads the name of a record; `None` for anything else.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.splitn(4, '-');
        if parts.next()? != PREFIX {
            return None;
        }
        let ifindex = parts.next()?.parse().ok()?;
        let is_ingress = match parts.next()? {
            "ingress" => true,
            "egress" => false,
            _ => return None,
        };
        Some(Self { ifindex, is_ingress, role: parts.next()?.to_owned() })
    }

    fn record(&self, links_dir: &Path) -> PathBuf {
        let Self { ifindex, role, .. } = self;
        let direction = if self.is_ingress { "ingress" } else { "egress" };
        links_dir.join(format!("{PREFIX}-{ifindex}-{direction}-{role}"))
    }

    fn attach_type(&self) -> TcAttachType {
        if self.is_ingress { TcAttachType::Ingress } else { TcAttachType::Egress }
    }

    fn link(&self) -> io::Result<SchedClassifierLink> {
        let interface = sys::interface_name(self.ifindex)?;
        SchedClassifierLink::attached(&interface, self.attach_type(), PRIORITY, HANDLE, None)
    }
}

/// Attaches `program`, replacing the filter of an earlier agent.
pub(crate) fn attach(program: BorrowedFd<'_>, filter: &Filter, links_dir: &Path) -> io::Result<()> {
    let interface = sys::interface_name(filter.ifindex)?;
    // It may be there already, and says so in more than one way; any other failure shows at the attachment.
    let _ = tc::qdisc_add_clsact(&interface);
    // aya attaches programs of its own type alone, and makes one from a pin.
    let pin = links_dir.join(format!("loading-{}-{}", filter.ifindex, filter.is_ingress));
    let _ = fs::remove_file(&pin);
    sys::obj_pin(program, &pin)?;
    let opened = SchedClassifier::from_pin(&pin);
    fs::remove_file(&pin)?;
    let mut program = opened.map_err(io::Error::other)?;

    let record = filter.record(links_dir);
    let known = record.is_dir();
    let replaced = if known { program.attach_to_link(filter.link()?) } else { Err(ProgramError::NotLoaded) };
    let id = match replaced {
        Ok(id) => id,
        Err(_) => {
            // The record comes first: whatever happens next, a removal knows where to look.
            fs::create_dir_all(&record)?;
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            let attached = program.attach_with_options(
                &interface,
                filter.attach_type(),
                TcAttachOptions::Netlink(options),
            );
            attached.map_err(io::Error::other)?
        }
    };
    // The filter stays when the agent goes: dropping the link would remove it.
    std::mem::forget(program.take_link(id).map_err(io::Error::other)?);
    Ok(())
}

/// Removes a filter and its record. One whose interface is gone went with it.
pub(crate) fn detach(filter: &Filter, links_dir: &Path) -> io::Result<()> {
    if let Ok(link) = filter.link() {
        // Someone else may have removed the filter, or the discipline with it.
        let _ = link.detach();
    }
    match fs::remove_dir(filter.record(links_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
