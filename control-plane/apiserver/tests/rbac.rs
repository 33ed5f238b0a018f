//! Roles and their bindings: what they let people do, and who may write them.

mod common;

use common::*;
use hawser_api::{Error, GroupVersionResource};
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";
const ROLES: GroupVersionResource = GroupVersionResource::fixed(RBAC, "v1", "roles");
const CLUSTER_ROLES: GroupVersionResource = GroupVersionResource::fixed(RBAC, "v1", "clusterroles");
const BINDINGS: GroupVersionResource = GroupVersionResource::fixed(RBAC, "v1", "rolebindings");
const CLUSTER_BINDINGS: GroupVersionResource = GroupVersionResource::fixed(RBAC, "v1", "clusterrolebindings");
const ACCESS: &str = "authorization.k8s.io";
const SELF_ACCESS: GroupVersionResource =
    GroupVersionResource::fixed(ACCESS, "v1", "selfsubjectaccessreviews");
const SELF_RULES: GroupVersionResource = GroupVersionResource::fixed(ACCESS, "v1", "selfsubjectrulesreviews");
const SUBJECT_ACCESS: GroupVersionResource =
    GroupVersionResource::fixed(ACCESS, "v1", "subjectaccessreviews");
const LOCAL_ACCESS: GroupVersionResource =
    GroupVersionResource::fixed(ACCESS, "v1", "localsubjectaccessreviews");

const ROBOT: &str = "system:serviceaccount:shop:robot";
const ROBOTS_GROUPS: [&str; 2] = ["system:serviceaccounts", "system:serviceaccounts:shop"];

fn rule(resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": [""], "resources": resources, "verbs": verbs })
}

fn role(name: &str, rules: &[Value]) -> Value {
    json!({ "metadata": { "name": name }, "rules": rules })
}

fn binding(name: &str, kind: &str, role: &str, subject: Value) -> Value {
    json!({
        "metadata": { "name": name }, "subjects": [subject],
        "roleRef": { "apiGroup": RBAC, "kind": kind, "name": role },
    })
}

fn robot() -> Value {
    json!({ "kind": "ServiceAccount", "name": "robot", "namespace": "shop" })
}

fn user(name: &str) -> Value {
    json!({ "kind": "User", "apiGroup": RBAC, "name": name })
}

#[track_caller]
fn refusal(outcome: Result<Value, Error>) -> String {
    let error = outcome.expect_err("it is refused");
    assert_eq!(error.code(), 403, "{error}");
    error.message().to_owned()
}

#[tokio::test]
async fn a_service_account_may_do_what_its_role_says_and_nothing_else() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    running.namespace("other").await;
    let admin = running.admin();
    let account = running.client(ROBOT, &ROBOTS_GROUPS);
    for namespace in ["shop", "other"] {
        admin.create(&CONFIG_MAPS, Some(namespace), config_map("a", "1")).await.expect("a config map");
        refusal(account.get(&CONFIG_MAPS, Some(namespace), "a").await);
    }
    // The binding first: it grants nothing until its role is there.
    let bound = binding("readers", "Role", "reader", robot());
    admin.create(&BINDINGS, Some("shop"), bound).await.expect("a binding");
    let message = refusal(account.get(&CONFIG_MAPS, Some("shop"), "a").await);
    assert_eq!(
        message,
        "configmaps \"a\" is forbidden: User \"system:serviceaccount:shop:robot\" cannot get resource \"configmaps\" \
         in API group \"\" in the namespace \"shop\": RBAC: role.rbac.authorization.k8s.io \"reader\" not found"
    );
    let reader = role("reader", &[rule(&["configmaps"], &["get", "create"])]);
    admin.create(&ROLES, Some("shop"), reader).await.expect("a role");
    account.get(&CONFIG_MAPS, Some("shop"), "a").await.expect("it may get");
    account.create(&CONFIG_MAPS, Some("shop"), config_map("b", "1")).await.expect("it may create");
    refusal(account.delete(&CONFIG_MAPS, Some("shop"), "a", None).await);
    refusal(account.get(&SECRETS, Some("shop"), "a").await);
    refusal(account.get(&CONFIG_MAPS, Some("other"), "a").await);
    refusal(account.get(&NODES, None, "n1").await);
    // What is narrowed or taken away is so at once.
    let narrowed = json!({ "rules": [rule(&["configmaps"], &["create"])] });
    admin.merge(&ROLES, Some("shop"), "reader", narrowed).await.expect("patched");
    refusal(account.get(&CONFIG_MAPS, Some("shop"), "a").await);
    admin.delete(&BINDINGS, Some("shop"), "readers", None).await.expect("deleted");
    refusal(account.create(&CONFIG_MAPS, Some("shop"), config_map("c", "1")).await);
    running.stop().await;
}

