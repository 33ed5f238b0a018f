//! hawser-runtime
