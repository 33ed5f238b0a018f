//! The service proxy of a node: Services and EndpointSlices become entries of the eBPF datapath's maps.

pub mod object;
