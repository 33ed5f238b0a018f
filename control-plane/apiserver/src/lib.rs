//! hawser-apiserver
pub mod discovery;
pub mod kinds;
pub mod table;
