//! Generates the gRPC code of the interfaces between a kubelet and its plugins.

const PROTOS: [&str; 5] = [
    "proto/csi.proto",
    "proto/device_plugin.proto",
    "proto/dra.proto",
    "proto/dra_v1beta1.proto",
    "proto/plugin_registration.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure()
        .compile_protos(&PROTOS, &["proto"])
        .map_err(|error| format!("{error} (is protoc installed? `cargo xtask setup` does that)"))?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
