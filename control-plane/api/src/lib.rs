//! hawser-api
