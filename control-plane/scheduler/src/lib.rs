//! hawser-scheduler
