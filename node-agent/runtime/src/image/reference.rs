//! Image references: what pods write, made complete the way every container runtime does it.

use oci_spec::distribution::Reference;

use crate::{Error, PullErrorKind, Result};

/// `docker.io/library/<name>:latest` for `<name>`, and so on.
pub(crate) fn parse(image: &str) -> Result<Reference> {
    let refused = |reason: String| Error::Pull {
        image: image.to_owned(),
        kind: PullErrorKind::InvalidReference,
        message: format!("couldn't parse image name {image:?}: {reason}"),
    };
    let reference: Reference = image.parse().map_err(|e| refused(format!("{e}")))?;
    // The crate takes a first part with capitals for a host, and then for a part of the name.
    if reference.repository().bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(refused("repository name must be lowercase".into()));
    }
    Ok(reference)
}

/// The name under which an image is recorded. A digest says more than a tag beside it.
pub(crate) fn record_name(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest_name(reference, digest),
        (None, tag) => format!("{}:{}", repository(reference), tag.unwrap_or("latest")),
    }
}

pub(crate) fn digest_name(reference: &Reference, digest: &str) -> String {
    format!("{}@{digest}", repository(reference))
}

fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// An image id rather than a reference: `sha256:<64 hex>`.
pub(crate) fn is_image_id(image: &str) -> bool {
    let hex = image.strip_prefix("sha256:").unwrap_or("");
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_upstream_does() {
        #[track_caller]
        fn check(image: &str, expected: &str) {
            assert_eq!(record_name(&parse(image).unwrap()), expected);
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        check("busybox", "docker.io/library/busybox:latest");
        check("busybox:1.36", "docker.io/library/busybox:1.36");
        check("someone/tool", "docker.io/someone/tool:latest");
        check("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9");
        check("localhost/x", "localhost/x:latest");
        check("127.0.0.1:5000/x/y:1", "127.0.0.1:5000/x/y:1");
        check(&format!("busybox@{digest}"), &format!("docker.io/library/busybox@{digest}"));
        check(&format!("busybox:1@{digest}"), &format!("docker.io/library/busybox@{digest}"));
    }

    #[test]
    fn nonsense_is_refused() {
        for image in ["", "UPPER/case", "a b", "x:", "busybox@sha256:abc"] {
            let error = parse(image).unwrap_err();
            assert!(matches!(error, Error::Pull { kind: PullErrorKind::InvalidReference, .. }), "{image}");
        }
    }
}
