//! One rule of a role: as the API has it, and compiled for the question whether it allows a request.

use serde::{Deserialize, Deserializer, Serialize};

use crate::auth::Attributes;

/// A rule as objects carry it. Lists that are absent are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// `*` is every group, the empty text the core group.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// `pods`, `pods/log`, `*/scale`, `*`.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Empty is every name.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths; a trailing `*` stands for whatever follows.
    #[serde(rename = "nonResourceURLs", deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
    /// `*` is every verb.
    #[serde(deserialize_with = "list")]
    pub verbs: Vec<String>,
}

/// A list that may be null.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl PolicyRule {
    /// How messages show a rule: `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`.
    pub fn compact(&self) -> String {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let shown = parts.into_iter().filter(|(_, values)| !values.is_empty());
        let shown: Vec<String> = shown.map(|(name, values)| format!("{name}:{}", quoted(values))).collect();
        format!("{{{}}}", shown.join(", "))
    }
}

/// A list of texts as upstream's messages print it: `["a" "b"]`.
pub fn quoted(values: &[String]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

/// The verbs of the API, each with a bit, so that most rules are passed over by one look.
const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// The bit of every verb that has none of its own.
const OTHER: u16 = 1 << VERBS.len();

fn bit(verb: &str) -> u16 {
    VERBS.iter().position(|known| *known == verb).map_or(OTHER, |at| 1 << at)
}

/// A request, ready to be compared with many rules.
pub struct Asked<'a> {
    request: &'a Attributes,
    /// The verb's bit.
    verb: u16,
}

impl<'a> Asked<'a> {
    /// The question whether `request` is allowed.
    pub fn new(request: &'a Attributes) -> Self {
        Self { request, verb: bit(&request.verb) }
    }
}

/// A rule, ready for decisions.
#[derive(Clone, Debug)]
pub struct Rule {
    policy: PolicyRule,
    /// Bits of the verbs it may allow; [`OTHER`] says that the list must be read.
    verbs: u16,
}

impl Rule {
    /// Compiles a rule.
    pub fn new(policy: PolicyRule) -> Self {
        let verbs = policy.verbs.iter().map(|verb| if verb == "*" { u16::MAX } else { bit(verb) });
        Self { verbs: verbs.fold(0, |all, bits| all | bits), policy }
    }

    /// The rule as the API has it.
    pub fn policy(&self) -> &PolicyRule {
        &self.policy
    }

    /// Whether this rule alone allows the request.
    pub fn allows(&self, asked: &Asked<'_>) -> bool {
        let request = asked.request;
        if !self.allows_verb(asked) {
            return false;
        }
        if !request.is_resource() {
            return self.policy.non_resource_urls.iter().any(|pattern| matches_path(pattern, &request.path));
        }
        let names = &self.policy.resource_names;
        self.policy.api_groups.iter().any(|group| group == "*" || *group == request.group)
            && self.policy.resources.iter().any(|pattern| matches_resource(pattern, request))
            && (names.is_empty() || names.contains(&request.name))
    }

    fn allows_verb(&self, asked: &Asked<'_>) -> bool {
        let is_asked = |known: &String| known == "*" || *known == *asked.request.verb;
        self.verbs & asked.verb != 0 && (asked.verb != OTHER || self.policy.verbs.iter().any(is_asked))
    }
}

/// `*`, `pods`, `pods/log` or `*/log`.
fn matches_resource(pattern: &str, request: &Attributes) -> bool {
    let (resource, subresource) = (request.resource.as_str(), request.subresource.as_str());
    if pattern == "*" {
        return true;
    }
    if subresource.is_empty() {
        return pattern == resource;
    }
    let before = pattern.strip_suffix(subresource).and_then(|rest| rest.strip_suffix('/'));
    before.is_some_and(|before| before == "*" || before == resource)
}

/// A path, or its beginning where the pattern ends in `*`.
pub(super) fn matches_path(pattern: &str, path: &str) -> bool {
    pattern == path || (pattern.ends_with('*') && path.starts_with(pattern.trim_end_matches('*')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(groups: &[&str], resources: &[&str], names: &[&str], urls: &[&str], verbs: &[&str]) -> Rule {
        let owned = |values: &[&str]| values.iter().map(ToString::to_string).collect();
        Rule::new(PolicyRule {
            api_groups: owned(groups),
            resources: owned(resources),
            resource_names: owned(names),
            non_resource_urls: owned(urls),
            verbs: owned(verbs),
        })
    }

    /// `verb group/resource[/subresource][:name]`, or `verb /path`.
    fn request(text: &str) -> Attributes {
        let (verb, what) = text.split_once(' ').expect("a verb");
        let verb = verb.to_owned().into();
        if what.starts_with('/') {
            return Attributes { verb, path: what.to_owned(), ..Attributes::default() };
        }
        let (what, name) = what.split_once(':').unwrap_or((what, ""));
        let mut parts = what.split('/').map(str::to_owned);
        let group = parts.next().filter(|group| group != "core").unwrap_or_default();
        let mut next = || parts.next().unwrap_or_default();
        let (resource, subresource) = (next(), next());
        Attributes { verb, group, resource, subresource, name: name.to_owned(), ..Attributes::default() }
    }

    #[track_caller]
    fn check(rule: &Rule, allowed: &[&str], refused: &[&str]) {
        for text in allowed {
            assert!(rule.allows(&Asked::new(&request(text))), "{text}");
        }
        for text in refused {
            assert!(!rule.allows(&Asked::new(&request(text))), "{text}");
        }
    }

    #[test]
    fn rules_allow_what_upstreams_do() {
        check(
            &rule(&[""], &["pods"], &[], &[], &["get", "bind"]),
            &["get core/pods", "get core/pods:a", "bind core/pods"],
            &[
                "list core/pods",
                "get apps/pods",
                "get core/pods/log",
                "get core/nodes",
                "get /pods",
                "use core/pods",
            ],
        );
        check(
            &rule(&["*"], &["*"], &[], &[], &["*"]),
            &["get core/pods", "escalate rbac/roles", "get apps/deployments/scale:a"],
            &["get /metrics"],
        );
        check(
            &rule(&["apps"], &["*/scale", "deployments/status"], &[], &[], &["get"]),
            &["get apps/deployments/scale", "get apps/x/scale", "get apps/deployments/status"],
            &["get apps/deployments", "get apps/x/status", "get apps/deployments/ale", "get apps/scale"],
        );
        check(
            &rule(&[""], &["secrets"], &["a", "b"], &[], &["get", "list"]),
            &["get core/secrets:a", "list core/secrets:b"],
            &["get core/secrets:c", "list core/secrets", "create core/secrets"],
        );
        check(
            &rule(&[], &[], &[], &["/api", "/api/*", "/health*"], &["get"]),
            &["get /api", "get /api/v1", "get /api/", "get /healthz", "get /health"],
            &["post /api", "get /apis", "get /", "get core/api"],
        );
        check(&rule(&[], &[], &[], &["*"], &["*"]), &["get /", "post /x"], &["get core/pods"]);
        check(&rule(&[""], &["pods"], &[], &[], &[]), &[], &["get core/pods"]);
    }

    #[test]
    fn messages_show_rules_as_upstream_does() {
        let rule = rule(&[""], &["pods"], &["x"], &[], &["get", "list"]);
        let text = r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["x"], Verbs:["get" "list"]}"#;
        assert_eq!(rule.policy().compact(), text);
    }
}
