//! control-plane

fn main() {}
