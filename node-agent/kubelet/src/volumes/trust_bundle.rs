//! Roots of trust for projected volumes: ClusterTrustBundles (KEP-3257), by name or by their signer and labels.
//!
//! The API server serves them where it was told to (`certificates.k8s.io/v1beta1`). They are read whenever the volume is
//! written, and again after a while; a file has each certificate once, without what stands around it. What was read is noted
//! beside the pod's volumes, for a start without the API.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_api::GroupVersionResource;
use hawser_api::client::{Client, ListOptions};
use hawser_api::resource::Target;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{ClusterTrustBundleProjection, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::VolumeError;
use crate::durable;

const RESOURCE: GroupVersionResource =
    GroupVersionResource::fixed("certificates.k8s.io", "v1beta1", "clustertrustbundles");
const CERTIFICATE: &str = "CERTIFICATE";
/// Letters in a line of PEM (RFC 7468).
const LINE: usize = 64;

/// What projections show, by the path of their file.
pub type Roots = BTreeMap<String, String>;

/// Directory of a pod in which each volume's roots are noted: the volume itself is in memory, and lost with the machine's.
pub(super) const NOTES: &str = "trust-bundles";

/// Notes what a volume shows, unless that is on disk. Blocks.
pub(super) fn write_note(path: &Path, roots: &Roots) -> io::Result<()> {
    let content = serde_json::to_vec(roots)?;
    match fs::read(path) {
        Ok(known) if known == content => Ok(()),
        _ => durable::write(path, &content),
    }
}

/// What was noted of the volume by an agent that had the API.
///
/// # Errors
/// Nothing, or not all that the volume asks for now.
pub(super) fn noted(path: &Path, volume: &Volume) -> Result<Roots, VolumeError> {
    let missing = |why: &dyn std::fmt::Display| {
        VolumeError::TrustBundle(format!("the API does not answer, and no trust bundles are noted: {why}"))
    };
    let content = fs::read(path).map_err(|error| missing(&error))?;
    let roots: Roots = serde_json::from_slice(&content).map_err(|error| missing(&error))?;
    match projections(volume).find(|projection| !roots.contains_key(&projection.path)) {
        Some(projection) => Err(missing(&format_args!("none for {:?}", projection.path))),
        None => Ok(roots),
    }
}

pub(super) fn projections(volume: &Volume) -> impl Iterator<Item = &ClusterTrustBundleProjection> {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    sources.filter_map(|source| source.cluster_trust_bundle.as_ref())
}

/// Reads what the volume's projections ask for.
pub(super) async fn roots_of(client: &dyn Client, volume: &Volume) -> Result<Roots, VolumeError> {
    let mut roots = Roots::new();
    for projection in projections(volume) {
        let bundles = list(client, projection).await?;
        roots.insert(projection.path.clone(), combined(projection, &bundles)?);
    }
    Ok(roots)
}

async fn list(
    client: &dyn Client,
    projection: &ClusterTrustBundleProjection,
) -> Result<Vec<ClusterTrustBundle>, VolumeError> {
    let options = match (&projection.name, &projection.signer_name) {
        (Some(name), _) => {
            ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() }
        }
        // No selector asks for none, an empty one for all.
        (None, Some(signer)) => match &projection.label_selector {
            None => return Ok(Vec::new()),
            Some(selector) => ListOptions {
                field_selector: format!("spec.signerName={signer}"),
                label_selector: selector_text(selector),
            },
        },
        (None, None) => return Ok(Vec::new()),
    };
    let listed = client.list(&Target::collection(RESOURCE, None), &options).await;
    let listed = listed.map_err(|error| match error.is_not_found() {
        true => VolumeError::Unserved("certificates.k8s.io/v1beta1 ClusterTrustBundles"),
        false => VolumeError::TrustBundle(error.to_string()),
    })?;
    let parse = |bytes: &bytes::Bytes| serde_json::from_slice(bytes);
    let parsed: Result<_, _> = listed.items.iter().map(parse).collect();
    parsed.map_err(|error: serde_json::Error| VolumeError::TrustBundle(error.to_string()))
}

/// As a list's query has it.
fn selector_text(selector: &LabelSelector) -> String {
    let equal = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let others = selector.match_expressions.iter().flatten().map(|asked| {
        let (key, values) =
            (&asked.key, asked.values.iter().flatten().cloned().collect::<Vec<_>>().join(","));
        match asked.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.clone(),
        }
    });
    equal.chain(others).collect::<Vec<_>>().join(",")
}

