//! Where an image comes from: the registry or one of its mirrors, with the credentials that it accepts.
//!
//! Plain HTTP is spoken only to hosts that the configuration says it of.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth as ClientAuth;
use oci_client::{Client, Reference};

use super::config::{ACCEPTED, Descriptor};
use crate::{PullErrorKind, Registries, RegistryAuth};

/// How long a registry may take to accept a connection, and be silent in the middle of an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Why one source did not give what was asked.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: PullErrorKind,
    pub(super) message: String,
}

/// A registry that answered, and how it is talked to.
pub(super) struct Source {
    client: Client,
    image: Reference,
    auth: ClientAuth,
}

/// A blob as it arrives.
pub(super) struct Blob {
    pub(super) stream: BoxStream<'static, Result<Bytes, std::io::Error>>,
    /// The first byte of the stream is this byte of the blob: 0 when the registry knows no ranges.
    pub(super) offset: u64,
}

impl Source {
    /// Asks the mirrors and then the registry itself, each with every credential there is, for the
    /// manifest of `image`. Returns the first that has it, with the manifest's bytes and digest.
    ///
    /// The failure is the registry's own, as mirrors are only an attempt.
    pub(super) async fn find(
        image: &Reference,
        registries: &Registries,
        pod_auth: &[RegistryAuth],
    ) -> Result<(Self, Bytes, String), Failure> {
        let mut last = None;
        for (host, mirror) in hosts(image, registries) {
            for auth in credentials(&host, registries, pod_auth, mirror) {
                let source = Self::new(image, &host, mirror, registries, auth);
                match source.manifest(&source.image).await {
                    Ok((bytes, digest)) => return Ok((source, bytes, digest)),
                    Err(failure) => last = Some(failure),
                }
            }
        }
        Err(last.unwrap_or(Failure {
            kind: PullErrorKind::RegistryUnavailable,
            message: "no registry to ask".into(),
        }))
    }

    fn new(image: &Reference, host: &str, mirror: bool, registries: &Registries, auth: ClientAuth) -> Self {
        let config = registries.hosts.get(host).cloned().unwrap_or_default();
        let protocol = if config.plain_http { ClientProtocol::Http } else { ClientProtocol::Https };
        let pem = |pem: String| Certificate { encoding: CertificateEncoding::Pem, data: pem.into_bytes() };
        let client = Client::new(ClientConfig {
            protocol,
            extra_root_certificates: config.ca_pem.map(pem).into_iter().collect(),
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("hawser/", env!("CARGO_PKG_VERSION")),
            ..Default::default()
        });
        let mut image = image.clone();
        if mirror {
            image.set_mirror_registry(host.to_owned());
        }
        Self { client, image, auth }
    }

    /// A manifest or index by digest.
    pub(super) async fn manifest_by_digest(&self, digest: &str) -> Result<Bytes, Failure> {
        let image = self.image.clone_with_digest(digest.to_owned());
        Ok(self.manifest(&image).await?.0)
    }

    async fn manifest(&self, image: &Reference) -> Result<(Bytes, String), Failure> {
        self.client.pull_manifest_raw(image, &self.auth, ACCEPTED).await.map_err(failure)
    }

    /// The blob from byte `offset` on, or from its beginning where the registry cannot do that. Its
    /// digest is not verified.
    pub(super) async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<Blob, Failure> {
        use oci_client::client::BlobResponse;

        let descriptor =
            OciDescriptor { digest: blob.digest.clone(), size: blob.size as i64, ..Default::default() };
        let response = self.client.pull_blob_stream_partial(&self.image, &descriptor, offset, None).await;
        Ok(match response.map_err(failure)? {
            BlobResponse::Full(sized) => Blob { stream: sized.stream, offset: 0 },
            BlobResponse::Partial(sized) => Blob { stream: sized.stream, offset },
        })
    }
}

/// Hosts to ask, in order, and whether each is a mirror.
fn hosts(image: &Reference, registries: &Registries) -> Vec<(String, bool)> {
    let own = image.registry().to_owned();
    let mirrors = registries.hosts.get(&own).map(|host| host.mirrors.clone()).unwrap_or_default();
    mirrors.into_iter().map(|mirror| (mirror, true)).chain([(own, false)]).collect()
}

/// The pod's credentials are for the registry that its image names, not for mirrors.
fn credentials(
    host: &str,
    registries: &Registries,
    pod_auth: &[RegistryAuth],
    mirror: bool,
) -> Vec<ClientAuth> {
    let of_pod = if mirror { &[] } else { pod_auth };
    let of_node = registries.hosts.get(host).and_then(|h| h.auth.as_ref());
    let convert = |auth: &RegistryAuth| match auth {
        RegistryAuth::Basic { username, password } => ClientAuth::Basic(username.clone(), password.clone()),
        RegistryAuth::Bearer { token } => ClientAuth::Bearer(token.clone()),
    };
    of_pod.iter().chain(of_node).map(convert).chain([ClientAuth::Anonymous]).collect()
}

fn failure(error: OciDistributionError) -> Failure {
    use OciDistributionError as E;

    let by_code = |code: u16| match code {
        401 | 403 => PullErrorKind::Unauthorized,
        404 => PullErrorKind::NotFound,
        _ => PullErrorKind::RegistryUnavailable,
    };
    let kind = match &error {
        E::UnauthorizedError { .. } | E::AuthenticationFailure(_) => PullErrorKind::Unauthorized,
        E::ImageManifestNotFoundError(_) => PullErrorKind::NotFound,
        E::DigestError(_) => PullErrorKind::DigestMismatch,
        E::ServerError { code, .. } => by_code(*code),
        E::RegistryError { envelope, .. } => match envelope.errors.first().map(|e| &e.code) {
            Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => PullErrorKind::Unauthorized,
            Some(
                OciErrorCode::ManifestUnknown
                | OciErrorCode::NameUnknown
                | OciErrorCode::NotFound
                | OciErrorCode::BlobUnknown
                | OciErrorCode::ManifestBlobUnknown,
            ) => PullErrorKind::NotFound,
            Some(OciErrorCode::NameInvalid) => PullErrorKind::InvalidReference,
            _ => PullErrorKind::RegistryUnavailable,
        },
        _ => PullErrorKind::RegistryUnavailable,
    };
    Failure { kind, message: with_causes(&error) }
}

/// reqwest keeps what went wrong ("connection refused") in the causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = inner.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RegistryHost;

    #[test]
    fn mirrors_come_first_and_never_see_the_pods_secrets() {
        let mut registries = Registries::default();
        let own = RegistryAuth::Basic { username: "node".into(), password: "p".into() };
        let entry =
            RegistryHost { mirrors: vec!["mirror:5000".into()], auth: Some(own), ..Default::default() };
        registries.hosts.insert("docker.io".into(), entry);
        let image: Reference = "busybox".parse().unwrap();
        let order = hosts(&image, &registries);
        assert_eq!(order, [("mirror:5000".to_owned(), true), ("docker.io".to_owned(), false)]);

        let pod = [RegistryAuth::Bearer { token: "t".into() }];
        assert_eq!(credentials("mirror:5000", &registries, &pod, true), [ClientAuth::Anonymous]);
        let expected = [
            ClientAuth::Bearer("t".into()),
            ClientAuth::Basic("node".into(), "p".into()),
            ClientAuth::Anonymous,
        ];
        assert_eq!(credentials("docker.io", &registries, &pod, false), expected);
    }
}
