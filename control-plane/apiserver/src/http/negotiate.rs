//! Content negotiation: what a client sends, and what it takes.

use hawser_api::{Error, error::Reason};
use http::{HeaderMap, header};

use crate::codec::Encoding;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What an answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Output {
    pub encoding: Encoding,
    pub shape: Shape,
    /// JSON with line breaks.
    pub pretty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The object as it is.
    Plain,
    /// `meta.k8s.io` Table, in this version.
    Table(&'static str),
    /// `PartialObjectMetadata`, or its list.
    Metadata(&'static str),
}

impl Output {
    pub(super) const JSON: Self = Self { encoding: Encoding::Json, shape: Shape::Plain, pretty: false };

    pub(super) fn is_compact_json(self) -> bool {
        self.encoding == Encoding::Json && !self.pretty
    }

    pub(super) fn content_type(self) -> &'static str {
        match self.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => PROTOBUF,
        }
    }

    pub(super) fn watch_content_type(self) -> &'static str {
        match self.encoding {
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            _ => "application/json",
        }
    }
}

/// A media range of an `Accept` header.
pub(super) struct Media<'a> {
    pub name: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Media<'a> {
    pub(super) fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

pub(super) fn media(text: &str) -> Media<'_> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let parameters =
        parts.filter_map(|part| part.split_once('=')).map(|(key, value)| (key.trim(), value.trim()));
    Media { name, parameters: parameters.collect() }
}

/// Chooses the first of what the client takes that can be made; 406 where nothing can.
pub(super) fn output(headers: &HeaderMap, user_pretty: Option<bool>) -> Result<Output, Error> {
    let accept: Vec<&str> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|range| !range.is_empty())
        .collect();
    let pretty = user_pretty.unwrap_or(false);
    if accept.is_empty() {
        return Ok(Output { pretty, ..Output::JSON });
    }
    accept
        .iter()
        .find_map(|range| choose(&media(range)))
        .map(|output| Output { pretty, ..output })
        .ok_or_else(not_acceptable)
}

pub(super) fn not_acceptable() -> Error {
    Error::new(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json, application/yaml, \
         application/vnd.kubernetes.protobuf",
    )
}

/// For a watch in what has no stream: upstream knows none of YAML either.
pub(super) fn not_streamed() -> Error {
    Error::new(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json;stream=watch, \
         application/vnd.kubernetes.protobuf;stream=watch",
    )
}

fn choose(range: &Media<'_>) -> Option<Output> {
    let encoding = match range.name {
        "application/json" | "*/*" | "application/*" => Encoding::Json,
        "application/yaml" => Encoding::Yaml,
        PROTOBUF => Encoding::Protobuf,
        _ => return None,
    };
    if range.parameter("q") == Some("0") {
        return None;
    }
    let shape = match range.parameter("as") {
        None => Shape::Plain,
        Some(kind) => {
            let version = match (range.parameter("g"), range.parameter("v")) {
                (Some("meta.k8s.io"), Some("v1")) => "v1",
                (Some("meta.k8s.io"), Some("v1beta1")) => "v1beta1",
                _ => return None,
            };
            match kind {
                "Table" if encoding != Encoding::Protobuf => Shape::Table(version),
                "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata(version),
                _ => return None,
            }
        }
    };
    Some(Output { encoding, shape, pretty: false })
}

/// How the body of a request is written; 415 for what cannot be read.
pub(super) fn input(headers: &HeaderMap) -> Result<Encoding, Error> {
    match content_type(headers) {
        "" | "application/json" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        PROTOBUF => Ok(Encoding::Protobuf),
        other => Err(Error::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format ({other}) - accepted media types include: \
                 application/json, application/yaml, application/vnd.kubernetes.protobuf"
            ),
        )),
    }
}

/// The media type of the body, without parameters.
pub(super) fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(media)
        .any(|range| range.name == "gzip" && !range.parameters.contains(&("q", "0")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, expected: Option<(Encoding, Shape)>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().expect("a header"));
        let found = output(&headers, None).ok().map(|output| (output.encoding, output.shape));
        assert_eq!(found, expected, "{accept}");
    }

    #[test]
    fn the_first_that_can_be_made_is_chosen() {
        use Encoding::{Json, Protobuf, Yaml};
        check("application/json", Some((Json, Shape::Plain)));
        check("*/*", Some((Json, Shape::Plain)));
        check("application/yaml", Some((Yaml, Shape::Plain)));
        check("application/vnd.kubernetes.protobuf,application/json", Some((Protobuf, Shape::Plain)));
        check("application/vnd.kubernetes.protobuf;stream=watch", Some((Protobuf, Shape::Plain)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Json, Shape::Table("v1"))),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
            Some((Protobuf, Shape::Metadata("v1"))),
        );
        check("application/json;as=Table;v=v9;g=meta.k8s.io", None);
        check("application/json;as=Table;v=v9;g=meta.k8s.io, application/json", Some((Json, Shape::Plain)));
        check("text/html", None);
        check("text/html, */*", Some((Json, Shape::Plain)));
    }
}
