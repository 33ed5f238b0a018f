//! `/flagz`: the flags that this process runs with (KEP-4828; beta, and on, in v1.36).
//!
//! Text for people, or the kind `Flagz` in JSON or YAML, as [`super::statusz`]. No flag holds a secret: those are in files.

use hawser_api::Error;
use http::{HeaderMap, Response};
use serde_json::{Map, Value, json};

use super::{
    body::Body,
    statusz::{COMPONENT, GROUP, WARNING, page},
};

/// Name and value of a flag, given or by default.
pub type Flag = (String, String);

pub(super) fn answer(flags: &[Flag], headers: &HeaderMap) -> Result<Response<Body>, Error> {
    page(headers, "Flagz", || text(flags), |version| object(version, flags))
}

fn text(flags: &[Flag]) -> String {
    let mut lines: Vec<String> = flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    lines.sort_unstable();
    format!("\n{COMPONENT} flags\n{WARNING}\n\n{}", lines.concat())
}

fn object(version: &str, flags: &[Flag]) -> Value {
    let flags: Map<String, Value> = flags.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "kind": "Flagz",
        "apiVersion": format!("{GROUP}/{version}"),
        "metadata": { "name": COMPONENT },
        "flags": flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_shown_in_order() {
        let flags = [("v".to_owned(), "2".to_owned()), ("data-dir".to_owned(), "/data".to_owned())];
        assert!(text(&flags).ends_with("\n\ndata-dir=/data\nv=2\n"), "{}", text(&flags));
        let object = object("v1beta1", &flags);
        assert_eq!(object["apiVersion"], "config.k8s.io/v1beta1");
        assert_eq!(object["flags"], json!({ "data-dir": "/data", "v": "2" }));
    }
}
