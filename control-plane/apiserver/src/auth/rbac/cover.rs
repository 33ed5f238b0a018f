//! Whether one set of rules allows all that another does.
//!
//! The asked-for rules are broken down to one verb, group, resource and name each (or verb and path), and each of these
//! must be allowed by a single rule of the owner's. The rule is upstream's, so that the same grants are refused. Bounded:
//! a role whose rules come to more than [`MAX_PARTS`] parts is covered by nobody but who may do everything.

use std::collections::{BTreeMap, BTreeSet};

use super::{PolicyRule, rule::matches_path};

/// Parts that rules are broken down to, at most. The largest default role comes to some hundred.
pub const MAX_PARTS: usize = 20_000;

/// Lines of a message, at most: the rest is counted.
const MAX_LINES: usize = 200;

/// The rules of `wanted` that `owned` does not cover, broken down; empty where all is covered.
pub fn missing(owned: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let covers = |part: &PolicyRule| owned.iter().any(|rule| rule_covers(rule, part));
    let mut missing = Vec::new();
    let mut parts = 0;
    for rule in wanted {
        parts += parts_of(rule);
        if parts > MAX_PARTS {
            // Breaking it down is not worth the memory: whole it is covered by a rule that has all of it, or not.
            if !covers(rule) {
                missing.push(rule.clone());
            }
            continue;
        }
        missing.extend(break_down(rule).filter(|part| !covers(part)));
    }
    missing
}

fn parts_of(rule: &PolicyRule) -> usize {
    let lists = [&rule.api_groups, &rule.resources, &rule.verbs];
    let resources = lists.iter().fold(1usize, |all, list| all.saturating_mul(list.len()));
    let resources = resources.saturating_mul(rule.resource_names.len().max(1));
    resources.saturating_add(rule.non_resource_urls.len().saturating_mul(rule.verbs.len()))
}

/// A rule as rules of one verb and one thing each.
fn break_down(rule: &PolicyRule) -> impl Iterator<Item = PolicyRule> {
    let one = |value: &String| vec![value.clone()];
    let names: Vec<Vec<String>> = if rule.resource_names.is_empty() {
        vec![Vec::new()]
    } else {
        rule.resource_names.iter().map(one).collect()
    };
    let resources = rule.api_groups.iter().flat_map(move |group| {
        let names = names.clone();
        rule.resources.iter().flat_map(move |resource| {
            let names = names.clone();
            rule.verbs.iter().flat_map(move |verb| {
                names.clone().into_iter().map(move |resource_names| PolicyRule {
                    api_groups: one(group),
                    resources: one(resource),
                    resource_names,
                    verbs: one(verb),
                    ..PolicyRule::default()
                })
            })
        })
    });
    let paths = rule.non_resource_urls.iter().flat_map(move |path| {
        rule.verbs.iter().map(move |verb| PolicyRule {
            non_resource_urls: one(path),
            verbs: one(verb),
            ..PolicyRule::default()
        })
    });
    resources.chain(paths)
}

/// Whether one rule allows all of a part (or of a whole rule, whose lists it must then have all of).
fn rule_covers(owner: &PolicyRule, part: &PolicyRule) -> bool {
    let has = |owned: &[String], value: &String| owned.iter().any(|known| known == "*" || known == value);
    if !part.verbs.iter().all(|verb| has(&owner.verbs, verb)) {
        return false;
    }
    let groups = part.api_groups.iter().all(|group| has(&owner.api_groups, group));
    let resources = part.resources.iter().all(|resource| covers_resource(&owner.resources, resource));
    let names = owner.resource_names.is_empty()
        || (!part.resource_names.is_empty()
            && part.resource_names.iter().all(|name| owner.resource_names.contains(name)));
    let paths = part
        .non_resource_urls
        .iter()
        .all(|path| owner.non_resource_urls.iter().any(|pattern| matches_path(pattern, path)));
    groups && resources && names && paths
}

fn covers_resource(owned: &[String], resource: &str) -> bool {
    let subresource = resource.split_once('/').map(|(_, subresource)| subresource);
    owned.iter().any(|known| {
        known == "*"
            || known == resource
            || (subresource.is_some() && known.strip_prefix("*/") == subresource)
    })
}