#[tokio::test]
async fn roles_outlast_the_server() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let bound = binding("viewers", "ClusterRole", "viewer", robot());
    admin.create(&CLUSTER_BINDINGS, None, bound).await.expect("a binding");
    let viewer = role("viewer", &[rule(&["namespaces"], &["get"])]);
    admin.create(&CLUSTER_ROLES, None, viewer).await.expect("a role");
    running.stop().await;
    let running = start(&directory).await;
    let account = running.client(ROBOT, &ROBOTS_GROUPS);
    account.get(&NAMESPACES, None, "shop").await.expect("it may");
    refusal(account.get(&NODES, None, "n1").await);
    running.stop().await;
}

#[tokio::test]
async fn the_default_roles_are_there_and_get_back_what_they_lack() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let (roles, _) = admin.list(&CLUSTER_ROLES, None, "kubernetes.io/bootstrapping=rbac-defaults").await;
    let (bindings, _) =
        admin.list(&CLUSTER_BINDINGS, None, "kubernetes.io/bootstrapping=rbac-defaults").await;
    // Upstream's 69, the one that its add-on for metrics.k8s.io brings, and the cleaner of PodCertificateRequests, which is
    // off by default there.
    assert_eq!((roles.len(), bindings.len()), (71, 51));
    let reader = "extension-apiserver-authentication-reader";
    admin.get(&ROLES, Some("kube-system"), reader).await.expect("a role of kube-system");
    let narrowed = json!({ "rules": [] });
    admin.merge(&CLUSTER_ROLES, None, "system:node-proxier", narrowed.clone()).await.expect("patched");
    let mut kept = narrowed;
    kept["metadata"] = json!({ "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "false" } });
    admin.merge(&CLUSTER_ROLES, None, "system:kube-dns", kept).await.expect("patched");
    admin.delete(&CLUSTER_ROLES, None, "view", None).await.expect("deleted");
    let untouched = admin.get(&CLUSTER_ROLES, None, "cluster-admin").await.expect("a role");
    running.stop().await;
    let running = start(&directory).await;
    let admin = running.admin();
    let rules = |role: Value| role["rules"].as_array().map_or(0, Vec::len);
    assert_eq!(rules(admin.get(&CLUSTER_ROLES, None, "system:node-proxier").await.expect("a role")), 5);
    assert_eq!(rules(admin.get(&CLUSTER_ROLES, None, "system:kube-dns").await.expect("a role")), 0);
    admin.get(&CLUSTER_ROLES, None, "view").await.expect("it is made again");
    let again = admin.get(&CLUSTER_ROLES, None, "cluster-admin").await.expect("a role");
    assert_eq!(untouched, again, "nothing is written where nothing is missing");
    running.stop().await;
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_have() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let rbac =
        json!({ "apiGroups": [RBAC], "resources": ["*"], "verbs": ["create", "update", "patch", "get"] });
    let manager = role("manager", &[rule(&["configmaps"], &["get", "list"]), rbac]);
    admin.create(&ROLES, Some("shop"), manager).await.expect("a role");
    let bound = binding("managers", "Role", "manager", user("ann"));
    admin.create(&BINDINGS, Some("shop"), bound).await.expect("a binding");
    let powerful = role("powerful", &[rule(&["secrets"], &["get", "list"])]);
    admin.create(&CLUSTER_ROLES, None, powerful).await.expect("a role");
    let ann = running.client("ann", &["staff"]);

    let held = role("held", &[rule(&["configmaps"], &["get"])]);
    ann.create(&ROLES, Some("shop"), held).await.expect("what she has");
    let message = refusal(ann.create(&ROLES, Some("shop"), role("x", &[rule(&["pods"], &["get"])])).await);
    assert_eq!(
        message,
        "roles.rbac.authorization.k8s.io \"x\" is forbidden: user \"ann\" (groups=[\"staff\" \
         \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\"]}"
    );
    let wider = json!({ "rules": [rule(&["configmaps", "secrets"], &["get"])] });
    refusal(ann.merge(&ROLES, Some("shop"), "held", wider).await);
    let labelled = json!({ "metadata": { "labels": { "a": "b" } } });
    ann.merge(&ROLES, Some("shop"), "held", labelled).await.expect("the rules stay");

    ann.create(&BINDINGS, Some("shop"), binding("b1", "Role", "held", user("bob")))
        .await
        .expect("what she has");
    let stolen = binding("b2", "ClusterRole", "powerful", user("ann"));
    let message = refusal(ann.create(&BINDINGS, Some("shop"), stolen.clone()).await);
    assert!(
        message.ends_with("{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}"),
        "{message}"
    );
    let missing = binding("b3", "ClusterRole", "nothing", user("ann"));
    let error = ann.create(&BINDINGS, Some("shop"), missing).await.expect_err("there is no such role");
    assert_eq!(error.message(), "clusterroles.rbac.authorization.k8s.io \"nothing\" not found");
    let message = refusal(ann.create(&CLUSTER_BINDINGS, None, stolen.clone()).await);
    assert!(message.contains("at the cluster scope"), "{message}");

    // The verbs that say so let her.
    let bind = json!({ "apiGroups": [RBAC], "resources": ["clusterroles"], "resourceNames": ["powerful"], "verbs": ["bind"] });
    let escalate = json!({ "apiGroups": [RBAC], "resources": ["roles"], "verbs": ["escalate"] });
    admin.create(&ROLES, Some("shop"), role("granter", &[bind, escalate])).await.expect("a role");
    let bound = binding("granters", "Role", "granter", user("ann"));
    admin.create(&BINDINGS, Some("shop"), bound).await.expect("a binding");
    ann.create(&BINDINGS, Some("shop"), stolen).await.expect("she may bind this role");
    ann.create(&ROLES, Some("shop"), role("x", &[rule(&["pods"], &["*"])])).await.expect("she may escalate");
    running.stop().await;
}

#[tokio::test]
async fn a_role_that_gathers_takes_an_administrator() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let writer =
        json!({ "apiGroups": [RBAC], "resources": ["clusterroles"], "verbs": ["create", "update", "patch"] });
    admin.create(&CLUSTER_ROLES, None, role("writer", &[writer])).await.expect("a role");
    let bound = binding("writers", "ClusterRole", "writer", user("ann"));
    admin.create(&CLUSTER_BINDINGS, None, bound).await.expect("a binding");
    let bound = binding("admins", "ClusterRole", "cluster-admin", user("root"));
    admin.create(&CLUSTER_BINDINGS, None, bound).await.expect("a binding");
    let mut gathers = role("gathers", &[]);
    gathers["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { "a": "b" } }] });
    let message = refusal(running.client("ann", &[]).create(&CLUSTER_ROLES, None, gathers.clone()).await);
    assert!(message.ends_with("must have cluster-admin privileges to use the aggregationRule"), "{message}");
    running
        .client("root", &[])
        .create(&CLUSTER_ROLES, None, gathers.clone())
        .await
        .expect("a cluster admin may");
    gathers["metadata"]["name"] = json!("empty");
    gathers["aggregationRule"] = json!({});
    let error = admin.create(&CLUSTER_ROLES, None, gathers).await.expect_err("it selects nothing");
    assert_eq!(error.code(), 422, "{error}");
    running.stop().await;
}

#[tokio::test]
async fn the_role_of_a_binding_stays() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let bound = binding("x", "ClusterRole", "view", user("ann"));
    admin.create(&CLUSTER_BINDINGS, None, bound).await.expect("a binding");
    let error = admin
        .merge(&CLUSTER_BINDINGS, None, "x", json!({ "roleRef": { "name": "edit" } }))
        .await
        .expect_err("it is immutable");
    assert_eq!(error.code(), 422);
    assert!(error.message().contains("cannot change roleRef"), "{error}");
    // In a namespace the account's namespace may be left out, in the cluster not.
    let account = json!({ "kind": "ServiceAccount", "name": "default" });
    let local = binding("x", "ClusterRole", "view", account.clone());
    admin.create(&BINDINGS, Some("default"), local).await.expect("a binding");
    let error = admin.create(&CLUSTER_BINDINGS, None, binding("y", "ClusterRole", "view", account)).await;
    assert_eq!(error.expect_err("no namespace").code(), 422);
    running.stop().await;
}

