//! Options of requests about resources, out of the query or the body.

use std::time::Duration;

use bytes::Bytes;
use hawser_api::{Error, schema::FieldValidation};
use http::{HeaderMap, header};
use serde_json::Value;

use super::{negotiate, path::Query};
use crate::{
    codec,
    ops::{WatchRequest, WriteOptions, is_true, options},
    registry::{DeleteRequest, ListRequest, VersionMatch},
};

const DELETE: &str = "DeleteOptions";

fn number(query: &Query, name: &str) -> Result<Option<i64>, Error> {
    query.find(name).map(|text| options::number(name, text)).transpose()
}

pub(super) fn list(query: &Query) -> Result<ListRequest, Error> {
    // Not looked at, but nobody is to believe that it was.
    number(query, "timeoutSeconds")?;
    let limit = number(query, "limit")?.unwrap_or(0);
    Ok(ListRequest {
        label_selector: query.get("labelSelector").to_owned(),
        resource_version: query.get("resourceVersion").to_owned(),
        version_match: VersionMatch::parse(query.get("resourceVersionMatch")),
        send_initial_events: query.find("sendInitialEvents").map(is_true),
        // Below zero is no limit, as upstream has it.
        limit: usize::try_from(limit).unwrap_or(0),
        continue_token: query.get("continue").to_owned(),
        ..ListRequest::default()
    })
}

pub(super) fn watch(query: &Query) -> Result<WatchRequest, Error> {
    number(query, "limit")?;
    Ok(WatchRequest {
        label_selector: query.get("labelSelector").to_owned(),
        resource_version: query.get("resourceVersion").to_owned(),
        version_match: VersionMatch::parse(query.get("resourceVersionMatch")),
        send_initial_events: query.find("sendInitialEvents").map(is_true),
        continue_token: query.get("continue").to_owned(),
    })
}

/// How long a watch is to last; `None` where the server is to say. One of less than nothing is over at once.
pub(super) fn timeout(query: &Query) -> Result<Option<Duration>, Error> {
    Ok(number(query, "timeoutSeconds")?.and_then(options::timeout))
}

pub(super) fn field_validation(kind: &str, query: &Query) -> Result<FieldValidation, Error> {
    options::field_validation(kind, query.get("fieldValidation"))
}

pub(super) fn write(kind: &str, query: &Query, headers: &HeaderMap) -> Result<WriteOptions, Error> {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("unknown");
    Ok(WriteOptions {
        dry_run: options::dry_run(kind, query.all("dryRun"))?,
        field_manager: query.get("fieldManager").to_owned(),
        user_agent: agent.to_owned(),
        uid: None,
    })
}

/// Options of a deletion: those of the body where there is one, or else those of the query, as upstream.
pub(super) fn delete(query: &Query, headers: &HeaderMap, body: &Bytes) -> Result<DeleteRequest, Error> {
    if body.is_empty() {
        let policy = query.find("propagationPolicy").filter(|policy| !policy.is_empty());
        let orphan = query.find("orphanDependents").map(is_true);
        return Ok(DeleteRequest {
            grace_period_seconds: number(query, "gracePeriodSeconds")?,
            propagation: options::propagation(policy, orphan)?,
            dry_run: options::dry_run(DELETE, query.all("dryRun"))?,
            ..DeleteRequest::default()
        });
    }
    let expected = ("v1", DELETE);
    let options = codec::decode(body, negotiate::input(headers)?, expected, FieldValidation::Ignore)?.object;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let dry_run = options["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let (policy, orphan) = (options["propagationPolicy"].as_str(), options["orphanDependents"].as_bool());
    Ok(DeleteRequest {
        grace_period_seconds: options["gracePeriodSeconds"].as_i64(),
        propagation: options::propagation(policy, orphan)?,
        uid: text(&options["preconditions"]["uid"]),
        resource_version: text(&options["preconditions"]["resourceVersion"]),
        dry_run: options::dry_run(DELETE, dry_run)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_or_refused() {
        let query = |text| Query::parse(Some(text));
        assert_eq!(list(&query("limit=-5")).map(|list| list.limit).ok(), Some(0));
        assert_eq!(timeout(&query("timeoutSeconds=0")).ok(), Some(None));
        assert_eq!(timeout(&query("timeoutSeconds=-1")).ok(), Some(Some(Duration::ZERO)));
        for wrong in ["limit=", "limit=ten", "timeoutSeconds=1m", "limit=9223372036854775808"] {
            assert_eq!(list(&query(wrong)).err().map(|error| error.code()), Some(400), "{wrong}");
        }
        assert_eq!(watch(&query("limit=ten")).err().map(|error| error.code()), Some(400));
    }

    #[test]
    fn a_deletion_reads_its_body_or_the_query() {
        let query = Query::parse(Some("gracePeriodSeconds=5&dryRun=All"));
        let bare = delete(&query, &HeaderMap::new(), &Bytes::new()).expect("options");
        assert_eq!((bare.grace_period_seconds, bare.dry_run), (Some(5), true));
        let body = Bytes::from_static(br#"{"propagationPolicy":"Orphan"}"#);
        let said = delete(&query, &HeaderMap::new(), &body).expect("options");
        assert_eq!(
            (said.grace_period_seconds, said.dry_run, said.propagation.is_some()),
            (None, false, true)
        );
    }
}
