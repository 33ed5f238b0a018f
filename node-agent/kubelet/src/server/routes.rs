//! Paths of the kubelet's API, and what each asks for.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use super::auth::{Attributes, User};
use super::body::{self, Body};
use super::streams::{self, Target};
use super::{Backend, Refusal, configz, files, logs, summary};
use crate::Telemetry;
use crate::metrics::{cadvisor, resource};
use crate::stats::Collector;

/// Decoded query parameters, in order.
pub(super) type Query = Vec<(String, String)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MetricsKind {
    Cadvisor,
    Probes,
    Resource,
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Health,
    Pods,
    Metrics,
    /// `/metrics/cadvisor`, `/metrics/probes`, `/metrics/resource`
    MetricsOf(MetricsKind),
    Configz,
    Summary,
    /// Of the folder of logs, what is below `/logs/`.
    Files(String),
    Logs(Target),
    Exec(Target),
    Attach(Target),
    PortForward {
        namespace: String,
        pod: String,
    },
    /// A connection to a port of a pod, for requests that the API server passes on. Upstream's does without: it is in the
    /// pods' network itself.
    Connect {
        namespace: String,
        pod: String,
    },
}

pub(super) async fn answer(
    backend: Arc<Backend>,
    tasks: TaskTracker,
    user: Option<User>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let answer = respond(&backend, &tasks, user, request).await;
    Ok(answer.unwrap_or_else(|refusal| {
        tracing::debug!(path, status = refusal.status.as_u16(), message = refusal.message, "request refused");
        body::refusal(refusal)
    }))
}

async fn respond(
    backend: &Arc<Backend>,
    tasks: &TaskTracker,
    user: Option<User>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let user = match (user, bearer_token(request.headers())) {
        (None, Some(token)) => backend.authorizer.user_of_token(token).await.map_err(Refusal::internal)?,
        (user, _) => user,
    };
    let user = user.ok_or(Refusal { status: StatusCode::UNAUTHORIZED, message: "Unauthorized".into() })?;
    let route = Route::parse(request.uri().path()).ok_or_else(|| Refusal::not_found("404 page not found"))?;
    let attributes = Attributes {
        verb: if request.method() == Method::GET { "get" } else { "create" },
        subresource: route.subresource(),
        path: request.uri().path().to_owned(),
    };
    let allowed = backend.authorizer.authorize(&user, &attributes).await;
    allowed.map_err(|reason| Refusal {
        status: StatusCode::FORBIDDEN,
        message: format!("Forbidden ({reason})"),
    })?;

    let query = request.uri().query().unwrap_or_default();
    let query: Query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    match route {
        Route::Health => match backend.pods.health() {
            Ok(()) => Ok(body::text(StatusCode::OK, "text/plain; charset=utf-8", "ok")),
            Err(reason) => Err(Refusal::internal(reason)),
        },
        Route::Pods => Ok(body::json(&backend.pods.pods())),
        Route::Metrics => Ok(prometheus(backend.pods.metrics())),
        Route::MetricsOf(kind) => Ok(prometheus(metrics_of(&telemetry(backend)?, kind).await)),
        Route::Configz => Ok(body::json(&configz::configz(&telemetry(backend)?.config))),
        Route::Summary => {
            let stats = backend.pods.telemetry().map(|telemetry| telemetry.stats);
            let stats = stats.unwrap_or_else(|| Collector::of_runtime(Arc::clone(&backend.runtime)));
            Ok(body::json(&summary::summary(&backend.node_name, &*stats.collect().await)))
        }
        Route::Files(path) => files::answer(&backend.pods.log_folder(), &path).await,
        Route::Logs(target) => logs::answer(backend, tasks, &target, &query, request).await,
        Route::Exec(target) => streams::exec(backend, tasks, &target, &query, request).await,
        Route::Attach(target) => streams::attach(backend, tasks, &target, &query, request).await,
        Route::PortForward { namespace, pod } => {
            streams::port_forward(backend, tasks, (&namespace, &pod), &query, request).await
        }
        Route::Connect { namespace, pod } => {
            streams::connect(backend, tasks, (&namespace, &pod), &query, request).await
        }
    }
}

