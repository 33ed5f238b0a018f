//! `/statusz`: what runs here, since when, and where to look further (KEP-4827; beta, and on, in v1.36).
//!
//! Text for people, whose form nobody is to rely on, unless a client asks for the kind `Statusz` in JSON or YAML.

use std::collections::BTreeSet;

use hawser_api::{Error, error::Reason};
use http::{HeaderMap, Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{body::Body, handler::respond, negotiate::media};
use crate::{codec, version};

pub(super) const COMPONENT: &str = "apiserver";
pub(super) const GROUP: &str = "config.k8s.io";
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// Folders that are no help in finding out what is wrong.
const NOT_LISTED: [&str; 5] = [".well-known", "api", "apis", "openapi", "openid"];

/// What stands above pages in text.
pub(super) const WARNING: &str = "Warning: this page is for people, and its form may change at any time.";

/// How a page about the process is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Json(&'static str),
    Yaml(&'static str),
}

/// The page of a server that runs `since` then and answers at `paths`.
pub(super) fn answer(
    since: Timestamp,
    paths: &[String],
    headers: &HeaderMap,
) -> Result<Response<Body>, Error> {
    let (now, folders) = (Timestamp::now(), folders(paths));
    page(headers, "Statusz", || text(since, now, &folders), |version| object(version, since, now, &folders))
}

/// A page in the form that is asked for: as text, or as an object of that kind in that version.
pub(super) fn page(
    headers: &HeaderMap,
    kind: &str,
    text: impl FnOnce() -> String,
    object: impl FnOnce(&str) -> Value,
) -> Result<Response<Body>, Error> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let form = form(accept, kind).ok_or_else(|| {
        let types = format!("text/plain, and application/json and application/yaml of the kind {kind}");
        Error::new(Reason::NotAcceptable, format!("only the following media types are accepted: {types}"))
    })?;
    Ok(match form {
        Form::Text => respond(StatusCode::OK, "text/plain; charset=utf-8", text()),
        Form::Json(version) => respond(StatusCode::OK, "application/json", object(version).to_string()),
        Form::Yaml(version) => {
            let json = object(version).to_string();
            respond(StatusCode::OK, "application/yaml", codec::yaml(json.as_bytes())?)
        }
    })
}

/// The first of what a client takes that there is.
fn form(accept: &str, page: &str) -> Option<Form> {
    if accept.trim().is_empty() {
        return Some(Form::Text);
    }
    accept.split(',').map(media).find_map(|range| {
        let Some(kind) = range.parameter("as") else {
            return matches!(range.name, "text/plain" | "text/*" | "*/*").then_some(Form::Text);
        };
        let asked = range.parameter("v").filter(|_| kind == page && range.parameter("g") == Some(GROUP));
        let version = VERSIONS.into_iter().find(|version| asked == Some(version))?;
        match range.name {
            "application/json" | "application/*" | "*/*" => Some(Form::Json(version)),
            "application/yaml" => Some(Form::Yaml(version)),
            _ => None,
        }
    })
}

/// The first parts of the paths, each once.
fn folders(paths: &[String]) -> Vec<String> {
    let firsts = paths.iter().filter_map(|path| path.strip_prefix('/')?.split('/').next());
    let listed: BTreeSet<&str> = firsts.filter(|first| !NOT_LISTED.contains(first)).collect();
    listed.into_iter().map(|first| format!("/{first}")).collect()
}

fn uptime_seconds(since: Timestamp, now: Timestamp) -> i64 {
    now.as_second().saturating_sub(since.as_second()).max(0)
}

fn text(since: Timestamp, now: Timestamp, folders: &[String]) -> String {
    let up = uptime_seconds(since, now);
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    format!(
        "\n{COMPONENT} statusz\n{WARNING}\n\n\
         Started: {}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\nBinary version: {}\nEmulation version: {}.{}\n\
         Paths: {}\n",
        since.strftime("%a %b %e %H:%M:%S UTC %Y"),
        version::GIT_VERSION,
        version::MAJOR,
        version::MINOR,
        folders.join(" "),
    )
}

fn object(version: &str, since: Timestamp, now: Timestamp, folders: &[String]) -> Value {
    let started = Timestamp::from_second(since.as_second()).unwrap_or(since);
    json!({
        "kind": "Statusz",
        "apiVersion": format!("{GROUP}/{version}"),
        "metadata": { "name": COMPONENT },
        "startTime": started.to_string(),
        "uptimeSeconds": uptime_seconds(since, now),
        // The type has the field; as in `/version`.
        "goVersion": "",
        "binaryVersion": version::GIT_VERSION,
        "emulationVersion": format!("{}.{}", version::MAJOR, version::MINOR),
        "paths": folders,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_text_unless_it_names_the_kind() {
        for (accept, expected) in [
            ("", Some(Form::Text)),
            ("*/*", Some(Form::Text)),
            ("text/plain;charset=utf-8", Some(Form::Text)),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", Some(Form::Json("v1beta1"))),
            ("application/yaml; v=v1alpha1; g=config.k8s.io; as=Statusz", Some(Form::Yaml("v1alpha1"))),
            ("application/json;v=v1;g=config.k8s.io;as=Statusz, */*", Some(Form::Text)),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", None),
            ("application/json;v=v1beta1;g=config.k8s.io", None),
            ("application/json", None),
            ("application/vnd.kubernetes.protobuf;v=v1beta1;g=config.k8s.io;as=Statusz", None),
        ] {
            assert_eq!(form(accept, "Statusz"), expected, "{accept}");
        }
    }

    #[test]
    fn the_page_says_since_when_and_where_to_look() {
        let since: Timestamp = "2026-01-02T03:04:05.6Z".parse().expect("a time");
        let now: Timestamp = "2026-01-02T13:05:07Z".parse().expect("a time");
        let paths = ["/api/v1", "/livez", "/apis", "/openid/v1/jwks", "/metrics", "/livez/ping"];
        let folders = folders(&paths.map(str::to_owned));
        assert_eq!(folders, ["/livez", "/metrics"]);
        let page = text(since, now, &folders);
        assert!(
            page.contains("\nStarted: Fri Jan  2 03:04:05 UTC 2026\nUp: 10 hr 01 min 02 sec\n"),
            "{page}"
        );
        let object = object("v1beta1", since, now, &folders);
        assert_eq!(object["apiVersion"], "config.k8s.io/v1beta1");
        assert_eq!(
            (&object["startTime"], &object["uptimeSeconds"]),
            (&json!("2026-01-02T03:04:05Z"), &json!(36_062))
        );
        assert_eq!(uptime_seconds(now, since), 0);
    }
}