/// Joins broken-down rules that differ in their verb alone, in the order in which they first appear. Groups and verbs of
/// other rules stay as they are.
pub fn compact(rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut verbs: BTreeMap<PolicyRule, Vec<String>> = BTreeMap::new();
    let (mut order, mut whole) = (Vec::new(), Vec::new());
    for mut rule in rules {
        let simple = rule.api_groups.len() == 1
            && rule.resources.len() == 1
            && rule.non_resource_urls.is_empty()
            && rule.resource_names.len() <= 1;
        if !simple {
            whole.push(rule);
            continue;
        }
        let own = std::mem::take(&mut rule.verbs);
        let known = verbs.entry(rule.clone()).or_default();
        if known.is_empty() {
            order.push(rule);
        }
        known.extend(own);
    }
    let joined = order.into_iter().map(|mut rule| {
        rule.verbs = verbs.remove(&rule).unwrap_or_default();
        rule
    });
    joined.chain(whole).collect()
}

/// Rules for a message: each on a line, in order.
pub fn describe(rules: Vec<PolicyRule>) -> String {
    let lines: BTreeSet<String> = compact(rules).iter().map(PolicyRule::compact).collect();
    let more = lines.len().saturating_sub(MAX_LINES);
    let mut text = lines.into_iter().take(MAX_LINES).collect::<Vec<_>>().join("\n");
    if more > 0 {
        text += &format!("\n... and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(value: serde_json::Value) -> Vec<PolicyRule> {
        serde_json::from_value(value).expect("rules")
    }

    /// Rules as `groups resources verbs [names]`, lists with commas; or `paths verbs`.
    fn parse(texts: &[&str]) -> Vec<PolicyRule> {
        let list = |text: &str| -> Vec<String> {
            text.split(',').map(|word| if word == "core" { String::new() } else { word.to_owned() }).collect()
        };
        let parse = |text: &&str| {
            let words: Vec<&str> = text.split(' ').collect();
            match words.as_slice() {
                [paths, verbs] => {
                    PolicyRule { non_resource_urls: list(paths), verbs: list(verbs), ..PolicyRule::default() }
                }
                [groups, resources, verbs, names @ ..] => PolicyRule {
                    api_groups: list(groups),
                    resources: list(resources),
                    verbs: list(verbs),
                    resource_names: names.first().map(|names| list(names)).unwrap_or_default(),
                    ..PolicyRule::default()
                },
                _ => panic!("a rule"),
            }
        };
        texts.iter().map(parse).collect()
    }

    #[track_caller]
    fn check(owned: &[&str], wanted: &[&str], uncovered: &str) {
        assert_eq!(describe(missing(&parse(owned), &parse(wanted))), uncovered);
    }

    #[test]
    fn rules_cover_each_other_as_upstreams_do() {
        check(&["* * *"], &["core pods get", "apps */scale *"], "");
        check(&["core pods get", "core pods list"], &["core pods get,list"], "");
        check(
            &["core pods get"],
            &["core pods get,list,watch"],
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["list" "watch"]}"#,
        );
        check(&["* pods get"], &["core,apps pods get"], "");
        check(
            &["core,apps pods get"],
            &["* pods get"],
            r#"{APIGroups:["*"], Resources:["pods"], Verbs:["get"]}"#,
        );
        check(&["apps */scale get"], &["apps deployments/scale get"], "");
        check(
            &["apps deployments/scale get"],
            &["apps */scale get"],
            r#"{APIGroups:["apps"], Resources:["*/scale"], Verbs:["get"]}"#,
        );
        check(&["core pods get"], &["core pods get a,b"], "");
        check(&["core pods get a,b"], &["core pods get b"], "");
        check(
            &["core pods get a"],
            &["core pods get"],
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#,
        );
        check(
            &["core pods get a"],
            &["core pods get a,b"],
            r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["b"], Verbs:["get"]}"#,
        );
        check(&["/api/*,/x get"], &["/api/v1,/x get"], "");
        check(&["/api/* get"], &["/api get"], r#"{NonResourceURLs:["/api"], Verbs:["get"]}"#);
        check(&["/api/* get"], &["/api/v1/* get"], "");
        check(&["/api/v1/* get"], &["/api/* get"], r#"{NonResourceURLs:["/api/*"], Verbs:["get"]}"#);
        check(&["* *"], &["/anything *"], "");
        check(&[], &["core pods get"], r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#);
        check(&[], &[], "");
    }

    #[test]
    fn rules_that_come_to_too_many_parts_are_compared_whole() {
        let many: Vec<String> = (0..400).map(|number| format!("x{number}")).collect();
        let wanted = rules(json!([{ "apiGroups": many, "resources": many, "verbs": ["get"] }]));
        let all = rules(json!([{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }]));
        assert!(missing(&all, &wanted).is_empty());
        assert_eq!(missing(&[], &wanted), wanted);
        let wanted = rules(json!([{ "apiGroups": [""], "resources": many, "verbs": ["get"] }]));
        let text = describe(missing(&[], &wanted));
        assert!(text.lines().count() == MAX_LINES + 1 && text.ends_with("\n... and 200 more"), "{text}");
    }
}
