//! Finds places in an object's JSON without building a tree.
//!
//! Works on text that is known to be valid JSON (it was parsed before): a wrong guess could only come from text that
//! is not, and ends in `None`, never in a panic.

use std::ops::Range;

/// Where things stand in an object's JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Offset of the first member after `kind` and `apiVersion`, where these two come first; else 1.
    ///
    /// `{` followed by the text from there on is the object as list items have it.
    pub item: usize,
    /// Offset just inside `metadata`, or after its `uid` where there is one: where a resource version goes.
    pub version_at: usize,
    /// Whether what stands at `version_at` must be parted from the resource version by a comma before, or after it.
    pub comma: Comma,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comma {
    Before,
    After,
    /// `metadata` is empty.
    Neither,
}

/// The members of the object at the start of `text`: ranges of each key (without quotes) and value.
struct Members<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Members<'a> {
    /// `at` is the offset of the opening brace.
    fn new(text: &'a [u8], at: usize) -> Option<Self> {
        (text.get(at) == Some(&b'{')).then_some(Self { text, at: at + 1 })
    }
}

impl Iterator for Members<'_> {
    type Item = (Range<usize>, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        self.at = skip_space(self.text, self.at);
        if self.text.get(self.at) == Some(&b',') {
            self.at = skip_space(self.text, self.at + 1);
        }
        if self.text.get(self.at) != Some(&b'"') {
            return None;
        }
        let key_end = skip_string(self.text, self.at)?;
        let key = self.at + 1..key_end - 1;
        let colon = skip_space(self.text, key_end);
        let start = skip_space(self.text, colon + 1);
        let end = skip_value(self.text, start)?;
        self.at = end;
        Some((key, start..end))
    }
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// The offset after the string that starts at `at`.
fn skip_string(text: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The offset after the value that starts at `at`.
fn skip_value(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at)? {
        b'"' => skip_string(text, at),
        b'{' | b'[' => {
            let (mut depth, mut at) = (0_usize, at);
            loop {
                match text.get(at)? {
                    b'"' => {
                        at = skip_string(text, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        _ => {
            let rest = text.get(at..)?;
            let len =
                rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace());
            Some(at + len?)
        }
    }
}

/// Reads the layout; `None` where there is no `metadata` object.
pub(super) fn layout(text: &[u8]) -> Option<Layout> {
    let mut item = 1;
    let mut leading = 0;
    for (position, (key, value)) in Members::new(text, 0)?.enumerate() {
        match &text[key.clone()] {
            b"kind" | b"apiVersion" if position == leading => {
                leading += 1;
                if leading == 2 {
                    // Past the comma; an object without anything else is served whole.
                    let comma = skip_space(text, value.end);
                    item = if text.get(comma) == Some(&b',') { skip_space(text, comma + 1) } else { 1 };
                }
            }
            b"metadata" => {
                return version_place(text, value.start).map(|(at, comma)| Layout {
                    item,
                    version_at: at,
                    comma,
                });
            }
            _ => {}
        }
    }
    None
}

fn version_place(text: &[u8], metadata: usize) -> Option<(usize, Comma)> {
    let mut members = 0;
    for (key, value) in Members::new(text, metadata)? {
        if &text[key] == b"uid" {
            return Some((value.end, Comma::Before));
        }
        members += 1;
    }
    Some((metadata + 1, if members == 0 { Comma::Neither } else { Comma::After }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, item: &str, after_version: &str, comma: Comma) {
        let layout = layout(text.as_bytes()).expect("an object with metadata");
        assert_eq!(&text[layout.item..], item);
        assert_eq!(&text[layout.version_at..], after_version);
        assert_eq!(layout.comma, comma);
    }

    #[test]
    fn finds_where_items_begin_and_versions_go() {
        check(
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","uid":"u","labels":{}},"spec":{}}"#,
            r#""metadata":{"name":"a","uid":"u","labels":{}},"spec":{}}"#,
            r#","labels":{}},"spec":{}}"#,
            Comma::Before,
        );
        check(
            r#"{"apiVersion":"v1","data":{"metadata":"x"},"kind":"ConfigMap","metadata":{}}"#,
            r#""apiVersion":"v1","data":{"metadata":"x"},"kind":"ConfigMap","metadata":{}}"#,
            "}}",
            Comma::Neither,
        );
        check(
            r#"{"kind":"A","apiVersion":"v1","x":"}\"{","metadata":{"name":"a"}}"#,
            r#""x":"}\"{","metadata":{"name":"a"}}"#,
            r#""name":"a"}}"#,
            Comma::After,
        );
    }

    #[test]
    fn text_that_is_not_an_object_has_no_layout() {
        for text in [
            "",
            "[]",
            "{",
            r#"{"metadata"#,
            r#"{"metadata":"#,
            r#"{"metadata":[]}"#,
            r#"{"a":1}"#,
            r#"{"a":"\"#,
        ] {
            assert_eq!(layout(text.as_bytes()), None, "{text}");
        }
    }
}
