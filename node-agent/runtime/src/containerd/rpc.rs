//! containerd's gRPC services, called in this runtime's namespace, with deadlines and typed errors.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::{Error, Result};

/// containerd answers from its database in milliseconds; starting a shim on a loaded machine can take
/// seconds. What takes longer hangs.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest answer accepted: some hundred containers with their specifications.
const MAX_ANSWER_BYTES: usize = 64 << 20;

pub(crate) type Service = InterceptedService<Channel, Headers>;

/// A connection to containerd. Cheap to clone; reconnects by itself.
#[derive(Clone)]
pub(crate) struct Rpc {
    channel: Channel,
    headers: Headers,
}

/// What every call carries: the namespace and, inside a lease, the lease.
#[derive(Clone)]
pub(crate) struct Headers {
    namespace: AsciiMetadataValue,
    lease: Option<AsciiMetadataValue>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

macro_rules! services {
    ($($name:ident: $client:ident),* $(,)?) => {
        $(pub(crate) fn $name(&self) -> $client<Service> {
            $client::with_interceptor(self.channel.clone(), self.headers.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES)
        })*
    };
}

impl Rpc {
    pub(crate) async fn connect(socket: &Path, namespace: &str) -> Result<Self> {
        let connecting = containerd_client::connect(socket);
        let unreachable = |message: String| Error::Unavailable {
            attempted: "connect",
            message: format!("{}: {message}", socket.display()),
        };
        let channel = match tokio::time::timeout(Duration::from_secs(5), connecting).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                return Err(unreachable(cause.unwrap_or_else(|| error.to_string())));
            }
            Err(_) => return Err(unreachable("no answer within 5 s".into())),
        };
        let namespace = namespace.parse().map_err(|_| Error::Invalid {
            field: "namespace",
            message: format!("{namespace:?} is no containerd namespace"),
        })?;
        Ok(Self { channel, headers: Headers { namespace, lease: None } })
    }

    /// The same connection, with everything that is made through it kept alive by `lease`.
    pub(crate) fn with_lease(&self, lease: &str) -> Self {
        let lease = lease.parse().ok();
        Self { channel: self.channel.clone(), headers: Headers { lease, ..self.headers.clone() } }
    }

    services! {
        containers: ContainersClient,
        content: ContentClient,
        diff: DiffClient,
        events: EventsClient,
        images: ImagesClient,
        introspection: IntrospectionClient,
        leases: LeasesClient,
        namespaces: NamespacesClient,
        snapshots: SnapshotsClient,
        tasks: TasksClient,
        version: VersionClient,
    }
}

/// Waits for an answer, but not for ever. `attempted` names the call in errors.
pub(crate) async fn call<T>(
    attempted: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T> {
    call_within(CALL_TIMEOUT, attempted, answer).await
}

pub(crate) async fn call_within<T>(
    timeout: Duration,
    attempted: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(error(attempted, status)),
        Err(_) => Err(Error::Timeout { what: format!("containerd: {attempted}"), timeout }),
    }
}

/// `None` where containerd says that the thing asked for is not there.
pub(crate) async fn find<T>(
    attempted: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Option<T>> {
    absent_is_none(call(attempted, answer).await)
}

/// For removals: what is gone already is removed.
pub(crate) async fn remove<T>(
    attempted: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<()> {
    absent_is_none(call(attempted, answer).await).map(|_| ())
}

/// For creations: true when it was made now, false when it was there.
pub(crate) async fn create<T>(
    attempted: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<bool> {
    match call(attempted, answer).await {
        Ok(_) => Ok(true),
        Err(Error::AlreadyExists { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

pub(crate) fn absent_is_none<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

pub(crate) fn error(attempted: &'static str, status: Status) -> Error {
    let message = status.message().to_owned();
    match status.code() {
        Code::NotFound => Error::NotFound { kind: "containerd object", id: message },
        Code::AlreadyExists => Error::AlreadyExists { message },
        // The last is a shim's silence, of which containerd tells.
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => {
            Error::Unavailable { attempted, message }
        }
        // Made on this side: the connection broke under the call.
        _ if std::error::Error::source(&status).is_some() => Error::Unavailable { attempted, message },
        _ => Error::Containerd { attempted, message },
    }
}

pub(crate) fn timestamp(time: Option<prost_types::Timestamp>) -> Option<jiff::Timestamp> {
    let time = time?;
    // Go's zero time, year 1, is how containerd spells "never".
    if time.seconds <= 0 {
        return None;
    }
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_that_breaks_under_a_call_is_no_answer() {
        let silence = |status| error("start task", status).is_silence();
        assert!(silence(Status::from_error("the connection broke".into())));
        assert!(silence(Status::unavailable("going down")));
        assert!(!silence(Status::unknown("runc create failed")));
        assert!(!silence(Status::internal("a bug")));
    }
}
