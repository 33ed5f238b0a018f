//! All maps. Each but the scratch is pinned in the node's bpffs; sizes given here are defaults that the agent may change when it
//! makes them.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, SkStorage},
    macros::btf_map,
};
use hawser_ebpf_abi::{
    Addr, Affinity, AffinityKey, Backend, ConnectedPeer, Flow, FlowBucket, FlowKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, MaglevBlock, MemberKey, PeerPlace, PodLink, RangeSubject,
    ServiceCounters, Settings, UdpPeer, UdpPeers, XdpLinks, flow, fragment, pod, reason, service,
    socket::{self, OverflowKey},
};

use crate::ways::Ways;

/// Entries are allocated when they are written: a small cluster does not pay for a large one's table.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

/// The values begin at a page, so that those of 64 bytes are cache lines. (Other arrays begin 16 bytes behind one.)
const IN_PAGES: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

/// Settings of the node. Written by the agent, 1 entry.
#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();

/// Frontends. Written by the agent, which reports an error when it is full. 68 bytes and the hash's own 52 each.
#[btf_map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, Frontend, 131_072, NO_PREALLOC> = HashMap::new();

/// Backend slots. Written by the agent, which reports an error when no range is free. 24 bytes each (padded).
#[btf_map]
pub(crate) static BACKENDS: Array<Backend, 524_288> = Array::new();

/// Backends of UDP services and of services with affinity, and the sets that they are in. Written by the agent.
#[btf_map]
pub(crate) static MEMBERS: HashMap<MemberKey, u32, 262_144, NO_PREALLOC> = HashMap::new();

/// Maglev tables, 32 entries in 64 bytes. Written by the agent, which reports a service that finds no room: it is
/// served by a plain hash.
#[btf_map]
pub(crate) static MAGLEV: Array<MaglevBlock, 262_144> = Array::new();

/// Backends that clients of services with affinity keep, 56 bytes and the hash's own 48 each. Written by the programs;
/// the agent removes what has expired. A client that finds it full is served, not remembered, and counted.
#[btf_map]
pub(crate) static AFFINITY: HashMap<AffinityKey, Affinity, 131_072, NO_PREALLOC> = HashMap::new();

/// Source ranges of load balancer addresses. Written by the agent, which reports a service whose list finds no room:
/// its addresses let nobody in.
#[btf_map]
pub(crate) static SOURCE_RANGES: LpmTrie<RangeSubject, u32, 65_536> = LpmTrie::new();

/// Network namespaces whose sockets are left alone, by cookie. Written by the agent, which gets an error when it is
/// full.
#[btf_map]
pub(crate) static OPTED_OUT: HashMap<u64, u32, 4_096, NO_PREALLOC> = HashMap::new();

/// What connected sockets asked for, 64 bytes each. Written by `connect`, read by `getpeername` and `recvmsg`; freed by
/// `sock_release`.
#[btf_map]
pub(crate) static PEERS: Array<PeerPlace, { socket::PEER_PLACES as usize }, IN_PAGES> = Array::new();

/// The same, of sockets whose place in `PEERS` is taken; ends with the socket.
#[btf_map]
pub(crate) static CONNECTED: SkStorage<ConnectedPeer> = SkStorage::new();

/// What unconnected UDP sockets send to. Written by `sendmsg`, read by `recvmsg`; ends with the socket.
#[btf_map]
pub(crate) static UDP_SOCKETS: SkStorage<UdpPeers> = SkStorage::new();

/// Peers of UDP sockets that talk to many services. Written by `sendmsg`, emptied by `sock_release`; when it is full
/// the datagram is refused and counted.
#[btf_map]
pub(crate) static UDP_OVERFLOW: HashMap<OverflowKey, UdpPeer, 65_536, NO_PREALLOC> = HashMap::new();

/// Flows of the packet path, 128 bytes each. Written by the packet programs.
#[btf_map]
pub(crate) static FLOWS: Array<Flow, { flow::LEAST_FLOW_SLOTS as usize }, IN_PAGES> = Array::new();

/// Where the flow of a tuple is: buckets of 64 bytes. Written by the packet programs.
#[btf_map]
pub(crate) static FLOW_INDEX: Array<FlowBucket, { flow::LEAST_FLOW_SLOTS as usize }, IN_PAGES> = Array::new();

/// Ports of datagrams in parts. Written by the packet programs when a first part was translated; the oldest entry makes
/// room. 40 and 8 bytes and the hash's own 64 each.
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { fragment::FRAGMENTS as usize }> =
    LruHashMap::new();

/// Pods of this node by address. Written by the agent, which bounds their number.
#[btf_map]
pub(crate) static PODS: HashMap<Addr, PodLink, { pod::PODS as usize }, NO_PREALLOC> = HashMap::new();

/// Interfaces of the node with the program `from_wire_xdp`. Written by the agent, 1 entry.
#[btf_map]
pub(crate) static XDP_LINKS: Array<XdpLinks, 1> = Array::new();

/// Ways out of this CPU's packets at tc. Not pinned.
#[btf_map]
pub(crate) static WAYS: Ways = Ways::new();

/// Ways out of this CPU's packets at XDP. Not pinned.
#[btf_map]
pub(crate) static WAYS_AT_XDP: Ways = Ways::new();

/// Backends towards which every source port of the node was in use, and until when none is looked for again. Written
/// by the packet programs, read by the agent; the oldest entry makes room. The key is a reply tuple without port.
#[btf_map]
pub(crate) static EXHAUSTED: LruHashMap<FlowKey, u64, 1024> = LruHashMap::new();

/// ICMP errors that this CPU has sent: the second that is counted, and the number. Not pinned.
#[btf_map]
pub(crate) static ANSWERS: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// Counters of each service port, per CPU, 16 bytes and the hash's own 56 each. Written by the programs; the agent
/// removes those of service ports that are gone.
#[btf_map]
pub(crate) static SERVICE_COUNTERS: PerCpuHashMap<
    u32,
    ServiceCounters,
    { service::SERVICE_COUNTERS as usize },
    NO_PREALLOC,
> = PerCpuHashMap::new();

/// Counters per CPU, by reason.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { reason::COUNTERS as usize }> = PerCpuArray::new();

/// The frontend that a packet program works with. Not pinned.
#[btf_map]
pub(crate) static FRONTEND_SCRATCH: PerCpuArray<Frontend, 1> = PerCpuArray::new();

/// The packet that a packet program works on. Not pinned.
#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<crate::packet::Packet, 1> = PerCpuArray::new();