/// The certificates of all bundles, each once, in an order of their own.
fn combined(
    projection: &ClusterTrustBundleProjection,
    bundles: &[ClusterTrustBundle],
) -> Result<String, VolumeError> {
    if bundles.is_empty() && projection.optional != Some(true) {
        return Err(VolumeError::TrustBundle(match (&projection.name, &projection.signer_name) {
            (Some(name), _) => format!("clustertrustbundle {name:?} not found"),
            (None, signer) => format!(
                "combination of signerName {:?} and labelSelector matched zero ClusterTrustBundles",
                signer.as_deref().unwrap_or_default()
            ),
        }));
    }
    let mut found = BTreeSet::new();
    for bundle in bundles {
        for certificate in CertificateDer::pem_slice_iter(bundle.spec.trust_bundle.as_bytes()) {
            let unreadable = |error| {
                let name = bundle.metadata.name.as_deref().unwrap_or_default();
                VolumeError::TrustBundle(format!("clustertrustbundle {name:?}: {error}"))
            };
            found.insert(certificate.map_err(unreadable)?.to_vec());
        }
    }
    Ok(found.iter().map(|der| pem(CERTIFICATE, der)).collect())
}

/// One block of PEM (RFC 7468).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(LINE) {
        out.extend(line.iter().map(|letter| char::from(*letter)));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bundle(certificates: &[&[u8]]) -> ClusterTrustBundle {
        let text: String =
            certificates.iter().map(|der| format!("a remark\n{}", pem(CERTIFICATE, der))).collect();
        let bundle = json!({ "metadata": { "name": "b" }, "spec": { "trustBundle": text } });
        serde_json::from_value(bundle).expect("a bundle")
    }

    fn projection(fields: serde_json::Value) -> ClusterTrustBundleProjection {
        let mut projection = json!({ "path": "ca.pem" });
        projection.as_object_mut().expect("a map").extend(fields.as_object().expect("a map").clone());
        serde_json::from_value(projection).expect("a projection")
    }

    #[test]
    fn certificates_are_shown_once_and_alone() {
        let (one, two) = ([1; 100], [2; 10]);
        let bundles = [bundle(&[&two, &one]), bundle(&[&two])];
        let shown = combined(&projection(json!({ "signerName": "a.test/b" })), &bundles);
        assert_eq!(shown.ok(), Some(pem(CERTIFICATE, &one) + &pem(CERTIFICATE, &two)));
        assert!(pem(CERTIFICATE, &one).lines().all(|line| line.len() <= LINE));
    }

    #[test]
    fn what_is_not_there_is_told_unless_it_is_optional() {
        let told = |fields| combined(&projection(fields), &[]).map_err(|error| error.to_string());
        let missing = Err("clustertrustbundle \"roots\" not found".to_owned());
        assert_eq!(told(json!({ "name": "roots" })), missing);
        assert_eq!(told(json!({ "name": "roots", "optional": true })), Ok(String::new()));
        let none = told(json!({ "signerName": "a.test/b" })).unwrap_err();
        assert!(none.contains("matched zero"), "{none}");
    }

    #[test]
    fn what_was_shown_is_known_without_the_api() {
        let dir = tempfile::tempdir().expect("a directory");
        let note = dir.path().join(NOTES).join("roots");
        let volume = |path: &str| -> Volume {
            let source = json!({ "clusterTrustBundle": { "name": "b", "path": path } });
            serde_json::from_value(json!({ "name": "roots", "projected": { "sources": [source] } }))
                .expect("a volume")
        };
        let told = noted(&note, &volume("ca.pem")).unwrap_err().to_string();
        assert!(told.starts_with("the API does not answer, and no trust bundles are noted"), "{told}");
        let roots = Roots::from([("ca.pem".to_owned(), pem(CERTIFICATE, &[1; 10]))]);
        for _ in 0..2 {
            write_note(&note, &roots).expect("written");
            assert_eq!(noted(&note, &volume("ca.pem")).expect("as noted"), roots);
        }
        assert!(noted(&note, &volume("other.pem")).is_err(), "the volume asks for another file");
    }

    #[test]
    fn selectors_are_written_as_queries() {
        let selector = json!({ "matchLabels": { "a": "b" }, "matchExpressions": [
            { "key": "c", "operator": "In", "values": ["d", "e"] },
            { "key": "f", "operator": "NotIn", "values": ["g"] },
            { "key": "h", "operator": "Exists" },
            { "key": "i", "operator": "DoesNotExist" },
        ] });
        let selector: LabelSelector = serde_json::from_value(selector).expect("a selector");
        assert_eq!(selector_text(&selector), "a=b,c in (d,e),f notin (g),h,!i");
        assert_eq!(selector_text(&LabelSelector::default()), "");
    }
}
