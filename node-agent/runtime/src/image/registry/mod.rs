//! Where an image comes from: the registry or one of its mirrors, with the credentials that it accepts.
//!
//! Plain HTTP is spoken only to hosts that the configuration says it of.

mod challenge;
mod hosts;
mod session;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use oci_spec::distribution::Reference;
use reqwest::StatusCode;

use super::config::{ACCEPTED, Descriptor};
use super::content::MAX_DOCUMENT_BYTES;
use crate::ids::digest_of;
use crate::{PullErrorKind, Registries, RegistryAuth};
use hosts::{Endpoint, endpoints};
use session::{Session, limited};

/// Why one source did not give what was asked.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: PullErrorKind,
    pub(super) message: String,
}

/// A registry that answered, and how it is talked to.
pub(super) struct Source {
    session: Session,
    /// Which of the pod's credentials it took; `None` where it was asked without.
    pub(super) credential: Option<usize>,
}

/// A registry that has an image's manifest.
pub(super) struct Found {
    pub(super) source: Source,
    pub(super) manifest: Bytes,
    /// How many tries it took, this one included.
    pub(super) tries: usize,
}

/// A blob as it arrives.
pub(super) struct Blob {
    pub(super) stream: BoxStream<'static, Result<Bytes, std::io::Error>>,
    /// The first byte of the stream is this byte of the blob: 0 when the registry knows no ranges.
    pub(super) offset: u64,
}

impl Source {
    /// Asks the mirrors and then the registry itself, each with every credential there is, for the
    /// manifest of `image`. Returns the first that has it; the first `skipped` tries are left out.
    ///
    /// The failure is the registry's own, as mirrors are only an attempt.
    pub(super) async fn find(
        image: &Reference,
        registries: &Registries,
        pod_auth: &[RegistryAuth],
        skipped: usize,
    ) -> Result<Found, Failure> {
        let (mut last, mut tries) = (None, 0);
        for endpoint in endpoints(image.registry(), registries)? {
            if image.digest().is_none() && !endpoint.can_resolve {
                continue;
            }
            for (credential, auth) in credentials(&endpoint, image.registry(), registries, pod_auth) {
                tries += 1;
                if tries <= skipped {
                    continue;
                }
                match Self::ask(endpoint.clone(), image, auth, credential).await {
                    Ok((source, manifest)) => return Ok(Found { source, manifest, tries }),
                    Err(failure) => last = Some(failure),
                }
            }
        }
        Err(last.unwrap_or(Failure {
            kind: PullErrorKind::RegistryUnavailable,
            message: "no registry to ask".into(),
        }))
    }

    pub(super) fn is_mirror(&self) -> bool {
        self.session.is_mirror()
    }

    async fn ask(
        endpoint: Endpoint,
        image: &Reference,
        auth: Option<RegistryAuth>,
        credential: Option<usize>,
    ) -> Result<(Self, Bytes), Failure> {
        let session = Session::new(endpoint, image.registry(), image.repository(), auth)?;
        let source = Self { session, credential };
        let bytes = match (image.digest(), image.tag()) {
            (Some(digest), _) => source.manifest_by_digest(digest).await?,
            (None, tag) => source.manifest(tag.unwrap_or("latest")).await?,
        };
        Ok((source, bytes))
    }

    /// A manifest or index by digest, which is checked.
    pub(super) async fn manifest_by_digest(&self, digest: &str) -> Result<Bytes, Failure> {
        let bytes = self.manifest(digest).await?;
        let found = digest_of(&bytes);
        if found != digest {
            let message = format!("manifest {digest} has digest {found}");
            return Err(Failure { kind: PullErrorKind::DigestMismatch, message });
        }
        Ok(bytes)
    }

    async fn manifest(&self, reference: &str) -> Result<Bytes, Failure> {
        let answer = self.session.get(&format!("manifests/{reference}"), ACCEPTED, 0).await?;
        let url = answer.url().to_string();
        limited(&url, answer).await.map(Bytes::from)
    }

    /// The blob from byte `offset` on, or from its beginning where the registry cannot do that. Its
    /// digest is not verified.
    pub(super) async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<Blob, Failure> {
        let answer = self.session.get(&format!("blobs/{}", blob.digest), &[], offset).await?;
        let offset = if answer.status() == StatusCode::PARTIAL_CONTENT { offset } else { 0 };
        let stream = answer.bytes_stream().map(|chunk| chunk.map_err(std::io::Error::other)).boxed();
        Ok(Blob { stream, offset })
    }
}

/// In the order in which they are tried, those of the pod with their place. The pod's credentials are for the registry
/// that its image names, not for mirrors.
fn credentials(
    endpoint: &Endpoint,
    registry: &str,
    registries: &Registries,
    pod_auth: &[RegistryAuth],
) -> Vec<(Option<usize>, Option<RegistryAuth>)> {
    let of_pod = if endpoint.is_mirror { &[] } else { pod_auth };
    let of_pod = of_pod.iter().enumerate().map(|(index, auth)| (Some(index), Some(auth.clone())));
    let named = if endpoint.is_mirror { endpoint.host.as_str() } else { registry };
    let of_node = registries.auth.get(named).map(|auth| (None, Some(auth.clone())));
    of_pod.chain(of_node).chain([(None, None)]).collect()
}
