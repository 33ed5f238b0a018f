//! The kinds of storage. No volume is ever attached, and no claim bound: neither is asked of an API server.

pub(crate) mod csi;
pub(crate) mod immutable;
pub(crate) mod lifecycles;
pub(crate) mod volumes;
