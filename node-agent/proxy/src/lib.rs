//! hawser-proxy
