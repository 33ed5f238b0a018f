//! node-agent

fn main() {}
