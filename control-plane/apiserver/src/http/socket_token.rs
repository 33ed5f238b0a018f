//! Bearer tokens of WebSockets: a browser cannot say `Authorization` there, and names its token among the protocols.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hawser_api::Error;
use http::{HeaderMap, HeaderValue, header};

/// What the token is written behind, in base64url without padding (upstream: `websocket.NewProtocolAuthenticator`).
const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Makes the token that is among a WebSocket's protocols the request's authorization, unless it has one, and takes it out
/// of the list: nobody behind this server is to see it. 401 for what is no token.
pub(super) fn take(headers: &mut HeaderMap) -> Result<(), Error> {
    let is_socket =
        headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_socket {
        return Ok(());
    }
    let named =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|value| value.split(',')).map(str::trim).map(str::to_owned);
    let (tokens, protocols): (Vec<_>, Vec<_>) = named.partition(|protocol| protocol.starts_with(PREFIX));
    let [token] = tokens.as_slice() else {
        return if tokens.is_empty() { Ok(()) } else { Err(Error::unauthorized()) };
    };
    // The server has to choose a protocol, and must not choose the token.
    let protocols = HeaderValue::from_str(&protocols.join(", ")).ok().filter(|value| !value.is_empty());
    let protocols = protocols.ok_or_else(Error::unauthorized)?;
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols);
    if headers.contains_key(header::AUTHORIZATION) {
        return Ok(());
    }
    let decoded =
        URL_SAFE_NO_PAD.decode(&token[PREFIX.len()..]).ok().and_then(|it| String::from_utf8(it).ok());
    let decoded = decoded.ok_or_else(Error::unauthorized)?;
    let authorization = HeaderValue::from_str(&format!("Bearer {decoded}"));
    headers.insert(header::AUTHORIZATION, authorization.map_err(|_| Error::unauthorized())?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The protocols and the authorization that are left, or the status.
    #[track_caller]
    fn check(
        protocols: &str,
        authorization: Option<&'static str>,
        expected: Result<(&str, Option<&str>), u16>,
    ) {
        let mut headers = HeaderMap::new();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(protocols).unwrap());
        if let Some(authorization) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(authorization));
        }
        let taken = take(&mut headers).map_err(|error| error.code());
        let text = |name| headers.get(&name).map(|value: &HeaderValue| value.to_str().unwrap());
        let left =
            taken.map(|()| (text(header::SEC_WEBSOCKET_PROTOCOL).unwrap(), text(header::AUTHORIZATION)));
        assert_eq!(left, expected, "{protocols}");
    }

    #[test]
    fn a_token_is_taken_out_of_the_protocols() {
        let token = |text: &str| format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(text));
        let secret = token("a.b.c");
        check("v5.channel.k8s.io", None, Ok(("v5.channel.k8s.io", None)));
        check(&format!("{secret}, v5.channel.k8s.io"), None, Ok(("v5.channel.k8s.io", Some("Bearer a.b.c"))));
        check(&format!("v4.channel.k8s.io,{secret},channel.k8s.io"), Some("Bearer x"), {
            Ok(("v4.channel.k8s.io, channel.k8s.io", Some("Bearer x")))
        });
        check(&secret, None, Err(401));
        check(&format!("{secret}, {secret}, channel.k8s.io"), None, Err(401));
        check(&format!("{PREFIX}!!, channel.k8s.io"), None, Err(401));
    }
}
