//! hawser-apiserver
