//! What is not about a resource: versions, discovery, OpenAPI, health, metrics, state, token keys.

use std::sync::Arc;

use hawser_api::{Error, error::Reason};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{body::Body, flagz, handler::respond, path::Query, statusz};
use crate::{ApiServer, discovery, openapi, version};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

pub(super) async fn answer(
    server: &Arc<ApiServer>,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, Error> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        [""] => Ok(json_response(&json!({ "paths": paths() }))),
        ["version"] => Ok(json_response(&version::info(server.build()))),
        ["api"] => Ok(root(server, discovery::Root::Core, headers)),
        ["apis"] => Ok(root(server, discovery::Root::Groups, headers)),
        ["api", version] => found(discovery::resources("", version)),
        ["apis", group] => found(discovery::group(group)),
        ["apis", group, version] => found(discovery::resources(group, version)),
        ["openapi", rest @ ..] => openapi(server, rest, query, headers).await,
        ["healthz" | "livez" | "readyz", rest @ ..] => {
            Ok(health(server, parts[0], rest.first().copied(), query).await)
        }
        ["metrics"] => Ok(respond(StatusCode::OK, "text/plain; version=0.0.4", server.all_metrics())),
        ["flagz"] => flagz::answer(server.flags(), headers),
        ["statusz"] => statusz::answer(server.started(), &paths(), headers),
        ["openid", "v1", "jwks"] => {
            let keys = server.authenticator().tokens().jwks();
            Ok(respond(StatusCode::OK, "application/jwk-set+json", keys.to_string()))
        }
        [".well-known", "openid-configuration"] => Ok(json_response(&openid(server))),
        _ => Err(Error::new(Reason::NotFound, "the server could not find the requested resource")),
    }
}

fn json_response(value: &Value) -> Response<Body> {
    respond(StatusCode::OK, JSON, value.to_string())
}

fn found(document: Option<Value>) -> Result<Response<Body>, Error> {
    let document = document
        .ok_or_else(|| Error::new(Reason::NotFound, "the server could not find the requested resource"))?;
    Ok(json_response(&document))
}

fn paths() -> Vec<String> {
    let groups = hawser_api::kinds::groups();
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(str::to_owned).into();
    for group in groups.iter().filter(|group| !group.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|version| format!("/apis/{}/{version}", group.name)));
    }
    let others = [
        "/flagz",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/statusz",
        "/version",
    ];
    paths.extend(others.map(str::to_owned));
    paths
}

/// `/api` and `/apis`: plain, or aggregated for clients that ask for it.
fn root(server: &ApiServer, root: discovery::Root, headers: &HeaderMap) -> Response<Body> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    for range in accept.split(',').map(|range| range.replace(' ', "")) {
        if !range.contains("as=APIGroupDiscoveryList") {
            continue;
        }
        for (version, content_type) in [
            ("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
            ("v2beta1", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"),
        ] {
            if range.split(';').any(|part| part.strip_prefix("v=") == Some(version)) {
                let mut response =
                    respond(StatusCode::OK, content_type, discovery::aggregated(root, version).to_string());
                response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
                return response;
            }
        }
    }
    let document = match root {
        discovery::Root::Core => {
            let (address, port) = server.advertised();
            discovery::api_versions(&std::net::SocketAddr::new(address, port).to_string())
        }
        discovery::Root::Groups => discovery::group_list(),
    };
    let mut response = json_response(&document);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// `/openapi/v2` and `/openapi/v3`, made when first asked for; unchanged ones are 304.
async fn openapi(
    server: &Arc<ApiServer>,
    rest: &[&str],
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, Error> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_protobuf = rest == ["v2"] && accept.contains("com.github.proto-openapi.spec.v2");
    let content_type = if is_protobuf { openapi::V2_PROTOBUF } else { JSON };
    let path = rest.join("/");
    // Making one takes long: other requests have this thread meanwhile.
    let server = server.clone();
    let made = tokio::task::spawn_blocking(move || server.openapi().find(&path, is_protobuf).cloned()).await;
    let document = made
        .map_err(Error::internal)?
        .ok_or_else(|| Error::new(Reason::NotFound, "the server could not find the requested resource"))?;
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = if known.is_some_and(|known| known.contains(&document.hash)) {
        respond(StatusCode::NOT_MODIFIED, content_type, "")
    } else {
        respond(StatusCode::OK, content_type, document.body.clone())
    };
    let fields = response.headers_mut();
    fields.insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&document.etag()) {
        fields.insert(header::ETAG, tag);
    }
    // An address with the document's hash never means another document.
    if query.find("hash").is_some() {
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    Ok(response)
}

fn openid(server: &ApiServer) -> Value {
    let (address, port) = server.advertised();
    let host = std::net::SocketAddr::new(address, port);
    json!({
        "issuer": server.authenticator().tokens().issuer(),
        "jwks_uri": format!("https://{host}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": server.authenticator().tokens().algorithms(),
    })
}

/// `/healthz`, `/livez`, `/readyz`, each check alone (`/readyz/store`) or all; `?verbose` lists them.
async fn health(server: &ApiServer, which: &str, only: Option<&str>, query: &Query) -> Response<Body> {
    let mut checks: Vec<(&str, bool)> = vec![("ping", true)];
    if which != "livez" {
        checks.push(("cache-sync", server.registry().cache().is_synced()));
        // The store is asked once for all reads that wait; here it shows whether it answers at all.
        checks.push(("etcd", server.registry().cache().consistent().await.is_ok()));
    }
    if which == "readyz" {
        checks.push(("shutdown", !server.shutdown().is_cancelled()));
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    checks.retain(|(name, _)| only.is_none_or(|only| only == *name) && !excluded.contains(name));
    if checks.is_empty() {
        return respond(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
    }
    let healthy = checks.iter().all(|(_, good)| *good);
    let code = if healthy { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    if healthy && query.find("verbose").is_none() {
        return respond(code, TEXT, "ok");
    }
    let mut text = String::new();
    for (name, good) in checks {
        text +=
            &if good { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") };
    }
    text += &format!("{which} check {}\n", if healthy { "passed" } else { "failed" });
    respond(code, TEXT, text)
}
