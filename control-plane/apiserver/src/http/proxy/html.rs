//! Links in pages of HTML that come through a proxy.
//!
//! Reads tags only as far as it must to find attributes that hold an address, and leaves every other byte as it is. Pages
//! that are larger than [`MAX_PAGE_BYTES`], or in an encoding that is not understood, pass unchanged.

use std::io::Read;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use futures::{StreamExt, stream};
use http::{HeaderMap, header};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;

use super::rewrite::Rewriter;
use crate::http::body::{self, Body, BoxError};

/// A page is held in memory until it is whole.
const MAX_PAGE_BYTES: usize = 8 << 20;

/// Attributes with an address, by element: upstream's table.
const LINKS: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text, whatever it looks like.
const TEXT_ONLY: [&str; 10] =
    ["iframe", "noembed", "noframes", "noscript", "plaintext", "script", "style", "textarea", "title", "xmp"];

pub(super) fn is_html(headers: &HeaderMap) -> bool {
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media.split(';').next().unwrap_or_default().trim() == "text/html"
}

/// Makes the links of a page lead through the proxy.
///
/// # Errors
/// The other side's, when the page cannot be read to its end.
pub(super) async fn rewrite(
    headers: &mut HeaderMap,
    page: Body,
    rewriter: &Rewriter,
) -> Result<Body, BoxError> {
    let encoding = headers.get(header::CONTENT_ENCODING).map_or(&b""[..], |value| value.as_bytes());
    let is_gzip = match encoding {
        b"" | b"identity" => false,
        b"gzip" => true,
        _ => return Ok(page),
    };
    let bytes = match collect(page).await? {
        Ok(bytes) => bytes,
        Err(unchanged) => return Ok(unchanged),
    };
    let Some(text) = (if is_gzip { inflate(&bytes) } else { Some(bytes.clone()) }) else {
        return Ok(body::full(bytes));
    };
    let Some(rewritten) = rewrite_links(&text, |url| rewriter.url(url)) else {
        return Ok(body::full(bytes));
    };
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::CONTENT_ENCODING);
    Ok(body::full(rewritten))
}

/// The whole page, or one that is too large as it was.
async fn collect(mut page: Body) -> Result<Result<Bytes, Body>, BoxError> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = page.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > MAX_PAGE_BYTES {
            let begin = stream::iter([Ok(Frame::data(bytes.freeze()))]);
            return Ok(Err(StreamBody::new(begin.chain(BodyStream::new(page))).boxed_unsync()));
        }
    }
    Ok(Ok(bytes.freeze()))
}

fn inflate(bytes: &[u8]) -> Option<Bytes> {
    let mut text = Vec::new();
    let mut decoder = MultiGzDecoder::new(bytes).take(MAX_PAGE_BYTES as u64 + 1);
    decoder.read_to_end(&mut text).ok()?;
    (text.len() <= MAX_PAGE_BYTES).then(|| text.into())
}

/// The page with other addresses; `None` where none changes.
fn rewrite_links(page: &[u8], rewritten: impl Fn(&str) -> Option<String>) -> Option<Vec<u8>> {
    let (mut out, mut copied) = (Vec::new(), 0);
    let mut tags = Scanner { page, at: 0 };
    while let Some(tag) = tags.next_tag() {
        let known = LINKS.iter().find(|(element, _)| *element == tag).map_or(&[][..], |(_, names)| names);
        while let Some((name, start, end)) = tags.next_attribute() {
            let value =
                std::str::from_utf8(&page[start..end]).ok().filter(|_| known.contains(&name.as_str()));
            if let Some(value) = value.and_then(&rewritten) {
                out.extend_from_slice(&page[copied..start]);
                out.extend_from_slice(value.as_bytes());
                copied = end;
            }
        }
        if TEXT_ONLY.contains(&tag.as_str()) {
            tags.skip_text_of(&tag);
        }
    }
    (copied > 0).then(|| [out.as_slice(), &page[copied..]].concat())
}

