//! hawser-controllers
