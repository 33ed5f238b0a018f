//! hawser-dns
