//! How components reach the API: one trait, in-process or over gRPC.
//!
//! The scheduler, the controllers and the node agent know this trait and nothing of the server behind it.
//! In-process it is the API server's own chain under the component's identity (authentication aside, nothing
//! is skipped); remote it is [`crate::grpc::Remote`]. Objects travel as JSON bytes, which the server shares
//! with its cache; the typed layer is [`crate::Api`].

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{Error, resource::Target};

/// Reads and writes of any kind. Every call passes the whole chain of the API server.
#[async_trait]
pub trait Client: Send + Sync + 'static {
    async fn get(&self, target: &Target) -> Result<Bytes, Error>;

    /// All objects that match, as of one version. Paging is the implementation's matter.
    async fn list(&self, target: &Target, options: &ListOptions) -> Result<List, Error>;

    /// Changes after `options.resource_version`. The stream ends after its first error;
    /// [`Error::is_expired`] asks for a new list, everything else for another watch.
    async fn watch(&self, target: &Target, options: &WatchOptions) -> Result<WatchStream, Error>;

    /// Creates the object, or sends it to a subresource (`binding`, `eviction`, `token`).
    async fn create(&self, target: &Target, object: Bytes, options: &WriteOptions) -> Result<Bytes, Error>;

    async fn update(&self, target: &Target, object: Bytes, options: &WriteOptions) -> Result<Bytes, Error>;

    async fn patch(&self, target: &Target, patch: Patch, options: &WriteOptions) -> Result<Bytes, Error>;

    /// Returns the object as it was or still is, or a `metav1.Status`.
    async fn delete(&self, target: &Target, options: &DeleteOptions) -> Result<Bytes, Error>;

    /// Binds pods to nodes, in one batch; one result for each, in order.
    async fn bind(&self, bindings: &[Binding]) -> Vec<Result<(), Error>>;
}

#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// `app=web,tier!=db`; empty matches all.
    pub label_selector: String,
    /// `spec.nodeName=n1`; empty matches all.
    pub field_selector: String,
}

#[derive(Clone, Debug)]
pub struct List {
    /// JSON of each object, in key order.
    pub items: Vec<Bytes>,
    pub resource_version: String,
}

#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    pub label_selector: String,
    pub field_selector: String,
    /// Changes after this version.
    pub resource_version: String,
}

pub type WatchStream = BoxStream<'static, Result<WatchEvent, Error>>;

#[derive(Clone, Debug)]
pub enum WatchEvent {
    Added {
        object: Bytes,
        resource_version: String,
    },
    Modified {
        object: Bytes,
        resource_version: String,
    },
    /// The last state, with the version of the deletion.
    Deleted {
        object: Bytes,
        resource_version: String,
    },
    /// Nothing else happened up to this version.
    Bookmark {
        resource_version: String,
    },
}

#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Bytes),
    /// RFC 7386.
    Merge(Bytes),
    StrategicMerge(Bytes),
    /// Server-side apply.
    Apply {
        configuration: Bytes,
        force: bool,
    },
}

#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// The kind's default where unset.
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    /// Refused with Conflict where the object is another one.
    pub uid: Option<String>,
    /// Refused with Conflict where the object has changed since.
    pub resource_version: Option<String>,
    /// Which objects of a collection; empty matches all.
    pub label_selector: String,
    pub field_selector: String,
}

/// What becomes of the objects that the deleted one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        }
    }
}

/// A decision of the scheduler.
#[derive(Clone, Debug)]
pub struct Binding {
    pub namespace: String,
    pub pod: String,
    /// A pod of that name with another uid is not bound.
    pub uid: String,
    pub node: String,
}