/// Finds start tags and their attributes.
struct Scanner<'a> {
    page: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn rest(&self) -> &[u8] {
        &self.page[self.at.min(self.page.len())..]
    }

    fn peek(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    /// Moves on while bytes are as wanted, and returns where that began.
    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) -> usize {
        let start = self.at;
        self.at += self.rest().iter().position(|byte| !wanted(*byte)).unwrap_or(self.rest().len());
        start
    }

    /// Moves behind `end`, or to the end of the page.
    fn skip_past(&mut self, end: &[u8]) {
        let found = self.rest().windows(end.len()).position(|window| window == end);
        self.at = found.map_or(self.page.len(), |found| self.at + found + end.len());
    }

    fn lower(&self, start: usize) -> String {
        String::from_utf8_lossy(&self.page[start..self.at]).to_ascii_lowercase()
    }

    /// Moves behind the name of the next start tag, and returns it in lower case.
    fn next_tag(&mut self) -> Option<String> {
        loop {
            self.skip_while(|byte| byte != b'<');
            match self.rest() {
                [] => return None,
                [b'<', first, ..] if first.is_ascii_alphabetic() => {
                    self.at += 1;
                    let start =
                        self.skip_while(|byte| !byte.is_ascii_whitespace() && byte != b'/' && byte != b'>');
                    return Some(self.lower(start));
                }
                rest if rest.starts_with(b"<!--") => {
                    self.at += 4;
                    self.skip_past(b"-->");
                }
                [b'<', b'!' | b'?' | b'/', ..] => self.skip_past(b">"),
                _ => self.at += 1,
            }
        }
    }

    /// Moves behind the next attribute of the tag: its name, and where its value begins and ends. `None` behind the tag.
    fn next_attribute(&mut self) -> Option<(String, usize, usize)> {
        let is_space = |byte: u8| byte.is_ascii_whitespace();
        self.skip_while(|byte| is_space(byte) || byte == b'/');
        match self.peek() {
            None => return None,
            Some(b'>') => {
                self.at += 1;
                return None;
            }
            // A name may begin with what otherwise ends it.
            Some(_) => self.at += 1,
        }
        let start = self.at - 1;
        self.skip_while(|byte| !is_space(byte) && !b"/>=".contains(&byte));
        let name = self.lower(start);
        self.skip_while(is_space);
        if self.peek() != Some(b'=') {
            return Some((name, self.at, self.at));
        }
        self.at += 1;
        self.skip_while(is_space);
        let (start, end) = match self.peek() {
            Some(quote @ (b'"' | b'\'')) => {
                self.at += 1;
                let start = self.skip_while(|byte| byte != quote);
                let end = self.at;
                self.at += 1;
                (start, end)
            }
            _ => (self.skip_while(|byte| !is_space(byte) && byte != b'>'), self.at),
        };
        Some((name, start, end))
    }

    /// Moves to the end tag of an element whose content is text.
    fn skip_text_of(&mut self, element: &str) {
        let is_end =
            |window: &[u8]| window.starts_with(b"</") && window[2..].eq_ignore_ascii_case(element.as_bytes());
        let found = self.rest().windows(element.len() + 2).position(is_end);
        self.at = found.map_or(self.page.len(), |found| self.at + found);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    /// Every absolute path gets `/P` in front.
    #[track_caller]
    fn check(page: &str, expected: &str) {
        let rewritten =
            rewrite_links(page.as_bytes(), |url| url.starts_with('/').then(|| format!("/P{url}")));
        let rewritten =
            rewritten.map_or_else(|| page.to_owned(), |bytes| String::from_utf8(bytes).expect("text"));
        assert_eq!(rewritten, expected);
    }

    #[test]
    fn links_change_and_nothing_else_does() {
        check("<a href=\"/x\">/x</a>", "<a href=\"/P/x\">/x</a>");
        check("<A class=b HREF = '/x?a=1&amp;b'\n>", "<A class=b HREF = '/P/x?a=1&amp;b'\n>");
        check("<img src=/x.png/><img alt=/x src=/y>", "<img src=/P/x.png/><img alt=/x src=/P/y>");
        check(
            "<form action=/go><input formaction=/s name='/n'>",
            "<form action=/P/go><input formaction=/P/s name='/n'>",
        );
        check("<a title=\"<a href='/x'>\" href=\"/y\">", "<a title=\"<a href='/x'>\" href=\"/P/y\">");
        check(
            "<script src=\"/a.js\">if (1</2) { s = '<a href=\"/x\">' }</script><a href=/y>",
            "<script src=\"/P/a.js\">if (1</2) { s = '<a href=\"/x\">' }</script><a href=/P/y>",
        );
        check(
            "<!doctype html><!-- <a href=/x> --><a href=/y>",
            "<!doctype html><!-- <a href=/x> --><a href=/P/y>",
        );
        check(
            "<a href=x><a href=\"http://a/\"><div href=/x>1 < 2",
            "<a href=x><a href=\"http://a/\"><div href=/x>1 < 2",
        );
        check("<a disabled href><a =href=/x>", "<a disabled href><a =href=/x>");
    }

    #[test]
    fn broken_pages_pass() {
        for page in [
            "<",
            "<a",
            "<a href",
            "<a href=",
            "<a href=\"",
            "<a href=\"x",
            "<!--",
            "<!",
            "</",
            "<script>",
            "<script",
        ] {
            check(page, page);
        }
        check("<a href=\"/x", "<a href=\"/P/x");
    }

    fn page(bytes: Vec<u8>, encoding: Option<&'static str>) -> (HeaderMap, Body) {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, bytes.len().into());
        if let Some(encoding) = encoding {
            headers.insert(header::CONTENT_ENCODING, http::HeaderValue::from_static(encoding));
        }
        (headers, body::full(bytes))
    }

    async fn rewritten(bytes: Vec<u8>, encoding: Option<&'static str>) -> (HeaderMap, Bytes) {
        let (mut headers, page) = page(bytes, encoding);
        let body = rewrite(&mut headers, page, &Rewriter::new("/P", "", "")).await.expect("read");
        (headers, body.collect().await.expect("read").to_bytes())
    }

    #[tokio::test]
    async fn compressed_pages_are_read_where_they_can_be() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"<a href=/x>").expect("written");
        let packed = encoder.finish().expect("written");
        let (headers, text) = rewritten(packed.clone(), Some("gzip")).await;
        assert_eq!((text.as_ref(), headers.len()), (&b"<a href=/P/x>"[..], 0));
        for (bytes, encoding) in [(packed, "br"), (b"no gzip".to_vec(), "gzip")] {
            let (headers, text) = rewritten(bytes.clone(), Some(encoding)).await;
            assert_eq!((text.as_ref(), headers.len()), (bytes.as_slice(), 2), "{encoding}");
        }
    }

    #[tokio::test]
    async fn large_pages_pass_unchanged() {
        let mut large = b"<a href=/x>".to_vec();
        large.resize(MAX_PAGE_BYTES + 1, b' ');
        let (headers, text) = rewritten(large.clone(), None).await;
        assert_eq!((text.len(), headers.len()), (large.len(), 1));
        assert!(text.starts_with(b"<a href=/x>"));
    }
}
