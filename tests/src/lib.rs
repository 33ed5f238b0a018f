//! hawser-tests
