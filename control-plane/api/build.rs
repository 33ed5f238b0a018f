//! Generates the gRPC code of `hawser.v1` and its descriptor set (for server reflection).

use std::{env, path::PathBuf};

const PROTOS: [&str; 4] = [
    "proto/hawser/v1/object.proto",
    "proto/hawser/v1/watch.proto",
    "proto/hawser/v1/node.proto",
    "proto/hawser/v1/binding.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .bytes(".hawser.v1")
        .file_descriptor_set_path(out.join("hawser.v1.bin"))
        .compile_protos(&PROTOS, &["proto"])
        .map_err(|error| format!("{error} (is protoc installed? `cargo xtask setup` does that)"))?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
