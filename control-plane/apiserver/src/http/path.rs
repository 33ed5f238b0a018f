//! What a request is about: its path and method, as upstream's `RequestInfo` reads them.

use hawser_api::{GroupVersionResource, resource::Target};

/// Parameters of the query, decoded, in order.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: Option<&str>) -> Self {
        Self(form_urlencoded::parse(text.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter; empty where it is not there.
    pub(super) fn get(&self, name: &str) -> &str {
        self.find(name).unwrap_or_default()
    }

    pub(super) fn find(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// A switch: there, and not told to be off.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.find(name).is_some_and(crate::ops::is_true)
    }
}

/// The subresource that passes requests on.
pub(super) const PROXY: &str = "proxy";

/// A path as it was sent, up to and with its first segments, and the rest, which is empty or begins with a slash.
pub(super) fn split_after(path: &str, segments: usize) -> (&str, &str) {
    let mut rest = path;
    for _ in 0..segments {
        rest = rest.trim_start_matches('/');
        rest = &rest[rest.find('/').unwrap_or(rest.len())..];
    }
    path.split_at(path.len() - rest.len())
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    Resource {
        verb: &'static str,
        target: Target,
    },
    /// Everything that is not about a resource: discovery, health, metrics.
    Path,
}

/// Reads method and path.
pub(super) fn route(method: &http::Method, path: &str, query: &Query) -> Route {
    let mut parts = path.trim_matches('/').split('/').filter(|part| !part.is_empty());
    let (group, version) = match parts.next() {
        Some("api") => ("", parts.next()),
        Some("apis") => match (parts.next(), parts.next()) {
            (Some(group), version) => (group, version),
            _ => return Route::Path,
        },
        _ => return Route::Path,
    };
    let Some(version) = version else { return Route::Path };
    let rest: Vec<String> = parts.map(decode).collect();
    let mut rest: &[String] = &rest;
    // The old form of a watch: the word before everything else.
    let watch = rest.first().is_some_and(|first| first == "watch");
    if watch {
        rest = &rest[1..];
    }
    let mut namespace = None;
    if let [first, name, more @ ..] = rest
        && first == "namespaces"
        && !more.is_empty()
        // What follows a namespace's own name are its subresources, or the resources in it.
        && !matches!(more[0].as_str(), "status" | "finalize")
    {
        namespace = Some(name.clone());
        rest = more;
    }
    let [resource, rest @ ..] = rest else { return Route::Path };
    let name = rest.first().cloned();
    let subresource = match rest {
        // What follows is the other side's matter, and so is the query.
        [_, proxy, ..] if proxy == PROXY => Some(PROXY.into()),
        [_, part @ ..] if !part.is_empty() => Some(part.join("/").into()),
        _ => None,
    };
    // Upstream asks it of collections alone.
    let asks_to_watch = name.is_none() && query.is_on("watch");
    let verb = verb(method, name.is_some(), watch || asks_to_watch);
    let resource = GroupVersionResource {
        group: group.to_owned().into(),
        version: version.to_owned().into(),
        resource: resource.clone().into(),
    };
    Route::Resource { verb, target: Target { resource, namespace, name, subresource } }
}

fn decode(part: &str) -> String {
    if !part.contains('%') {
        return part.to_owned();
    }
    // `+` stands for itself in a path.
    let text = part.replace('+', "%2B");
    form_urlencoded::parse(text.as_bytes())
        .next()
        .map_or_else(|| part.to_owned(), |(name, _)| name.into_owned())
}

fn verb(method: &http::Method, named: bool, watch: bool) -> &'static str {
    match (method.as_str(), named) {
        ("GET" | "HEAD", _) if watch => "watch",
        ("GET" | "HEAD", true) => "get",
        ("GET" | "HEAD", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, uri: &str, expected: &str) {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let method = http::Method::from_bytes(method.as_bytes()).expect("a method");
        let found = match route(&method, path, &Query::parse(Some(query))) {
            Route::Path => "path".to_owned(),
            Route::Resource { verb, target } => format!(
                "{verb} {} {} {} {}",
                target.resource,
                target.namespace.as_deref().unwrap_or("-"),
                target.name.as_deref().unwrap_or("-"),
                target.subresource.as_deref().unwrap_or("-"),
            ),
        };
        assert_eq!(found, expected, "{method} {uri}");
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        check("GET", "/api", "path");
        check("GET", "/api/v1", "path");
        check("GET", "/apis/apps", "path");
        check("GET", "/apis/apps/v1", "path");
        check("GET", "/healthz", "path");
        check("GET", "/api/v1/nodes", "list v1/nodes - - -");
        check("GET", "/api/v1/nodes?watch=true", "watch v1/nodes - - -");
        check("GET", "/api/v1/nodes?watch=false", "list v1/nodes - - -");
        check("GET", "/api/v1/watch/nodes", "watch v1/nodes - - -");
        check("GET", "/api/v1/pods", "list v1/pods - - -");
        check("GET", "/api/v1/namespaces", "list v1/namespaces - - -");
        check("GET", "/api/v1/namespaces/a", "get v1/namespaces - a -");
        check("PUT", "/api/v1/namespaces/a/status", "update v1/namespaces - a status");
        check("PUT", "/api/v1/namespaces/a/finalize", "update v1/namespaces - a finalize");
        check("GET", "/api/v1/namespaces/a/pods", "list v1/pods a - -");
        check("POST", "/api/v1/namespaces/a/pods", "create v1/pods a - -");
        check("DELETE", "/api/v1/namespaces/a/pods", "deletecollection v1/pods a - -");
        check("DELETE", "/api/v1/namespaces/a/pods/b", "delete v1/pods a b -");
        check("GET", "/api/v1/namespaces/a/pods/b/log", "get v1/pods a b log");
        check("GET", "/api/v1/namespaces/a/pods/b:80/proxy", "get v1/pods a b:80 proxy");
        check("HEAD", "/api/v1/namespaces/a/pods/https:b:/proxy/x/y/", "get v1/pods a https:b: proxy");
        check("GET", "/api/v1/namespaces/a/services/b/proxy/x?watch=true", "get v1/services a b proxy");
        check("POST", "/api/v1/nodes/b/proxy/run", "create v1/nodes - b proxy");
        check("OPTIONS", "/api/v1/nodes/b/proxy/", " v1/nodes - b proxy");
        check(
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/b/scale",
            "patch apps/v1/deployments a b scale",
        );
        check(
            "GET",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            "get rbac.authorization.k8s.io/v1/clusterroles - system:node -",
        );
    }
    #[test]
    fn what_follows_a_proxy_is_kept_as_it_was_sent() {
        let check = |path, segments, expected| assert_eq!(split_after(path, segments), expected, "{path}");
        check("/api/v1/nodes/a/proxy", 5, ("/api/v1/nodes/a/proxy", ""));
        check("/api/v1/nodes/a/proxy/", 5, ("/api/v1/nodes/a/proxy", "/"));
        check("/api/v1/nodes/a/proxy//x/../%2Fy/", 5, ("/api/v1/nodes/a/proxy", "//x/../%2Fy/"));
        check("//api//v1/nodes/a/proxy/x", 5, ("//api//v1/nodes/a/proxy", "/x"));
        check(
            "/api/v1/namespaces/n/pods/https%3Aa%3A/proxy/x",
            7,
            ("/api/v1/namespaces/n/pods/https%3Aa%3A/proxy", "/x"),
        );
    }
}
