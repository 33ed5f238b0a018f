//! Connections to kubelets, and joining them with clients' connections.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    upgrade,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tracing::debug;

use super::body::{self, Body};
use crate::{ApiServer, ops::Kubelet};

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a kubelet may take to begin its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

pub(super) type Sender = SendRequest<Body>;

/// Connects to a kubelet, which shows by its certificate that it is the node's.
///
/// # Errors
/// Why that failed, in words for a client.
pub(super) async fn dial(server: &ApiServer, kubelet: &Kubelet) -> Result<TlsStream<TcpStream>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", kubelet.address);
    let Some(config) = server.kubelet_tls() else {
        return Err("this API server has no credentials for kubelets".to_owned());
    };
    let dial = async {
        let stream = TcpStream::connect(kubelet.address).await.map_err(|error| failed(&error))?;
        hawser_api::long_lived(&stream).map_err(|error| failed(&error))?;
        // The certificate is the node's, by name: addresses come from the node's own status.
        let name = ServerName::try_from(kubelet.node.clone()).map_err(|error| failed(&error))?;
        TlsConnector::from(config.clone()).connect(name, stream).await.map_err(|error| failed(&error))
    };
    timeout(CONNECT_DEADLINE, dial).await.map_err(|_| failed(&"timeout"))?
}

/// Begins HTTP/1.1 on a connection, which ends when its sender and the bodies of its answers are dropped, or goes on as
/// what it is upgraded to.
pub(super) async fn begin<T>(connection: T) -> hyper::Result<Sender>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(connection)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "connection to a node ended");
        }
    });
    Ok(sender)
}

/// Sends a request to a kubelet, which must begin its answer in time.
///
/// # Errors
/// Why there is no answer, in words for a client.
pub(super) async fn ask(sender: &mut Sender, request: Request<Body>) -> Result<Response<Incoming>, String> {
    let answer = timeout(ANSWER_DEADLINE, sender.send_request(request)).await;
    answer.map_err(|_| "the kubelet did not answer in time".to_owned())?.map_err(|error| error.to_string())
}

/// The text of an answer that is not what was wanted.
pub(super) async fn text_of(answer: Response<Incoming>) -> String {
    match body::read(answer.into_body()).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => error.to_string(),
    }
}

/// An answer's body, which keeps its connection: a dropped sender ends it.
pub(super) fn keeping(sender: Sender, body: Incoming) -> Body {
    let body = body.map_frame(move |frame| {
        let _ = &sender;
        frame
    });
    body.map_err(Into::into).boxed_unsync()
}

pub(super) fn nothing() -> Body {
    body::full(Bytes::new())
}

/// Joins a client's connection with one to a node, both after their upgrade, until either side closes or the server ends.
pub(super) fn join(
    server: &Arc<ApiServer>,
    mut client: Request<Incoming>,
    mut answer: Response<Incoming>,
    node: String,
) {
    let shutdown = server.shutdown().clone();
    tokio::spawn(async move {
        let joined = async {
            let (ours, theirs) = tokio::try_join!(upgrade::on(&mut client), upgrade::on(&mut answer))?;
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            copy_bidirectional(&mut ours, &mut theirs).await?;
            Ok::<_, body::BoxError>(())
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            outcome = joined => if let Err(error) = outcome {
                debug!(%node, %error, "stream ended");
            }
        }
    });
}
