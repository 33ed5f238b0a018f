//! What a pod has of the network: a record on disk, a pinned namespace, a veth pair.
//!
//! The record is written before anything else is made and removed after everything else is gone. So after a crash at
//! any point the record tells what may be there, and an address in a record is given to nobody else.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use hawser_fault::point;
use ipnet::IpNet;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoVeth},
};
use serde::{Deserialize, Serialize};
use std::os::fd::AsRawFd;

use crate::{
    Error,
    addresses::Block,
    netlink::{Netlink, Route},
    netns, sysctl,
};

/// The link's name inside the pod.
const POD_LINK: &str = "eth0";
/// Pods' next hop: on no network, answered for by a permanent neighbour entry.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Link-layer address of the node's end of every pod link.
const NODE_MAC: [u8; 6] = [0x0a, 0x48, 0xee, 0xee, 0xee, 0xee];

/// Which pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodId {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// What a pod got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// The pinned namespace, for containers to join.
    pub netns_path: PathBuf,
    /// One a family, in the order of the node's blocks.
    pub ips: Vec<IpAddr>,
    /// The node's end of the pod's link.
    pub host_ifindex: u32,
    pub host_ifname: String,
    /// Link-layer address of the pod's own end.
    pub pod_mac: [u8; 6],
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    uid: String,
    namespace: String,
    name: String,
    ips: Vec<IpAddr>,
    host_ifname: String,
}

/// The pods that have addresses, by the records below `state_dir`: for commands that only look.
///
/// # Errors
/// Where there are no records yet, or one cannot be read.
pub fn pod_addresses(state_dir: &Path) -> Result<Vec<(PodId, Vec<IpAddr>)>, Error> {
    let folder = state_dir.join("pods");
    let mut pods = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::file("cannot read", &folder))? {
        let path = entry.map_err(Error::file("cannot read", &folder))?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            continue;
        }
        let bytes = match fs::read(&path) {
            // The pod went between the look at the folder and the one at its record.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(Error::file("cannot read", &path))?,
        };
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|source| Error::Record { path, source })?;
        let Record { uid, namespace, name, ips, .. } = record;
        pods.push((PodId { uid, namespace, name }, ips));
    }
    Ok(pods)
}

/// All pods of the node. Bounded by the node's address blocks.
pub(crate) struct Pods {
    records_dir: PathBuf,
    netns_dir: PathBuf,
    blocks: Vec<Block>,
    records: BTreeMap<String, Record>,
    /// Address that the node's own packets to its pods come from.
    node_ip: IpAddr,
    mtu: u32,
}

