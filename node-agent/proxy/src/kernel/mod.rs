//! Everything that touches the kernel: the bpf system call, typed maps, links, and loading.
//!
//! aya reads the object and satisfies the verifier. What aya 0.14 has no call for is here: batches of map entries,
//! and replacing the program of a pinned cgroup link.

pub(crate) mod classic;
pub(crate) mod kept;
pub(crate) mod link;
pub(crate) mod loader;
pub(crate) mod map;
pub(crate) mod mount;
pub(crate) mod ports;
pub(crate) mod sys;
