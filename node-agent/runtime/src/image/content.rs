//! containerd's content store: blobs go in by digest, and come out the same.
//!
//! containerd checks every blob against its digest when it is committed. A transfer that breaks off is
//! continued where it stopped, while its lease lives.

use std::collections::HashMap;

use bytes::BytesMut;
use containerd_client::services::v1::{
    AbortRequest, InfoRequest, ReadContentRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::config::Descriptor;
use super::registry::{Blob, Failure, Source};
use crate::containerd::rpc::{self, Rpc};
use crate::ids::digest_of;
use crate::{Error, PullErrorKind, Result};

/// Bytes sent to containerd at once, well below its message limit of 16 MiB.
const WRITE_BYTES: usize = 1 << 20;

/// Largest document (manifest, configuration) that is read into memory.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 16 << 20;

/// Told the number of bytes that a transfer has reached.
pub(super) type OnProgress<'a> = &'a (dyn Fn(u64) + Send + Sync);

pub(super) async fn exists(rpc: &Rpc, digest: &str) -> Result<bool> {
    let request = InfoRequest { digest: digest.to_owned() };
    Ok(rpc::find("look up content", rpc.content().info(request)).await?.is_some())
}

/// The whole of a document; `None` when it is not here.
pub(super) async fn read(rpc: &Rpc, digest: &str) -> Result<Option<Vec<u8>>> {
    let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let Some(mut answers) = rpc::find("read content", rpc.content().read(request)).await? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    loop {
        match answers.message().await {
            Ok(Some(answer)) => bytes.extend_from_slice(&answer.data),
            Ok(None) => return Ok(Some(bytes)),
            Err(status) => return rpc::absent_is_none(Err(rpc::error("read content", status))),
        }
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(Error::Containerd {
                attempted: "read content",
                message: format!("{digest} is larger than {MAX_DOCUMENT_BYTES} bytes"),
            });
        }
    }
}

/// Stores a document whose bytes are at hand.
pub(super) async fn write_document(
    rpc: &Rpc,
    digest: &str,
    bytes: &[u8],
    labels: HashMap<String, String>,
) -> Result<()> {
    if exists(rpc, digest).await? {
        return set_labels(rpc, digest, labels).await;
    }
    let result = async {
        let mut ingest = Ingest::open(rpc, digest, bytes.len() as u64).await?;
        ingest.write(&bytes[(ingest.offset as usize).min(bytes.len())..]).await?;
        ingest.commit(labels).await
    };
    match result.await {
        Err(Error::AlreadyExists { .. }) => Ok(()),
        other => other,
    }
}

async fn set_labels(rpc: &Rpc, digest: &str, labels: HashMap<String, String>) -> Result<()> {
    use containerd_client::services::v1::{Info, UpdateRequest};

    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let info = Info { digest: digest.to_owned(), labels, ..Default::default() };
    let request = UpdateRequest { info: Some(info), update_mask: Some(prost_types::FieldMask { paths }) };
    rpc::call("label content", rpc.content().update(request)).await.map(|_| ())
}

/// A whole document from the registry, checked against its digest.
pub(super) async fn fetch_document(source: &Source, document: &Descriptor) -> Result<Vec<u8>, Failure> {
    let bad = |kind, message| Failure { kind, message };
    if document.size > MAX_DOCUMENT_BYTES {
        return Err(bad(PullErrorKind::BadImage, format!("{} has {} bytes", document.digest, document.size)));
    }
    let mut blob = source.blob(document, 0).await?;
    let mut bytes = Vec::with_capacity(document.size as usize);
    while let Some(chunk) = blob.stream.next().await {
        bytes.extend_from_slice(&chunk.map_err(stream_failure)?);
        if bytes.len() as u64 > document.size {
            break;
        }
    }
    let found = digest_of(&bytes);
    if found != document.digest {
        return Err(bad(PullErrorKind::DigestMismatch, format!("{} has digest {found}", document.digest)));
    }
    Ok(bytes)
}

