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
use reqwest::StatusCode;

use super::config::{ACCEPTED, Descriptor};
use super::content::MAX_DOCUMENT_BYTES;
use super::reference::Reference;
use crate::ids::{digest_of, is_digest};
use crate::{PullErrorKind, Registries, RegistryAuth};
use hosts::{Endpoint, endpoints};
use session::{Session, limited};

/// The tag of an image that names none.
const LATEST: &str = "latest";
/// The header in which a registry says what it has (the distribution specification).
const CONTENT_DIGEST: &str = "docker-content-digest";

/// What a tag stands for.
struct Resolved {
    digest: String,
    /// Which of the pod's credentials it took to learn that.
    credential: Option<usize>,
}

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
        let endpoints = endpoints(image.registry(), registries)?;
        // What the tag means, once somebody has to be told who cannot say so.
        let mut resolved: Option<Option<Resolved>> = None;
        for endpoint in &endpoints {
            for (credential, auth) in credentials(endpoint, image.registry(), registries, pod_auth) {
                tries += 1;
                if tries <= skipped {
                    continue;
                }
                let mut told = None;
                if image.digest().is_none() && !endpoint.can_resolve {
                    if resolved.is_none() {
                        resolved = Some(Self::resolve(&endpoints, image, registries, pod_auth).await);
                    }
                    told = resolved.as_ref().and_then(Option::as_ref);
                    if told.is_none() {
                        continue;
                    }
                }
                match Self::ask(endpoint.clone(), image, auth, credential, told).await {
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

    /// The digest that the image's tag stands for, from the first host that can say so. `None` where none does: those are
    /// asked for the image itself, and what they say then is what is told.
    async fn resolve(
        endpoints: &[Endpoint],
        image: &Reference,
        registries: &Registries,
        pod_auth: &[RegistryAuth],
    ) -> Option<Resolved> {
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.can_resolve) {
            for (credential, auth) in credentials(endpoint, image.registry(), registries, pod_auth) {
                let session = Session::new(endpoint.clone(), image.registry(), image.repository(), auth);
                let Ok(session) = session else { continue };
                let source = Self { session, credential };
                if let Ok(digest) = source.digest(image.tag().unwrap_or(LATEST)).await {
                    return Some(Resolved { digest, credential });
                }
            }
        }
        None
    }

    /// `resolved` is what an image without a digest is asked for by, where the host cannot say what its tag means.
    async fn ask(
        endpoint: Endpoint,
        image: &Reference,
        auth: Option<RegistryAuth>,
        credential: Option<usize>,
        resolved: Option<&Resolved>,
    ) -> Result<(Self, Bytes), Failure> {
        let session = Session::new(endpoint, image.registry(), image.repository(), auth)?;
        // Whoever had to show credentials to learn what to ask for did not get it for nothing.
        let credential = credential.or(resolved.and_then(|resolved| resolved.credential));
        let source = Self { session, credential };
        let digest = image.digest().or(resolved.map(|resolved| resolved.digest.as_str()));
        let bytes = match digest {
            Some(digest) => source.manifest_by_digest(digest).await?,
            None => source.manifest(image.tag().unwrap_or(LATEST)).await?,
        };
        Ok((source, bytes))
    }

    /// What a tag stands for: the registry's word, or, where it says nothing, what its manifest comes to.
    async fn digest(&self, tag: &str) -> Result<String, Failure> {
        let answer = self.session.head(&format!("manifests/{tag}"), ACCEPTED).await?;
        let told = answer.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
        match told.filter(|told| is_digest(told)) {
            Some(digest) => Ok(digest.to_owned()),
            None => self.manifest(tag).await.map(|bytes| digest_of(&bytes)),
        }
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
