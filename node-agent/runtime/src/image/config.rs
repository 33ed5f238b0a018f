//! The documents that describe an image: index, manifest, configuration. Both spellings, OCI's and
//! Docker's schema 2, have the same shape; unknown fields are passed over.

use std::collections::HashMap;

use serde::Deserialize;

use crate::ids::digest_of;

/// Media types to ask a registry for.
pub(super) const ACCEPTED: &[&str] = &[OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_LIST];
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) variant: String,
}

/// What a reference can point at.
#[derive(Debug, PartialEq)]
pub(super) enum Document {
    Index(Index),
    Manifest(Manifest),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

impl Document {
    /// The document and its media type.
    pub(super) fn parse(bytes: &[u8]) -> Result<(Self, String), String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            schema_version: u32,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let invalid = |e: serde_json::Error| format!("manifest does not parse: {e}");
        let head: Head = serde_json::from_slice(bytes).map_err(invalid)?;
        if head.schema_version != 2 {
            return Err(format!("manifest schema version {} is not supported", head.schema_version));
        }
        if head.manifests.is_some() {
            let index = serde_json::from_slice(bytes).map_err(invalid)?;
            return Ok((Self::Index(index), head.media_type.unwrap_or_else(|| OCI_INDEX.to_owned())));
        }
        let manifest = serde_json::from_slice(bytes).map_err(invalid)?;
        Ok((Self::Manifest(manifest), head.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned())))
    }
}

impl Index {
    /// The image for this machine; of several variants the first.
    pub(super) fn choose(&self, architecture: &str) -> Option<&Descriptor> {
        let variant = if architecture == "arm64" { "v8" } else { "" };
        let fits = |d: &&Descriptor| {
            d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture)
        };
        let exact = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.variant == variant);
        let fitting: Vec<&Descriptor> = self.manifests.iter().filter(fits).collect();
        fitting.iter().copied().find(exact).or(fitting.first().copied())
    }

    /// The platforms on offer, for an error message.
    pub(super) fn platforms(&self) -> Vec<String> {
        let platforms = self.manifests.iter().filter_map(|d| d.platform.as_ref());
        platforms.map(|p| format!("{}/{}", p.os, p.architecture)).collect()
    }
}

/// This machine's architecture in Go's words, which images use.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "arm" => "arm",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// What an image says about the process to run in it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ProcessConfig {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) working_dir: Option<String>,
    pub(crate) user: String,
    pub(crate) stop_signal: Option<String>,
}

/// An image's configuration.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ImageConfig {
    pub(super) process: ProcessConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub(super) diff_ids: Vec<String>,
}

impl ImageConfig {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(default)]
            config: Option<RawProcess>,
            rootfs: RootFs,
        }
        #[derive(Deserialize)]
        struct RootFs {
            #[serde(default)]
            diff_ids: Vec<String>,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "PascalCase", default)]
        struct RawProcess {
            user: Option<String>,
            env: Option<Vec<String>>,
            entrypoint: Option<Vec<String>>,
            cmd: Option<Vec<String>>,
            working_dir: Option<String>,
            stop_signal: Option<String>,
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|e| format!("image configuration does not parse: {e}"))?;
        let process = raw.config.unwrap_or_default();
        Ok(Self {
            process: ProcessConfig {
                entrypoint: process.entrypoint.unwrap_or_default(),
                cmd: process.cmd.unwrap_or_default(),
                env: process.env.unwrap_or_default(),
                working_dir: process.working_dir,
                user: process.user.unwrap_or_default(),
                stop_signal: process.stop_signal.filter(|s| !s.is_empty()),
            },
            diff_ids: raw.rootfs.diff_ids,
        })
    }
}

/// Names of the snapshots of a stack of layers, as the OCI image specification defines chain ids.
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            Some(parent) => digest_of(format!("{parent} {diff_id}").as_bytes()),
            None => diff_id.clone(),
        };
        chain.push(id);
    }
    chain
}

/// containerd's garbage collection follows these labels from a document to what it names.
pub(super) fn gc_labels(document: &Document, chosen: Option<&str>) -> HashMap<String, String> {
    match document {
        Document::Index(_) => {
            let child =
                chosen.map(|digest| ("containerd.io/gc.ref.content.m.0".to_owned(), digest.to_owned()));
            child.into_iter().collect()
        }
        Document::Manifest(manifest) => {
            let config = ("containerd.io/gc.ref.content.config".to_owned(), manifest.config.digest.clone());
            let layers = manifest.layers.iter().enumerate();
            let layers =
                layers.map(|(i, l)| (format!("containerd.io/gc.ref.content.l.{i}"), l.digest.clone()));
            layers.chain([config]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(os: &str, architecture: &str, variant: &str, digest: &str) -> Descriptor {
        let platform = Platform { os: os.into(), architecture: architecture.into(), variant: variant.into() };
        Descriptor { media_type: String::new(), digest: digest.into(), size: 1, platform: Some(platform) }
    }

    #[test]
    fn index_yields_the_image_of_this_platform() {
        let index = Index {
            manifests: vec![
                descriptor("unknown", "unknown", "", "attestation"),
                descriptor("windows", "amd64", "", "windows"),
                descriptor("linux", "arm64", "v9", "arm-new"),
                descriptor("linux", "arm64", "v8", "arm"),
                descriptor("linux", "amd64", "", "pc"),
            ],
        };
        let chosen = |arch| index.choose(arch).map(|d| d.digest.as_str());
        assert_eq!(chosen("amd64"), Some("pc"));
        assert_eq!(chosen("arm64"), Some("arm"));
        assert_eq!(chosen("s390x"), None);
    }

    #[test]
    fn documents_are_told_apart_by_their_content() {
        let index = br#"{"schemaVersion":2,"manifests":[{"digest":"sha256:a","size":3,"mediaType":"x"}]}"#;
        let (document, media_type) = Document::parse(index).unwrap();
        assert!(matches!(document, Document::Index(_)));
        assert_eq!(media_type, OCI_INDEX);
        let manifest = br#"{"schemaVersion":2,"mediaType":"m","config":{"digest":"c","size":1},"layers":[]}"#;
        let (document, media_type) = Document::parse(manifest).unwrap();
        assert!(matches!(document, Document::Manifest(_)));
        assert_eq!(media_type, "m");
        assert!(Document::parse(br#"{"schemaVersion":1}"#).is_err());
        assert!(Document::parse(b"<html>").is_err());
    }

    #[test]
    fn chain_id_is_a_digest_of_the_chain() {
        let diffs = ["sha256:aa".to_owned(), "sha256:bb".to_owned()];
        let chain = chain_ids(&diffs);
        assert_eq!(chain[0], "sha256:aa");
        assert_eq!(chain[1], digest_of(b"sha256:aa sha256:bb"));
    }

    #[test]
    fn configuration_may_leave_out_nearly_everything() {
        let config = ImageConfig::parse(br#"{"config":null,"rootfs":{"type":"layers"}}"#).unwrap();
        assert_eq!(config.process, ProcessConfig::default());
        let text = br#"{"config":{"Cmd":["sh"],"Env":["A=1"],"User":"web","StopSignal":"SIGQUIT"},
            "rootfs":{"diff_ids":["sha256:aa"]}}"#;
        let config = ImageConfig::parse(text).unwrap();
        assert_eq!(config.process.cmd, ["sh"]);
        assert_eq!(config.process.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.diff_ids, ["sha256:aa"]);
    }
}
