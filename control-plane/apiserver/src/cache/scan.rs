//! Finds places in an object's JSON without building a tree.

use std::ops::Range;

use hawser_api::scan::{Members, skip_space};

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

/// Reads the layout; `None` where there is no `metadata` object.
pub(super) fn layout(text: &[u8]) -> Option<Layout> {
    let mut item = 1;
    let (mut position, mut leading) = (0, 0);
    let mut members = Members::new(text, 0)?;
    while let Some((key, start)) = members.next_key() {
        match &text[key] {
            b"kind" | b"apiVersion" if position == leading => {
                leading += 1;
                if leading == 2 {
                    // Past the comma; an object without anything else is served whole.
                    let comma = skip_space(text, members.pass_value()?);
                    item = if text.get(comma) == Some(&b',') { skip_space(text, comma + 1) } else { 1 };
                }
            }
            b"metadata" => {
                let (version_at, comma) = version_place(text, start)?;
                return Some(Layout { item, version_at, comma });
            }
            _ => {}
        }
        position += 1;
    }
    None
}

/// Where `metadata` stands.
pub(super) fn metadata(text: &[u8]) -> Option<Range<usize>> {
    member(text, 0, b"metadata")
}

/// Keys and values of the labels, without their quotes. What has escapes is left out.
pub(super) fn labels(text: &[u8]) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
    let labels = metadata(text).and_then(|metadata| member(text, metadata.start, b"labels"));
    let labels = labels.and_then(|labels| Members::new(text, labels.start));
    labels.into_iter().flatten().filter_map(move |(key, value)| {
        let value = value.start + 1..value.end.checked_sub(1)?;
        let is_plain =
            |range: &Range<usize>| text.get(range.clone()).is_some_and(|text| !text.contains(&b'\\'));
        (is_plain(&key) && is_plain(&value)).then_some((key, value))
    })
}

/// Where the list of the owners of fields stands.
pub(super) fn managed_fields(text: &[u8]) -> Option<Range<usize>> {
    member(text, metadata(text)?.start, b"managedFields")
}

fn member(text: &[u8], at: usize, name: &[u8]) -> Option<Range<usize>> {
    Members::new(text, at)?.find(|(key, _)| &text[key.clone()] == name).map(|(_, value)| value)
}

fn version_place(text: &[u8], metadata: usize) -> Option<(usize, Comma)> {
    let mut found = Comma::Neither;
    for (key, value) in Members::new(text, metadata)? {
        if &text[key] == b"uid" {
            return Some((value.end, Comma::Before));
        }
        found = Comma::After;
    }
    Some((metadata + 1, found))
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