impl Pods {
    /// Reads the records of an earlier run.
    pub(crate) fn load(state_dir: &Path, cidrs: &[IpNet], node_ip: IpAddr, mtu: u32) -> Result<Self, Error> {
        let (records_dir, netns_dir) = (state_dir.join("pods"), state_dir.join("netns"));
        for folder in [&records_dir, &netns_dir] {
            fs::create_dir_all(folder).map_err(Error::file("cannot create", folder))?;
        }
        let blocks = cidrs.iter().map(|cidr| Block::new(*cidr)).collect();
        let mut pods = Self { records_dir, netns_dir, blocks, records: BTreeMap::new(), node_ip, mtu };
        let failed = |error| Error::file("cannot read", &pods.records_dir)(error);
        let entries: Vec<PathBuf> = fs::read_dir(&pods.records_dir)
            .map_err(failed)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()
            .map_err(failed)?;
        for path in entries {
            // A cut-off write leaves a temporary file, whose pod never got further.
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(&path).map_err(Error::file("cannot remove", &path))?;
                continue;
            }
            let bytes = fs::read(&path).map_err(Error::file("cannot read", &path))?;
            let record: Record =
                serde_json::from_slice(&bytes).map_err(|source| Error::Record { path, source })?;
            for ip in &record.ips {
                pods.blocks.iter_mut().any(|block| block.claim(*ip));
            }
            pods.records.insert(record.uid.clone(), record);
        }
        Ok(pods)
    }

    pub(crate) fn uids(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(String::as_str)
    }

    pub(crate) fn addresses(&self) -> BTreeMap<String, Vec<IpAddr>> {
        self.records.iter().map(|(uid, record)| (uid.clone(), record.ips.clone())).collect()
    }

    pub(crate) async fn attach(
        &mut self,
        netlink: &Netlink,
        pod: &PodId,
        given: Option<&Path>,
    ) -> Result<PodInterface, Error> {
        let record = match self.records.get(&pod.uid) {
            Some(record) => record.clone(),
            None => self.record(pod)?,
        };
        point("network: addresses noted");
        let netns_path = self.netns_dir.join(&record.uid);
        if let Some(given) = given
            && netns::is_another(&netns_path, given)?
        {
            // Of the pod's users before these; what is left of its link is in there.
            netlink.delete_link(&record.host_ifname).await?;
            netns::remove(&netns_path)?;
        }
        let netns = netns::ensure(&netns_path, given)?;
        point("network: namespace pinned");
        let host = match netlink.find_link(&record.host_ifname).await? {
            Some(link) => link,
            None => {
                netlink.add_link(&record.host_ifname, veth(&record.host_ifname, &netns, self.mtu)).await?
            }
        };
        point("network: link made");
        netlink.set_mac(host.index, &NODE_MAC).await?;
        sysctl::prepare_pod_link(&record.host_ifname)?;
        netlink.set_up(host.index).await?;
        point("network: link up");
        let ips = record.ips.clone();
        let mac = netns::run_inside(&netns, move || configure_pod_side(ips)).await?;
        point("network: pod's side set");
        for ip in &record.ips {
            netlink.replace_neighbour(host.index, *ip, &mac).await?;
            let source = (ip.is_ipv4() == self.node_ip.is_ipv4()).then_some(self.node_ip);
            netlink.replace_route(&Route { to: (*ip).into(), link: host.index, via: None, source }).await?;
        }
        point("network: routes set");
        Ok(PodInterface {
            netns_path,
            ips: record.ips,
            host_ifindex: host.index,
            host_ifname: record.host_ifname,
            // A veth has an address of six bytes, and the kernel gave one.
            pod_mac: mac.try_into().unwrap_or_default(),
        })
    }

    /// Takes addresses and writes them down.
    fn record(&mut self, pod: &PodId) -> Result<Record, Error> {
        let mut ips = Vec::new();
        for block in &mut self.blocks {
            match block.take() {
                Some(ip) => ips.push(ip),
                None => {
                    let range = block.range();
                    self.release(&ips);
                    return Err(Error::Exhausted(range));
                }
            }
        }
        let record = Record {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            ips,
            host_ifname: self.free_link_name(&pod.uid),
        };
        if let Err(error) = self.write(&record) {
            self.release(&record.ips);
            return Err(error);
        }
        self.records.insert(record.uid.clone(), record.clone());
        Ok(record)
    }

    /// Durable before it is visible, so that a crash leaves the old state or the new one.
    fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.records_dir.join(&record.uid);
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            file.sync_all()?;
            point("network: addresses written");
            fs::rename(&new, &path)?;
            File::open(&self.records_dir)?.sync_all()
        };
        write().map_err(Error::file("cannot write", &path))
    }

    fn release(&mut self, ips: &[IpAddr]) {
        for ip in ips {
            for block in &mut self.blocks {
                block.release(*ip);
            }
        }
    }

    /// `hw` and eleven digits of a hash of the uid: short enough for a link (15 bytes), and the same every time.
    fn free_link_name(&self, uid: &str) -> String {
        let mut hash = fnv1a(uid.as_bytes());
        loop {
            let name = format!("hw{:011x}", hash & 0xfff_ffff_ffff);
            if self.records.values().all(|record| record.host_ifname != name) {
                return name;
            }
            hash = hash.wrapping_add(1);
        }
    }

    pub(crate) async fn detach(&mut self, netlink: &Netlink, uid: &str) -> Result<(), Error> {
        let Some(record) = self.records.get(uid).cloned() else { return Ok(()) };
        netlink.delete_link(&record.host_ifname).await?;
        point("network: link removed");
        netns::remove(&self.netns_dir.join(uid))?;
        point("network: namespace removed");
        let path = self.records_dir.join(uid);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("cannot remove", &path)(error));
            }
            _ => {}
        }
        point("network: record removed");
        self.records.remove(uid);
        self.release(&record.ips);
        Ok(())
    }
}

/// A pair whose other end is born inside the pod's namespace.
fn veth(name: &str, netns: &File, mtu: u32) -> rtnetlink::packet_route::link::LinkMessage {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(POD_LINK)
        .mtu(mtu)
        .setns_by_fd(netns.as_raw_fd())
        .build();
    LinkVeth::new(name, POD_LINK).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).mtu(mtu).build()
}

/// Runs inside the pod's namespace; returns the link-layer address of its link.
async fn configure_pod_side(ips: Vec<IpAddr>) -> Result<Vec<u8>, Error> {
    let netlink = Netlink::open()?;
    netlink.set_up(netlink.link("lo").await?.index).await?;
    let link = netlink.link(POD_LINK).await?;
    for ip in &ips {
        netlink.replace_address(link.index, (*ip).into()).await?;
    }
    netlink.set_up(link.index).await?;
    for ip in &ips {
        let (gateway, all): (IpAddr, IpNet) = match ip {
            IpAddr::V4(_) => (GATEWAY_V4.into(), IpNet::V4(ipnet::Ipv4Net::default())),
            IpAddr::V6(_) => (GATEWAY_V6.into(), IpNet::V6(ipnet::Ipv6Net::default())),
        };
        netlink.replace_neighbour(link.index, gateway, &NODE_MAC).await?;
        let route = Route { to: all, link: link.index, via: Some(gateway), source: None };
        netlink.replace_route(&route).await?;
    }
    Ok(link.mac)
}

/// FNV-1a, 64 bits: short, and the same in every build.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