#[tokio::test]
async fn reviews_answer_from_the_roles() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let reader = role("reader", &[rule(&["configmaps"], &["get", "list"])]);
    admin.create(&ROLES, Some("shop"), reader).await.expect("a role");
    let bound = binding("readers", "Role", "reader", robot());
    admin.create(&BINDINGS, Some("shop"), bound).await.expect("a binding");
    let account = running.client(ROBOT, &ROBOTS_GROUPS);

    let asked = |verb: &str, namespace: &str| json!({ "verb": verb, "resource": "configmaps", "namespace": namespace });
    let review = json!({ "spec": { "resourceAttributes": asked("get", "shop") } });
    let answer = account.create(&SELF_ACCESS, None, review).await.expect("an answer");
    let reason =
        "RBAC: allowed by RoleBinding \"readers/shop\" of Role \"reader\" to ServiceAccount \"robot/shop\"";
    assert_eq!(answer["status"], json!({ "allowed": true, "reason": reason }));
    let mut selected = asked("list", "other");
    selected["labelSelector"] = json!({ "rawSelector": "a=b" });
    selected["fieldSelector"] =
        json!({ "requirements": [{ "key": "metadata.name", "operator": "In", "values": ["a"] }] });
    let review = json!({ "spec": { "resourceAttributes": selected } });
    let answer = account.create(&SELF_ACCESS, None, review).await.expect("an answer");
    assert_eq!(answer["status"], json!({ "allowed": false }));

    let review = json!({ "spec": { "user": ROBOT, "resourceAttributes": asked("list", "shop") } });
    refusal(account.create(&SUBJECT_ACCESS, None, review.clone()).await);
    let answer = admin.create(&SUBJECT_ACCESS, None, review.clone()).await.expect("an answer");
    assert_eq!(answer["status"]["allowed"], true);
    let answer = admin.create(&LOCAL_ACCESS, Some("shop"), review.clone()).await.expect("an answer");
    assert_eq!(answer["status"]["allowed"], true);
    let error = admin.create(&LOCAL_ACCESS, Some("default"), review).await.expect_err("another namespace");
    assert_eq!(
        error.message(),
        "LocalSubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.resourceAttributes.namespace: Invalid \
         value: \"shop\": must match metadata.namespace"
    );

    let review = json!({ "spec": { "namespace": "shop" } });
    let answer = account.create(&SELF_RULES, None, review.clone()).await.expect("an answer");
    let status = &answer["status"];
    let own = json!({ "verbs": ["get", "list"], "apiGroups": [""], "resources": ["configmaps"] });
    assert!(status["resourceRules"].as_array().expect("rules").contains(&own), "{status}");
    assert_eq!((&status["incomplete"], &status["evaluationError"]), (&json!(false), &Value::Null));
    let paths = status["nonResourceRules"].as_array().expect("rules");
    assert!(paths.iter().any(|rule| rule["nonResourceURLs"][0] == "/api"), "{status}");
    let node = running.client("system:node:n1", &["system:nodes"]);
    let answer = node.create(&SELF_RULES, None, review).await.expect("an answer");
    assert_eq!(answer["status"]["incomplete"], true);
    let error = account.create(&SELF_RULES, None, json!({ "spec": {} })).await.expect_err("no namespace");
    assert_eq!(error.code(), 400);
    running.stop().await;
}
