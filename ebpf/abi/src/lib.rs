//! hawser-ebpf-abi
