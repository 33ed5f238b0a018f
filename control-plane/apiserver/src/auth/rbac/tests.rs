//! The index against the plain definition: every binding and every rule, looked at one by one.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{index::Sink, *};
use crate::{
    auth::{AUTHENTICATED, Attributes},
    cache::{CachedObject, ObjectSink},
};

const PATHS: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];

/// A small generator, so that the histories are the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// One to three of them.
    fn some(&mut self, values: &[&'static str]) -> Vec<&'static str> {
        (0..=self.below(3)).map(|_| self.of(values)).collect()
    }
}

const NAMESPACES: [&str; 3] = ["a", "b", "kube-system"];
const USERS: [&str; 3] = ["alice", "bob", "system:serviceaccount:a:robot"];
const GROUPS: [&str; 4] = ["dev", "ops", AUTHENTICATED, "system:serviceaccounts:a"];
const ACCOUNTS: [&str; 2] = ["robot", "other"];
const ROLES: [&str; 4] = ["r1", "r2", "r3", "r4"];
const VERBS: [&str; 6] = ["get", "list", "create", "deletecollection", "escalate", "*"];
const API_GROUPS: [&str; 3] = ["", "apps", "*"];
const RESOURCES: [&str; 7] =
    ["pods", "pods/log", "deployments", "deployments/scale", "*/scale", "secrets", "*"];
const URLS: [&str; 5] = ["/metrics", "/api/*", "/api", "*", "/health*"];

fn rule(random: &mut Random) -> Value {
    if random.below(4) == 0 {
        return json!({ "nonResourceURLs": random.some(&URLS), "verbs": random.some(&VERBS) });
    }
    let mut rule = json!({
        "apiGroups": random.some(&API_GROUPS), "resources": random.some(&RESOURCES),
        "verbs": random.some(&VERBS),
    });
    if random.below(3) == 0 {
        rule["resourceNames"] = json!(random.some(&["x", "y"]));
    }
    rule
}

fn subject(random: &mut Random) -> Value {
    match random.below(4) {
        0 => json!({ "kind": "User", "name": random.of(&USERS) }),
        1 => json!({ "kind": "Group", "name": random.of(&GROUPS) }),
        2 => json!({ "kind": "ServiceAccount", "name": random.of(&ACCOUNTS) }),
        _ => json!({
            "kind": "ServiceAccount", "name": random.of(&ACCOUNTS), "namespace": random.of(&NAMESPACES),
        }),
    }
}

fn object(random: &mut Random, path: &str) -> Value {
    if path.ends_with("roles") {
        let rules: Vec<Value> = (0..random.below(6)).map(|_| rule(random)).collect();
        return json!({ "rules": rules });
    }
    let kind = if path == "rolebindings" { random.of(&["Role", "ClusterRole"]) } else { "ClusterRole" };
    let subjects: Vec<Value> = (0..random.below(5)).map(|_| subject(random)).collect();
    json!({ "roleRef": { "kind": kind, "name": random.of(&ROLES) }, "subjects": subjects })
}

/// The objects as a plain map, and the index that was told of the same changes.
struct Twins {
    rbac: Rbac,
    /// By path, namespace and name.
    objects: BTreeMap<(&'static str, String, String), Value>,
}

impl Twins {
    fn sink(&self, path: &str) -> Sink {
        Sink::for_path(&self.rbac.index, &format!("{GROUP}/{path}")).expect("one of the four")
    }

    fn key(path: &str, namespace: &str, name: &str) -> String {
        let namespace = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        format!("/registry/{GROUP}/{path}/{namespace}{name}")
    }

    fn put(&mut self, path: &'static str, namespace: &str, name: &str, mut object: Value) {
        object["metadata"] = json!({ "name": name });
        let key = Self::key(path, namespace, name).as_str().into();
        let cached = CachedObject::parse(key, &Bytes::from(object.to_string()), 1).expect("an object");
        let sink = self.sink(path);
        sink.put(&cached);
        sink.publish();
        self.objects.insert((path, namespace.to_owned(), name.to_owned()), object);
    }

    fn delete(&mut self, path: &'static str, namespace: &str, name: &str) {
        let sink = self.sink(path);
        sink.delete(&Self::key(path, namespace, name));
        sink.publish();
        self.objects.remove(&(path, namespace.to_owned(), name.to_owned()));
    }

    /// One change of one object, which may be there or not.
    fn change(&mut self, random: &mut Random) {
        let path = random.of(&PATHS);
        let namespace = if path.starts_with("cluster") { "" } else { random.of(&NAMESPACES) };
        let name = random.of(&ROLES);
        if random.below(4) == 0 {
            self.delete(path, namespace, name);
        } else {
            let object = object(random, path);
            self.put(path, namespace, name, object);
        }
    }

    /// Everything is told again, kind by kind, as after the history was lost.
    fn tell_again(&self) {
        for path in PATHS {
            let sink = self.sink(path);
            sink.reset();
            for ((of, namespace, name), object) in &self.objects {
                if *of == path {
                    let key = Self::key(path, namespace, name).as_str().into();
                    let json = Bytes::from(object.to_string());
                    sink.put(&CachedObject::parse(key, &json, 1).expect("an object"));
                }
            }
        }
        self.sink(PATHS[0]).publish();
    }

    /// The plain definition.
    fn allows(&self, user: &User, attributes: &Attributes) -> bool {
        self.objects.iter().any(|((path, namespace, _), binding)| {
            let applies = match *path {
                "clusterrolebindings" => true,
                "rolebindings" => *namespace == attributes.namespace,
                _ => false,
            };
            let reference = &binding["roleRef"];
            let name = reference["name"].as_str().unwrap_or_default().to_owned();
            let role = match reference["kind"].as_str() {
                Some("ClusterRole") => ("clusterroles", String::new(), name),
                _ => ("roles", namespace.clone(), name),
            };
            applies
                && list(&binding["subjects"]).iter().any(|subject| is_subject(subject, namespace, user))
                && self.objects.get(&role).is_some_and(|role| {
                    list(&role["rules"]).iter().any(|rule| plainly_allows(rule, attributes))
                })
        })
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_subject(subject: &Value, namespace: &str, user: &User) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => user.name == name,
        Some("Group") => user.is_in(name),
        _ => {
            let namespace = subject["namespace"].as_str().unwrap_or(namespace);
            !namespace.is_empty() && user.name == format!("system:serviceaccount:{namespace}:{name}")
        }
    }
}

fn plainly_allows(rule: &Value, request: &Attributes) -> bool {
    let any = |field: &str, holds: &dyn Fn(&str) -> bool| {
        list(&rule[field]).iter().filter_map(Value::as_str).any(holds)
    };
    let is_or_all = |wanted: &str| {
        let wanted = wanted.to_owned();
        move |known: &str| known == "*" || known == wanted
    };
    if !any("verbs", &is_or_all(&request.verb)) {
        return false;
    }
    if !request.is_resource() {
        return any("nonResourceURLs", &|url| {
            url == request.path
                || url.strip_suffix('*').is_some_and(|beginning| request.path.starts_with(beginning))
        });
    }
    let whole = request.resource_path();
    let any_resource = format!("*/{}", request.subresource);
    any("apiGroups", &is_or_all(&request.group))
        && any("resources", &|known| {
            known == "*" || known == whole || (!request.subresource.is_empty() && known == any_resource)
        })
        && (list(&rule["resourceNames"]).is_empty() || any("resourceNames", &|name| name == request.name))
}

fn question(random: &mut Random) -> (User, Attributes) {
    let mut groups: Vec<String> = random.some(&GROUPS).into_iter().map(str::to_owned).collect();
    groups.dedup();
    let user = User { name: random.of(&USERS).to_owned(), groups, ..User::default() };
    let verb = random.of(&["get", "list", "create", "deletecollection", "escalate", "update", "bind"]).into();
    if random.below(4) == 0 {
        let path = random.of(&["/metrics", "/api", "/api/v1", "/apis", "/healthz", "/health"]);
        return (user, Attributes { verb, path: path.to_owned(), ..Attributes::default() });
    }
    let attributes = Attributes {
        verb,
        group: random.of(&["", "apps", "batch"]).to_owned(),
        resource: random.of(&["pods", "deployments", "secrets"]).to_owned(),
        subresource: random.of(&["", "", "log", "scale"]).to_owned(),
        namespace: random.of(&["", "a", "b", "kube-system", "elsewhere"]).to_owned(),
        name: random.of(&["", "x", "z"]).to_owned(),
        ..Attributes::default()
    };
    (user, attributes)
}

#[test]
fn decisions_are_those_of_the_plain_definition() {
    let (mut allowed, mut refused) = (0, 0);
    for seed in 1..=20 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
        let mut twins = Twins { rbac: Rbac::default(), objects: BTreeMap::new() };
        for step in 0..60 {
            // Few changes to an empty store make few bindings of roles that are there.
            for _ in 0..if step == 0 { 30 } else { 1 } {
                twins.change(&mut random);
            }
            if step % 20 == 19 {
                twins.tell_again();
            }
            for _ in 0..10 {
                let (user, attributes) = question(&mut random);
                let decision = twins.rbac.authorize(&user, &attributes);
                let expected = twins.allows(&user, &attributes);
                let context = || format!("seed {seed}, step {step}: {user:?} {attributes:?}");
                assert_eq!(matches!(decision, Decision::Allow(_)), expected, "{}", context());
                // What can be listed is what decides.
                let listed = twins.rbac.rules(&user, &attributes.namespace).rules;
                let by_list = listed.into_iter().any(|rule| Rule::new(rule).allows(&Asked::new(&attributes)));
                assert_eq!(by_list, expected, "listed, {}", context());
                *(if expected { &mut allowed } else { &mut refused }) += 1;
            }
        }
        let keys: Vec<_> = twins.objects.keys().cloned().collect();
        for (path, namespace, name) in keys {
            twins.delete(path, &namespace, &name);
        }
        for _ in 0..20 {
            let (user, attributes) = question(&mut random);
            let decision = twins.rbac.authorize(&user, &attributes);
            assert!(matches!(decision, Decision::NoOpinion(reason) if reason.is_empty()));
        }
    }
    assert!(allowed > 1_000 && refused > 1_000, "{allowed} allowed, {refused} refused");
}

#[test]
fn answers_are_worded_as_upstream_does() {
    let mut twins = Twins { rbac: Rbac::default(), objects: BTreeMap::new() };
    let user = User {
        name: "system:serviceaccount:a:robot".to_owned(),
        groups: vec!["ops".to_owned()],
        ..User::default()
    };
    let get = |path: &str| Attributes { verb: "get".into(), path: path.to_owned(), ..Attributes::default() };
    let pods = Attributes {
        verb: "get".into(),
        resource: "pods".to_owned(),
        namespace: "b".to_owned(),
        ..Attributes::default()
    };
    let group = json!([{ "kind": "User", "name": "x" }, { "kind": "Group", "name": "ops" }]);
    let reference = |kind: &str, name: &str| json!({ "kind": kind, "name": name });
    twins.put(
        "clusterrolebindings",
        "",
        "x",
        json!({ "roleRef": reference("ClusterRole", "y"), "subjects": group }),
    );
    let decide = |twins: &Twins, attributes: &Attributes| match twins.rbac.authorize(&user, attributes) {
        Decision::Allow(grounds) => grounds.describe(&user),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => reason,
    };
    let missing = r#"clusterrole.rbac.authorization.k8s.io "y" not found"#;
    assert_eq!(decide(&twins, &get("/metrics")), format!("RBAC: {missing}"));
    let account = json!([{ "kind": "ServiceAccount", "name": "robot", "namespace": "a" }]);
    twins.put("rolebindings", "b", "z", json!({ "roleRef": reference("Role", "r"), "subjects": account }));
    let role = r#"role.rbac.authorization.k8s.io "r" not found"#;
    assert_eq!(decide(&twins, &pods), format!("RBAC: [{missing}, {role}]"));
    twins.put(
        "clusterroles",
        "",
        "y",
        json!({ "rules": [{ "nonResourceURLs": ["/metrics"], "verbs": ["get"] }] }),
    );
    assert_eq!(
        decide(&twins, &get("/metrics")),
        r#"RBAC: allowed by ClusterRoleBinding "x" of ClusterRole "y" to Group "ops""#
    );
    let rules = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }]);
    twins.put("roles", "b", "r", json!({ "rules": rules }));
    assert_eq!(
        decide(&twins, &pods),
        r#"RBAC: allowed by RoleBinding "z/b" of Role "r" to ServiceAccount "robot/a""#
    );
    assert_eq!(decide(&twins, &get("/other")), "");
}

#[test]
fn a_published_policy_does_not_see_later_changes() {
    let mut twins = Twins { rbac: Rbac::default(), objects: BTreeMap::new() };
    let rules = json!({ "rules": [{ "nonResourceURLs": ["*"], "verbs": ["*"] }] });
    twins.put("clusterroles", "", "y", rules);
    let before: Arc<_> = twins.rbac.index.policy().clone();
    twins.delete("clusterroles", "", "y");
    let role = RoleRef::new("ClusterRole", "", "y").expect("a role");
    assert!(before.rules(&role).is_some() && twins.rbac.rules_in(&role).is_err());
}