/// Fetches a blob into the content store, unless it is there.
pub(super) async fn fetch(
    rpc: &Rpc,
    source: &Source,
    descriptor: &Descriptor,
    on_progress: OnProgress<'_>,
) -> Result<(), Failure> {
    let digest = &descriptor.digest;
    if exists(rpc, digest).await.map_err(store_failure)? {
        on_progress(descriptor.size);
        return Ok(());
    }
    let mut ingest = match Ingest::open(rpc, digest, descriptor.size).await {
        // Another namespace of this containerd had it, and now it is here too.
        Err(Error::AlreadyExists { .. }) => return Ok(()),
        other => other.map_err(store_failure)?,
    };
    if ingest.offset < descriptor.size {
        let blob = source.blob(descriptor, ingest.offset).await?;
        copy(blob, &mut ingest, on_progress).await?;
    }
    match ingest.commit(HashMap::new()).await {
        Ok(()) | Err(Error::AlreadyExists { .. }) => Ok(()),
        Err(Error::Containerd { message, .. }) => {
            // Wrong bytes must not be what the next try goes on from.
            ingest.abort().await;
            Err(Failure { kind: PullErrorKind::DigestMismatch, message })
        }
        Err(other) => Err(store_failure(other)),
    }
}

async fn copy(mut blob: Blob, ingest: &mut Ingest, on_progress: OnProgress<'_>) -> Result<(), Failure> {
    let mut to_skip = ingest.offset - blob.offset;
    let mut buffer = BytesMut::with_capacity(WRITE_BYTES);
    loop {
        let chunk = blob.stream.next().await.transpose().map_err(stream_failure)?;
        let ended = chunk.is_none();
        if let Some(mut chunk) = chunk {
            let skipped = to_skip.min(chunk.len() as u64);
            to_skip -= skipped;
            buffer.extend_from_slice(&chunk.split_off(skipped as usize));
        }
        if buffer.len() >= WRITE_BYTES || (ended && !buffer.is_empty()) {
            ingest.write(&buffer).await.map_err(store_failure)?;
            buffer.clear();
            on_progress(ingest.offset);
        }
        if ended {
            return Ok(());
        }
    }
}

fn stream_failure(error: std::io::Error) -> Failure {
    let message = format!("transfer broke off: {error}");
    Failure { kind: PullErrorKind::RegistryUnavailable, message }
}

fn store_failure(error: Error) -> Failure {
    Failure { kind: PullErrorKind::BadImage, message: error.to_string() }
}

/// One blob being written.
struct Ingest {
    rpc: Rpc,
    reference: String,
    expected: String,
    total: i64,
    offset: u64,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Ingest {
    /// Begins, or goes on where an earlier try stopped: `offset` says where.
    async fn open(rpc: &Rpc, digest: &str, size: u64) -> Result<Self> {
        let reference = format!("hawser-{digest}");
        // One request is answered before the next is sent.
        let (requests, receiver) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: reference.clone(),
            total: size as i64,
            expected: digest.to_owned(),
            ..Default::default()
        };
        requests.try_send(first).expect("the channel has room for one");
        let answers = rpc::call("write content", rpc.content().write(ReceiverStream::new(receiver))).await?;
        let mut ingest = Self {
            rpc: rpc.clone(),
            reference,
            expected: digest.to_owned(),
            total: size as i64,
            offset: 0,
            requests,
            answers,
        };
        ingest.offset = ingest.answer().await?.offset as u64;
        Ok(ingest)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(WRITE_BYTES) {
            let request = WriteContentRequest {
                action: WriteAction::Write as i32,
                offset: self.offset as i64,
                data: part.to_vec(),
                ..self.request()
            };
            self.offset = self.send(request).await?.offset as u64;
        }
        Ok(())
    }

    /// Fails with [`Error::Containerd`] when size or digest are not what they should be.
    async fn commit(&mut self, labels: HashMap<String, String>) -> Result<()> {
        let request = WriteContentRequest {
            action: WriteAction::Commit as i32,
            offset: self.offset as i64,
            labels,
            ..self.request()
        };
        self.send(request).await.map(|_| ())
    }

    /// Forgets what was written so far.
    async fn abort(self) {
        let Self { rpc, reference, .. } = self;
        // The stream has to end first: it holds the lock of the ingest.
        drop((self.requests, self.answers));
        if let Err(error) =
            rpc::remove("abort ingest", rpc.content().abort(AbortRequest { r#ref: reference })).await
        {
            tracing::warn!(%error, "broken ingest could not be aborted");
        }
    }

    fn request(&self) -> WriteContentRequest {
        WriteContentRequest {
            r#ref: self.reference.clone(),
            total: self.total,
            expected: self.expected.clone(),
            ..Default::default()
        }
    }

    async fn send(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse> {
        // A closed channel shows in the answer, with the reason.
        let _ = self.requests.send(request).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<WriteContentResponse> {
        match self.answers.message().await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Error::Unavailable {
                attempted: "write content",
                message: "containerd ended the stream".into(),
            }),
            Err(status) => Err(rpc::error("write content", status)),
        }
    }
}