/// Of `Authorization: Bearer <token>`.
fn bearer_token(headers: &http::HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn telemetry(backend: &Backend) -> Result<Telemetry, Refusal> {
    backend.pods.telemetry().ok_or_else(|| Refusal::not_found("404 page not found"))
}

async fn metrics_of(telemetry: &Telemetry, kind: MetricsKind) -> String {
    match kind {
        MetricsKind::Cadvisor => cadvisor::render(&*telemetry.stats.collect().await),
        MetricsKind::Probes => telemetry.probe_metrics(),
        MetricsKind::Resource => resource::render(&*telemetry.stats.collect().await),
    }
}

fn prometheus(text: String) -> Response<Body> {
    body::text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

impl Route {
    fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let target = |rest: &[&str]| match rest {
            [namespace, pod, container] => Some(Target {
                namespace: namespace.to_string(),
                pod: pod.to_string(),
                container: container.to_string(),
            }),
            // The uid in the middle is what older API servers send.
            [namespace, pod, _uid, container] => Some(Target {
                namespace: namespace.to_string(),
                pod: pod.to_string(),
                container: container.to_string(),
            }),
            _ => None,
        };
        match parts.as_slice() {
            ["healthz"] => Some(Self::Health),
            ["pods"] => Some(Self::Pods),
            ["metrics"] => Some(Self::Metrics),
            ["metrics", "cadvisor"] => Some(Self::MetricsOf(MetricsKind::Cadvisor)),
            ["metrics", "probes"] => Some(Self::MetricsOf(MetricsKind::Probes)),
            ["metrics", "resource"] => Some(Self::MetricsOf(MetricsKind::Resource)),
            ["configz"] => Some(Self::Configz),
            ["stats", "summary"] => Some(Self::Summary),
            ["logs", ..] => {
                let below = path.strip_prefix("/logs").unwrap_or_default();
                Some(Self::Files(below.trim_start_matches('/').to_owned()))
            }
            ["containerLogs", rest @ ..] => target(rest).map(Self::Logs),
            ["exec", rest @ ..] => target(rest).map(Self::Exec),
            ["attach", rest @ ..] => target(rest).map(Self::Attach),
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                Some(Self::PortForward { namespace: namespace.to_string(), pod: pod.to_string() })
            }
            ["connect", namespace, pod] => {
                Some(Self::Connect { namespace: namespace.to_string(), pod: pod.to_string() })
            }
            _ => None,
        }
    }

    /// As upstream maps paths to subresources of the node.
    fn subresource(&self) -> &'static str {
        match self {
            Self::Health => "healthz",
            Self::Pods => "pods",
            Self::Metrics | Self::MetricsOf(_) => "metrics",
            Self::Configz => "configz",
            Self::Summary => "stats",
            Self::Files(_) => "log",
            Self::Logs(_) | Self::Exec(_) | Self::Attach(_) => "proxy",
            Self::PortForward { .. } | Self::Connect { .. } => "proxy",
        }
    }
}

/// The last value of a parameter.
pub(super) fn parameter<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    query.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

pub(super) fn flag(query: &Query, name: &str) -> bool {
    matches!(parameter(query, name), Some("1" | "true" | "True" | "TRUE" | "t"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart() {
        let target = || Target { namespace: "ns".into(), pod: "p".into(), container: "c".into() };
        let check = |path: &str, expected: Option<Route>| assert_eq!(Route::parse(path), expected, "{path}");
        check("/healthz", Some(Route::Health));
        check("/pods/", Some(Route::Pods));
        check("/stats/summary", Some(Route::Summary));
        check("/containerLogs/ns/p/c", Some(Route::Logs(target())));
        check("/exec/ns/p/uid/c", Some(Route::Exec(target())));
        check("/attach/ns/p/c", Some(Route::Attach(target())));
        let forward = Route::PortForward { namespace: "ns".into(), pod: "p".into() };
        check("/portForward/ns/p", Some(forward));
        check("/logs/", Some(Route::Files(String::new())));
        check("/logs/a/b/", Some(Route::Files("a/b/".into())));
        let connect = Route::Connect { namespace: "ns".into(), pod: "p".into() };
        check("/connect/ns/p", Some(connect));
        check("/exec/ns/p", None);
        check("/", None);
    }
}
