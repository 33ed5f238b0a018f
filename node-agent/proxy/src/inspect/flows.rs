//! Flows for people. Pure: an entry of `FLOWS` and the time in, a line out.

use std::{fmt, net::SocketAddr, time::Duration};

use hawser_ebpf_abi::{
    Flow, IPPROTO_UDP,
    flow::{FLOW_CONFIRMED, FLOW_FIN_FORWARD, FLOW_FIN_REPLY, FLOW_RST_FORWARD, FLOW_SNAT, is_expired},
    service::Endpoint,
};

use crate::desired::ip;

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlowState {
    /// The client has not shown yet that the backend's answer reached it. The first to give way when the table is full.
    Unconfirmed,
    Established,
    /// A FIN or RST was seen.
    Closing,
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unconfirmed => "unconfirmed",
            Self::Established => "established",
            Self::Closing => "closing",
        })
    }
}

/// One flow of the packet path. Connections that were translated at their socket are no flows: nothing is done to
/// their packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowView {
    pub client: SocketAddr,
    pub service: SocketAddr,
    pub backend: SocketAddr,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    pub state: FlowState,
    /// What the backend sees instead of the client, where it is on another node.
    pub source: Option<SocketAddr>,
    /// Since the last packet; exact to a second.
    pub idle: Duration,
    pub service_id: u32,
}

/// `None` for a slot that is free or whose flow has expired.
pub(super) fn view(flow: &Flow, now_ns: u64) -> Option<FlowView> {
    if flow.forward.protocol == 0 || is_expired(flow, now_ns) {
        return None;
    }
    let closing = FLOW_FIN_FORWARD | FLOW_FIN_REPLY | FLOW_RST_FORWARD;
    let state = if flow.is_closed() || flow.flags & closing != 0 {
        FlowState::Closing
    } else if flow.flags & FLOW_CONFIRMED != 0 {
        FlowState::Established
    } else {
        FlowState::Unconfirmed
    };
    let source = socket_address(flow.reply.destination_endpoint());
    Some(FlowView {
        client: socket_address(flow.forward.source_endpoint()),
        service: socket_address(flow.forward.destination_endpoint()),
        backend: socket_address(flow.reply.source_endpoint()),
        protocol: if flow.forward.protocol == IPPROTO_UDP { "UDP" } else { "TCP" },
        state,
        source: (flow.flags & FLOW_SNAT != 0).then_some(source),
        idle: Duration::from_nanos(now_ns.saturating_sub(flow.last_seen_ns)),
        service_id: flow.service_id,
    })
}

fn socket_address(endpoint: Endpoint) -> SocketAddr {
    SocketAddr::new(ip(&endpoint.addr), u16::from_be(endpoint.port_be))
}

#[cfg(test)]
mod tests {
    use hawser_ebpf_abi::{FlowKey, IPPROTO_TCP, flow::UNCONFIRMED_NS, v4_mapped};

    use super::*;

    const NOW_NS: u64 = 1_000_000_000_000;

    fn flow(flags: u32, idle_ns: u64) -> Flow {
        let endpoint = |last, port: u16| Endpoint::new(v4_mapped([10, 0, 0, last]), port.to_be());
        Flow {
            forward: FlowKey::new(endpoint(1, 4000), endpoint(2, 80), IPPROTO_TCP),
            reply: FlowKey::new(endpoint(3, 8080), endpoint(4, 61000), IPPROTO_TCP),
            flags,
            last_seen_ns: NOW_NS - idle_ns,
            ..Flow::default()
        }
    }

    #[test]
    fn flow_is_shown_from_client_to_backend() {
        let view = view(&flow(FLOW_CONFIRMED | FLOW_SNAT, 2_000_000_000), NOW_NS).unwrap();
        assert_eq!(view.client.to_string(), "10.0.0.1:4000");
        assert_eq!(view.service.to_string(), "10.0.0.2:80");
        assert_eq!(view.backend.to_string(), "10.0.0.3:8080");
        assert_eq!(view.source.unwrap().to_string(), "10.0.0.4:61000");
        assert_eq!((view.state, view.idle), (FlowState::Established, Duration::from_secs(2)));
    }

    #[test]
    fn free_and_expired_slots_are_not_shown() {
        assert_eq!(view(&Flow::default(), NOW_NS), None);
        assert_eq!(view(&flow(0, UNCONFIRMED_NS + 1), NOW_NS), None);
        assert_eq!(view(&flow(0, 0), NOW_NS).unwrap().state, FlowState::Unconfirmed);
        assert_eq!(
            view(&flow(FLOW_CONFIRMED | FLOW_FIN_FORWARD, 0), NOW_NS).unwrap().state,
            FlowState::Closing
        );
    }
}
