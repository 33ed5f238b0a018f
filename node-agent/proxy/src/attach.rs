//! Which program runs where: the node's cgroup, its uplinks, its pods' interfaces. What is attached is pinned, and an
//! agent that starts replaces the programs in place.

use std::{
    collections::HashSet,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use tracing::warn;

use crate::{
    error::Error,
    kernel::{
        classic::{self, Filter},
        kept, link,
        loader::XDP_PROGRAM,
        mount, sys,
    },
    pods,
    proxy::{PacketAttachment, Proxy, maps_dir},
};

/// Programs at the sockets, by the hook they attach to.
const CGROUP_PROGRAMS: [(&str, u32); 9] = [
    ("connect4", link::CGROUP_INET4_CONNECT),
    ("connect6", link::CGROUP_INET6_CONNECT),
    ("sendmsg4", link::CGROUP_UDP4_SENDMSG),
    ("sendmsg6", link::CGROUP_UDP6_SENDMSG),
    ("recvmsg4", link::CGROUP_UDP4_RECVMSG),
    ("recvmsg6", link::CGROUP_UDP6_RECVMSG),
    ("getpeername4", link::CGROUP_INET4_GETPEERNAME),
    ("getpeername6", link::CGROUP_INET6_GETPEERNAME),
    ("sock_release", link::CGROUP_INET_SOCK_RELEASE),
];
const UPLINK_PROGRAMS: [(&str, u32); 2] = [("from_wire", link::TCX_INGRESS), ("to_wire", link::TCX_EGRESS)];
const POD_PROGRAMS: [(&str, u32); 2] = [("from_pod", link::TCX_INGRESS), ("to_pod", link::TCX_EGRESS)];

impl Proxy {
    /// Attaches the packet path to one more interface by which packets from outside, or replies of other nodes,
    /// arrive: a tunnel device that is made after the start. The next start needs it in its configuration.
    pub fn attach_uplink(&self, name: &str) -> Result<(), Error> {
        let ifindex = sys::interface_index(name).map_err(|source| Error::Attach {
            program: "from_wire",
            target: name.to_owned(),
            source,
        })?;
        self.attach_interface(ifindex, &format!("uplink-{name}"), &UPLINK_PROGRAMS)?;
        self.attach_xdp(name, ifindex)
    }

    /// Attaches the packet path to the host's side of a pod's interface: for traffic that no socket program sees, and
    /// only from the pod's own `addresses`. `mac` is the link-layer address of the pod's side, and opens the short way to
    /// it. Returns false where there is none: without `mac`, and for interfaces that cannot (other than veth). Packets
    /// for the pod then go by the host's routes.
    pub fn attach_pod(
        &self,
        ifindex: u32,
        mac: Option<[u8; 6]>,
        addresses: &[IpAddr],
    ) -> Result<bool, Error> {
        let is_veth = sys::is_veth(ifindex)
            .map_err(|source| Error::Kernel { what: "ask for the kind of an interface", source })?;
        let mac = mac.filter(|_| is_veth);
        pods::set(&self.maps.pods, ifindex, mac, addresses)
            .map_err(|source| Error::Map { name: "PODS", source })?;
        self.attach_pod_programs(ifindex)?;
        Ok(mac.is_some())
    }

    fn attach_pod_programs(&self, ifindex: u32) -> Result<(), Error> {
        self.attach_interface(ifindex, &format!("pod-{ifindex}"), &POD_PROGRAMS)
    }

    /// Detaches the packet path from a pod's interface, and closes the short way to it. One that is not attached, or
    /// gone, is no error.
    pub fn detach_pod_interface(&self, ifindex: u32) -> Result<(), Error> {
        pods::set(&self.maps.pods, ifindex, None, &[])
            .map_err(|source| Error::Map { name: "PODS", source })?;
        let role = format!("pod-{ifindex}");
        let dir = links_dir(&self.config.bpffs_dir);
        for (program, attach_type) in POD_PROGRAMS {
            remove_link(&self.link_pin(&format!("{role}-{program}")))?;
            detach_classic(&Filter::new(ifindex, attach_type, &role), &dir)?;
        }
        Ok(())
    }

    /// Detaches all programs and removes all maps below `bpffs_dir`. Nothing there is no error.
    pub fn remove_all(bpffs_dir: &Path) -> Result<(), Error> {
        // Links first: while one is attached its program may still write to the maps.
        for dir in [links_dir(bpffs_dir), maps_dir(bpffs_dir)] {
            let failed = |source| Error::Prepare { path: dir.clone(), source };
            let entries = match fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed)?,
            };
            for entry in entries {
                let path = entry.map_err(failed)?.path();
                match Filter::parse(&file_name(&path)) {
                    Some(filter) => detach_classic(&filter, &dir)?,
                    None if dir.ends_with("links") => remove_link(&path)?,
                    None => remove_pin(&path)?,
                }
            }
            fs::remove_dir(&dir).map_err(failed)?;
        }
        let maps_dir = maps_dir(bpffs_dir);
        let failed = |source| Error::Prepare { path: kept::programs_dir(&maps_dir), source };
        kept::remove_all(&maps_dir).map_err(failed)?;
        mount::remove_bpffs(bpffs_dir)
    }

    pub(crate) fn attach_all(&self) -> Result<(), Error> {
        for (program, attach_type) in CGROUP_PROGRAMS {
            let fd = self.programs.get(program)?;
            link::attach_cgroup(fd, &self.config.cgroup_dir, attach_type, &self.link_pin(program)).map_err(
                |source| Error::Attach {
                    program,
                    target: self.config.cgroup_dir.display().to_string(),
                    source,
                },
            )?;
        }
        self.forget_xdp_links()?;
        for uplink in &self.config.uplinks {
            self.attach_uplink(uplink)?;
        }
        self.adopt_interfaces()
    }

    /// Replaces the programs of pod interfaces that are attached already. Pins of interfaces that are gone go, and
    /// those of uplinks that are none any more.
    fn adopt_interfaces(&self) -> Result<(), Error> {
        let dir = links_dir(&self.config.bpffs_dir);
        let failed = |source| Error::Prepare { path: dir.clone(), source };
        let mut interfaces = HashSet::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = file_name(&path);
            if let Some(filter) = Filter::parse(&name) {
                let is_pod = filter.role == format!("pod-{}", filter.ifindex);
                let is_uplink =
                    self.config.uplinks.iter().any(|uplink| filter.role == format!("uplink-{uplink}"));
                let exists = sys::interface_name(filter.ifindex).is_ok();
                if is_pod && exists {
                    interfaces.insert(filter.ifindex);
                } else if !is_uplink || !exists {
                    detach_classic(&filter, &dir)?;
                }
                continue;
            }
            if name.starts_with("uplink-")
                && !self.config.uplinks.iter().any(|uplink| is_uplink_pin(&name, uplink))
            {
                remove_link(&path)?;
                continue;
            }
            let ifindex =
                name.strip_prefix("pod-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
            let Some(ifindex) = ifindex else { continue };
            if link::is_defunct(&path).map_err(failed)? {
                remove_link(&path)?;
            } else {
                interfaces.insert(ifindex);
            }
        }
        for ifindex in interfaces {
            if let Err(error) = self.attach_pod_programs(ifindex) {
                // The interface went between the look and the attachment.
                warn!(ifindex, %error, "cannot take over a pod interface");
            }
        }
        Ok(())
    }

    fn attach_interface(
        &self,
        ifindex: u32,
        role: &str,
        programs: &[(&'static str, u32)],
    ) -> Result<(), Error> {
        for (program, attach_type) in programs.iter().copied() {
            let fd = self.programs.get(program)?;
            let attached = match self.config.packet_attachment {
                PacketAttachment::Probe => link::attach_interface(
                    fd,
                    ifindex,
                    attach_type,
                    &self.link_pin(&format!("{role}-{program}")),
                ),
                PacketAttachment::Classic => Err(io::ErrorKind::Unsupported.into()),
            };
            let attached = match attached {
                Err(error) if lacks_tcx(&error) => {
                    let filter = Filter::new(ifindex, attach_type, role);
                    classic::attach(fd, &filter, &links_dir(&self.config.bpffs_dir))
                }
                other => other,
            };
            attached.map_err(|source| Error::Attach {
                program,
                target: format!("interface {ifindex}"),
                source,
            })?;
        }
        Ok(())
    }

    pub(crate) fn link_pin(&self, name: &str) -> PathBuf {
        links_dir(&self.config.bpffs_dir).join(name)
    }
}

pub(crate) fn links_dir(bpffs_dir: &Path) -> PathBuf {
    bpffs_dir.join("links")
}

/// What the kernel says to an attach type that it does not know.
fn lacks_tcx(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(libc::EINVAL)
}

fn detach_classic(filter: &Filter, links_dir: &Path) -> Result<(), Error> {
    classic::detach(filter, links_dir).map_err(|source| Error::Prepare { path: links_dir.to_owned(), source })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_uplink_pin(pin: &str, uplink: &str) -> bool {
    let programs = UPLINK_PROGRAMS.iter().map(|(program, _)| *program).chain([XDP_PROGRAM]);
    programs.into_iter().any(|program| pin == format!("uplink-{uplink}-{program}"))
}

pub(crate) fn remove_link(path: &Path) -> Result<(), Error> {
    link::remove(path).map_err(|source| Error::Prepare { path: path.to_owned(), source })
}

fn remove_pin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Prepare { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
