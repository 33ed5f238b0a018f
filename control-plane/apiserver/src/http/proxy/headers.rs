//! Headers on their way through a proxy.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Request, header};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Headers of one connection, which end with it (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What other origins may do with answers is for this server to say.
const CORS: [&str; 4] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];

pub(super) fn ask_for_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"))
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Host and port that the client asked for; HTTP/2 has them in the address.
pub(super) fn host<B>(request: &Request<B>) -> String {
    let field = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    field.or(authority).unwrap_or_default().to_owned()
}

/// The headers of a request that the other side gets: not those that say who asks here, and as whom.
pub(super) fn passed_on<B>(request: &Request<B>, is_upgrade: bool) -> HeaderMap {
    let mut fields = request.headers().clone();
    let protocol = fields.get(header::UPGRADE).cloned().filter(|_| is_upgrade);
    remove_hop_by_hop(&mut fields);
    if let Some(protocol) = protocol {
        fields.insert(header::UPGRADE, protocol);
        fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let own: Vec<HeaderName> = fields.keys().filter(|name| is_own(name)).cloned().collect();
    own.iter().for_each(|name| drop(fields.remove(name)));
    if let Ok(host) = HeaderValue::try_from(host(request)) {
        fields.insert(header::HOST, host);
    }
    fields
}

/// Whether a header is meant for this server alone.
fn is_own(name: &HeaderName) -> bool {
    // Who sends a body that waits for permission gets it from this server.
    name == header::AUTHORIZATION || name == header::EXPECT || name.as_str().starts_with("impersonate-")
}

fn remove_hop_by_hop(fields: &mut HeaderMap) {
    let named: Vec<String> = connection_options(fields).map(str::to_owned).collect();
    for name in named.iter().map(String::as_str).chain(HOP_BY_HOP) {
        // Names that are none do not occur.
        fields.remove(name);
    }
}

/// Tells the other side who asks, and by which address. (As upstream, not by which host and scheme.)
pub(super) fn add_forwarded(fields: &mut HeaderMap, peer: Option<SocketAddr>, path: &str) {
    if let Ok(path) = HeaderValue::from_str(path) {
        fields.insert(FORWARDED_URI, path);
    }
    let Some(peer) = peer else { return };
    let before: Vec<&str> =
        fields.get_all(FORWARDED_FOR).into_iter().filter_map(|value| value.to_str().ok()).collect();
    let address = peer.ip().to_canonical().to_string();
    let all = [before, vec![&address]].concat().join(", ");
    if let Ok(value) = HeaderValue::try_from(all) {
        fields.insert(FORWARDED_FOR, value);
    }
}

/// Takes from an answer what is not for the client.
pub(super) fn clean_answer(fields: &mut HeaderMap) {
    remove_hop_by_hop(fields);
    for name in CORS {
        fields.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&str, &str)]) -> Request<()> {
        let request =
            fields.iter().fold(Request::get("https://cluster:6443/api"), |request, (name, value)| {
                request.header(*name, *value)
            });
        request.body(()).expect("a request")
    }

    fn shown(fields: &HeaderMap) -> Vec<String> {
        let mut shown: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        shown.sort();
        shown
    }

    #[test]
    fn credentials_and_the_connections_own_headers_stay_here() {
        let asked = request(&[
            ("authorization", "Bearer secret"),
            ("impersonate-user", "jane"),
            ("impersonate-extra-scopes", "view"),
            ("connection", "keep-alive, x-hop"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("cookie", "session=1"),
            ("accept", "text/html"),
        ]);
        assert!(!ask_for_upgrade(asked.headers()));
        let passed = passed_on(&asked, false);
        assert_eq!(shown(&passed), ["accept: text/html", "cookie: session=1", "host: cluster:6443"]);
    }

    #[test]
    fn upgrades_keep_what_they_are_made_of() {
        let asked = request(&[
            ("host", "localhost:8001"),
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "abc"),
        ]);
        assert!(ask_for_upgrade(asked.headers()));
        let expected =
            ["connection: Upgrade", "host: localhost:8001", "sec-websocket-key: abc", "upgrade: websocket"];
        assert_eq!(shown(&passed_on(&asked, true)), expected);
    }

    #[test]
    fn the_way_is_told() {
        let mut fields = HeaderMap::new();
        fields.append("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
        fields.append("x-forwarded-for", HeaderValue::from_static("192.0.2.2"));
        fields.append("x-forwarded-uri", HeaderValue::from_static("/forged"));
        let peer = "[::ffff:192.0.2.3]:5000".parse().ok();
        add_forwarded(&mut fields, peer, "/api/v1/nodes/n/proxy/pods");
        let expected = [
            "x-forwarded-for: 192.0.2.1, 192.0.2.2, 192.0.2.3",
            "x-forwarded-uri: /api/v1/nodes/n/proxy/pods",
        ];
        assert_eq!(shown(&fields), expected);
    }

    #[test]
    fn answers_do_not_open_this_server_to_other_origins() {
        let mut fields = HeaderMap::new();
        for name in ["access-control-allow-origin", "connection", "content-type", "x-frame-options"] {
            fields.append(name, HeaderValue::from_static("x"));
        }
        clean_answer(&mut fields);
        assert_eq!(shown(&fields), ["content-type: x", "x-frame-options: x"]);
    }
}
