//! Whether the quotas of a namespace have room for a write, and what they say afterwards. Pure.

use hawser_api::usage::{
    self, Amounts, amounts,
    quota::{Counted, missing},
};
use jiff::Timestamp;
use serde_json::Value;

/// The quotas that a write is charged to, by position, each with its new `status.used`; or why it may not be made.
///
/// A quota's limits are those of its status: what its controller has counted for.
pub(super) fn plan(
    quotas: &[Value],
    kind: Counted<'_>,
    object: &Value,
    old: Option<&Value>,
    now: Timestamp,
) -> Result<Vec<(usize, Value)>, String> {
    let mut charged = Vec::new();
    let uses = kind.usage(object, now);
    for (index, quota) in quotas.iter().enumerate() {
        let name = quota["metadata"]["name"].as_str().unwrap_or_default();
        let hard = amounts(&quota["status"]["hard"]);
        let names: Vec<&str> = hard.keys().map(String::as_str).filter(|name| kind.counts_as(name)).collect();
        if !kind.is_matched(&quota["spec"], &names, object) {
            continue;
        }
        let is_pod = kind == Counted { group: "", resource: "pods" };
        if is_pod && let Some(missing) = missing(&names, object) {
            return Err(format!("failed quota: {name}: {missing}"));
        }
        let mut used = amounts(&quota["status"]["used"]);
        if names.iter().any(|name| !used.contains_key(*name)) {
            return Err(format!("status unknown for quota: {name}, resources: {}", names.join(",")));
        }
        let before = old.filter(|old| kind.is_matched(&quota["spec"], &names, old));
        let before = before.map(|old| kind.usage(old, now)).unwrap_or_default();
        let requested = increase(&names, &uses, &before);
        if requested.is_empty() {
            continue;
        }
        let negative: Vec<&str> =
            requested.iter().filter(|(_, amount)| amount.sign() < 0).map(|(name, _)| name.as_str()).collect();
        if !negative.is_empty() {
            return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
        }
        let mut total = used.clone();
        usage::add(&mut total, &requested);
        let exceeded: Vec<&String> = requested.keys().filter(|name| total[*name] > hard[*name]).collect();
        if !exceeded.is_empty() {
            let shown = |amounts: &Amounts| {
                let some = exceeded.iter().filter_map(|name| Some(((*name).clone(), *amounts.get(*name)?)));
                usage::shown(&some.collect())
            };
            return Err(format!(
                "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                shown(&requested),
                shown(&used),
                shown(&hard)
            ));
        }
        usage::add(&mut used, &requested);
        charged.push((index, usage::to_value(&used)));
    }
    Ok(charged)
}

/// What a write adds to what was counted before it, of these names. What shrinks is left to the controller.
fn increase(names: &[&str], uses: &Amounts, before: &Amounts) -> Amounts {
    let changes = names.iter().filter_map(|name| {
        let uses = *uses.get(*name)?;
        let change = before.get(*name).map_or(uses, |before| uses - *before);
        let shrinks = before.contains_key(*name) && change.sign() < 0;
        (!change.is_zero() && !shrinks).then(|| ((*name).to_owned(), change))
    });
    changes.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PODS: Counted<'static> = Counted { group: "", resource: "pods" };
    const CLAIMS: Counted<'static> = Counted { group: "", resource: "persistentvolumeclaims" };

    fn quota(hard: Value, used: Value) -> Value {
        json!({ "metadata": { "name": "q" }, "spec": { "hard": hard }, "status": { "hard": hard, "used": used } })
    }

    fn pod(cpu: &str) -> Value {
        json!({ "spec": { "containers": [{ "name": "app", "resources": { "requests": { "cpu": cpu } } }] } })
    }

    fn claim(size: &str) -> Value {
        json!({ "spec": { "resources": { "requests": { "storage": size } } } })
    }

    #[track_caller]
    fn check(
        what: &str,
        quotas: &[Value],
        (kind, object, old): (Counted<'_>, &Value, Option<&Value>),
        expected: Result<&[Value], &str>,
    ) {
        let planned = plan(quotas, kind, object, old, Timestamp::UNIX_EPOCH)
            .map(|charged| charged.into_iter().map(|(_, used)| used).collect::<Vec<_>>());
        assert_eq!(planned.as_deref().map_err(String::as_str), expected, "{what}");
    }

    #[test]
    fn a_write_is_charged_where_there_is_room() {
        let made = |pod| (PODS, pod, None);
        let (one, silent) = (pod("1"), json!({ "spec": { "containers": [{ "name": "app" }] } }));
        check("no quota", &[], made(&one), Ok(&[]));
        check("of another kind", &[quota(json!({ "secrets": "1" }), json!({}))], made(&one), Ok(&[]));
        let some =
            quota(json!({ "pods": "10", "requests.cpu": "2" }), json!({ "pods": "9", "requests.cpu": "1" }));
        check(
            "room",
            std::slice::from_ref(&some),
            made(&one),
            Ok(&[json!({ "pods": "10", "requests.cpu": "2" })]),
        );
        let full = quota(
            json!({ "pods": "10", "requests.cpu": "2" }),
            json!({ "pods": "10", "requests.cpu": "1500m" }),
        );
        let why = "exceeded quota: q, requested: pods=1,requests.cpu=1, used: pods=10,requests.cpu=1500m, limited: \
                   pods=10,requests.cpu=2";
        check("no room", &[some.clone(), full], made(&one), Err(why));
        check(
            "a pod that says nothing",
            &[quota(json!({ "limits.cpu": "2" }), json!({ "limits.cpu": "0" }))],
            made(&silent),
            Err("failed quota: q: must specify limits.cpu for: app"),
        );
        check(
            "not counted yet",
            &[quota(json!({ "pods": "1", "count/pods": "1" }), json!({}))],
            made(&silent),
            Err("status unknown for quota: q, resources: count/pods,pods"),
        );
        let mut new = some;
        new["status"] = json!({});
        check("a new quota", &[new], made(&one), Ok(&[]));
        check(
            "a negative amount",
            &[quota(json!({ "requests.cpu": "2" }), json!({ "requests.cpu": "0" }))],
            made(&pod("-1")),
            Err("quota usage is negative for resource(s): requests.cpu"),
        );
    }

    #[test]
    fn an_update_is_charged_what_it_adds() {
        let storage = quota(
            json!({ "requests.storage": "10Gi", "persistentvolumeclaims": "1" }),
            json!({ "requests.storage": "5Gi", "persistentvolumeclaims": "1" }),
        );
        let one = std::slice::from_ref(&storage);
        let (small, large) = (claim("5Gi"), claim("8Gi"));
        let grown = json!({ "requests.storage": "8Gi", "persistentvolumeclaims": "1" });
        check("grows", one, (CLAIMS, &large, Some(&small)), Ok(&[grown]));
        check("stays", one, (CLAIMS, &small, Some(&small)), Ok(&[]));
        check("shrinks", one, (CLAIMS, &small, Some(&large)), Ok(&[]));
        check(
            "grows too much",
            one,
            (CLAIMS, &claim("11Gi"), Some(&small)),
            Err("exceeded quota: q, requested: requests.storage=6Gi, used: requests.storage=5Gi, limited: \
                 requests.storage=10Gi"),
        );
    }
}
