//! The API's errors as gRPC statuses, and back: a `google.rpc.Status` whose detail is the `metav1.Status` as
//! JSON, in a `google.protobuf.BytesValue`.

use prost::Message;
use tonic::{Code, Status};

use crate::{Error, error::Reason};

const BYTES_VALUE: &str = "type.googleapis.com/google.protobuf.BytesValue";

/// `google.rpc.Status` (google/rpc/status.proto).
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.protobuf.BytesValue`.
#[derive(Clone, PartialEq, Message)]
struct BytesValue {
    #[prost(bytes = "vec", tag = "1")]
    value: Vec<u8>,
}

/// Every reason with the code that a gRPC client acts on.
fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::BadRequest | Reason::Invalid | Reason::NotAcceptable | Reason::UnsupportedMediaType => {
            Code::InvalidArgument
        }
        Reason::Unauthorized => Code::Unauthenticated,
        Reason::Forbidden => Code::PermissionDenied,
        Reason::NotFound => Code::NotFound,
        Reason::MethodNotAllowed => Code::Unimplemented,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::Conflict => Code::Aborted,
        Reason::Expired => Code::OutOfRange,
        Reason::RequestEntityTooLarge | Reason::TooManyRequests => Code::ResourceExhausted,
        Reason::InternalError => Code::Internal,
        Reason::ServiceUnavailable => Code::Unavailable,
        Reason::Timeout => Code::DeadlineExceeded,
        Reason::Unknown => Code::Unknown,
    }
}

/// The reason behind a status that carries no detail: it was made on the way, not by the API server.
fn reason_of(code: Code) -> Reason {
    match code {
        Code::InvalidArgument | Code::FailedPrecondition => Reason::BadRequest,
        Code::Unauthenticated => Reason::Unauthorized,
        Code::PermissionDenied => Reason::Forbidden,
        Code::NotFound => Reason::NotFound,
        Code::Unimplemented => Reason::MethodNotAllowed,
        Code::AlreadyExists => Reason::AlreadyExists,
        Code::Aborted => Reason::Conflict,
        Code::OutOfRange => Reason::Expired,
        Code::ResourceExhausted => Reason::TooManyRequests,
        Code::Internal | Code::DataLoss => Reason::InternalError,
        Code::DeadlineExceeded => Reason::Timeout,
        // A connection that broke shows itself as any of these.
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Ok => Reason::ServiceUnavailable,
    }
}

pub fn to_grpc(error: &Error) -> Status {
    let code = code_of(error.reason());
    let json = BytesValue { value: error.to_status().to_string().into_bytes() };
    let detail = Any { type_url: BYTES_VALUE.into(), value: json.encode_to_vec() };
    let status = RpcStatus { code: code as i32, message: error.message().into(), details: vec![detail] };
    Status::with_details(code, error.message(), status.encode_to_vec().into())
}

pub fn from_grpc(status: &Status) -> Error {
    let detail = || {
        let rpc = RpcStatus::decode(status.details()).ok()?;
        let any = rpc.details.into_iter().find(|any| any.type_url == BYTES_VALUE)?;
        let json = BytesValue::decode(any.value.as_slice()).ok()?;
        Some(Error::from_status(&serde_json::from_slice(&json.value).ok()?))
    };
    detail().unwrap_or_else(|| Error::new(reason_of(status.code()), status.message()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GroupVersionResource;

    #[test]
    fn error_is_the_same_after_the_wire() {
        let pods = GroupVersionResource::fixed("", "v1", "pods");
        for error in
            [Error::not_found(&pods, "web"), Error::too_many_requests("later", 3), Error::unauthorized()]
        {
            let back = from_grpc(&to_grpc(&error));
            assert_eq!(back.to_status(), error.to_status());
        }
    }

    #[test]
    fn status_of_a_broken_connection_says_to_try_again() {
        let error = from_grpc(&Status::unavailable("connection refused"));
        assert_eq!(error.reason(), Reason::ServiceUnavailable);
    }
}
