//! Errors of the runtime, told apart by what the caller does next.

use std::path::PathBuf;
use std::time::Duration;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a runtime call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container, image, sandbox or process is not there.
    #[error("{kind} {id} not found")]
    NotFound { kind: &'static str, id: String },
    /// Somebody else made it in the meantime.
    #[error("already exists: {message}")]
    AlreadyExists { message: String },
    /// The request cannot succeed however often it is repeated.
    #[error("invalid {field}: {message}")]
    Invalid { field: &'static str, message: String },
    /// The object is in a state that does not allow the request (exec in a stopped container, ...).
    #[error("{id} is {state}: {attempted} is not possible")]
    WrongState { id: String, state: String, attempted: &'static str },
    /// Whoever reads a container's live output was too far behind: the container does not wait for readers.
    #[error("output of {id} was cut off: it was not read fast enough, or too many read it")]
    CutOff { id: String },
    /// An image could not be pulled; `kind` says whether a repeated pull can help.
    #[error("failed to pull image {image:?}: {message}")]
    Pull { image: String, kind: PullErrorKind, message: String },
    /// The process could not be made or started (bad command, mount that fails, ...); runc's own words.
    #[error("failed to {attempted} container {id}: {message}")]
    Start { id: String, attempted: &'static str, message: String },
    #[error("{what} took longer than {timeout:?}")]
    Timeout { what: String, timeout: Duration },
    /// containerd cannot be reached now; the caller retries.
    #[error("containerd is unreachable while trying to {attempted}: {message}")]
    Unavailable { attempted: &'static str, message: String },
    /// containerd answered with an error that nothing above covers.
    #[error("containerd failed to {attempted}: {message}")]
    Containerd { attempted: &'static str, message: String },
    /// A file, mount or namespace operation of this process failed.
    #[error("failed to {attempted} {path}")]
    Io {
        attempted: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Nothing was said of what came of the request: it may have been carried out, or still be.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Timeout { .. })
    }
}

/// Why a pull failed, for the container's waiting reason and the back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullErrorKind {
    /// The reference does not parse (`InvalidImageName`).
    InvalidReference,
    /// The registry knows no such repository, tag or digest.
    NotFound,
    /// The registry wants other credentials.
    Unauthorized,
    /// The image has no variant for this platform.
    NoMatchingPlatform,
    /// Bytes do not match the digest that names them.
    DigestMismatch,
    /// The registry could not be reached, or answered with a passing failure (`RegistryUnavailable`).
    RegistryUnavailable,
    /// The image was fetched but cannot be unpacked here, or its content makes no sense.
    BadImage,
}
