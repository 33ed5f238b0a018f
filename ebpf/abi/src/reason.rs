//! What is counted: one number per event, per CPU, in `COUNTERS`. Reasons are only appended.

/// Index into `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A socket was connected to a backend.
    SocketConnected = 0,
    /// A datagram of an unconnected socket was sent to a backend.
    SocketSent = 1,
    /// A socket was refused, because the service has no backend.
    SocketRefusedNoBackend = 2,
    /// A UDP socket chose another backend, because the one it had is gone.
    SocketBackendReplaced = 3,
    /// A datagram was refused, because what the socket remembers is full.
    SocketPeersFull = 4,
    /// A packet of a known flow was translated.
    PacketForwarded = 5,
    /// A packet started a new flow.
    PacketNewFlow = 6,
    /// A reply was translated back.
    PacketReplied = 7,
    /// A packet was for a service without backend.
    PacketNoBackend = 8,
    /// Dropped: every flow that could have made room is established.
    DropFlowTableFull = 9,
    /// Dropped: no free source port towards this backend was found.
    DropNoSourcePort = 10,
    /// Dropped: the node has no address of the packet's family to send from.
    DropNoSourceAddress = 11,
    /// Dropped: no route, or no neighbour, towards the backend or client.
    DropNoRoute = 12,
    /// Dropped: the packet could not be rewritten.
    DropRewrite = 13,
    /// Dropped: the hop limit ran out.
    DropHopLimit = 14,
    /// Passed on: a header was cut short or malformed.
    PassMalformed = 15,
    /// Passed on: a fragment whose first part was not seen, or was no service's.
    PassFragment = 16,
    /// An unconfirmed flow gave way to a new one.
    FlowEvicted = 17,
    /// Dropped: `externalTrafficPolicy: Local`, and no backend on this node.
    DropNoLocalBackend = 18,
    /// Dropped: the source is outside of the service's `loadBalancerSourceRanges`.
    DropSourceRange = 19,
    /// A socket of the node was refused, because the node is outside of the service's `loadBalancerSourceRanges`.
    SocketRefusedSourceRange = 20,
    /// A client of a service with affinity was served and not remembered, because the table of clients is full.
    AffinityFull = 21,
    /// Passed on: IPv6 extension headers that are not walked (too many, or a route that is not finished).
    PassExtensionHeaders = 22,
    /// Dropped: for a service without backend, and no answer could be made.
    DropNoBackend = 23,
    /// A packet for a service without backend was answered at once (a reset, port unreachable).
    AnsweredNoBackend = 24,
    /// A packet was too large for its way, and its sender was told.
    AnsweredTooBig = 25,
    /// Dropped: too large for its way, and no answer could be made.
    DropTooBig = 26,
    /// Dropped: an answer by ICMP was due, but this CPU has sent its share of this second.
    AnswersLimited = 27,
    /// An ICMP error about a flow's packet was translated.
    IcmpErrorTranslated = 28,
    /// A packet went straight to a pod of this node.
    PacketToPod = 29,
    /// A packet of a pod went straight out of the node.
    PacketToNode = 30,
    /// Passed on: a pod sent from an address that is not its own. The host decides; no service is served to it.
    PassForeignSource = 31,
    /// A packet was sent on at XDP, before the host made anything of it. Counted as forwarded or replied, too.
    PacketAtXdp = 32,
    /// A frontend changed each time that it was read, so that its client was not served by it this once.
    FrontendTorn = 33,
    /// A packet was sent to its backend's node as it is, which answers the client itself. Counted as forwarded, too.
    PacketDsr = 34,
}

/// Number of reasons, and size of `COUNTERS` (with room to append).
pub const REASONS: usize = 35;
pub const COUNTERS: u32 = 64;
const _: () = assert!(REASONS <= COUNTERS as usize);

/// Name of each reason as metrics and commands show it, in order.
pub const NAMES: [&str; REASONS] = [
    "socket_connected",
    "socket_sent",
    "socket_refused_no_backend",
    "socket_backend_replaced",
    "socket_peers_full",
    "packet_forwarded",
    "packet_new_flow",
    "packet_replied",
    "packet_no_backend",
    "drop_flow_table_full",
    "drop_no_source_port",
    "drop_no_source_address",
    "drop_no_route",
    "drop_rewrite",
    "drop_hop_limit",
    "pass_malformed",
    "pass_fragment",
    "flow_evicted",
    "drop_no_local_backend",
    "drop_source_range",
    "socket_refused_source_range",
    "affinity_full",
    "pass_extension_headers",
    "drop_no_backend",
    "answered_no_backend",
    "answered_too_big",
    "drop_too_big",
    "answers_limited",
    "icmp_error_translated",
    "packet_to_pod",
    "packet_to_node",
    "pass_foreign_source",
    "packet_at_xdp",
    "frontend_torn",
    "packet_dsr",
];
