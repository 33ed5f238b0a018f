//! `kubectl apply`, `diff`, `replace`: what a manifest says becomes so, and what it no longer says goes.

use hawser_tests::api_server::ApiServer;

const FIRST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, labels: {kept: "1", dropped: "2"}}
spec:
  replicas: 2
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      containers:
      - name: main
        image: registry.test/main:1
        env: [{name: A, value: "1"}, {name: B, value: "2"}]
        ports: [{containerPort: 80}]
      - {name: helper, image: "registry.test/helper:1"}
      volumes:
      - {name: scratch, emptyDir: {}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: app}
data: {first: "1", second: "2"}
"#;

const SECOND: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, labels: {kept: "1"}}
spec:
  replicas: 3
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      containers:
      - name: main
        image: registry.test/main:2
        env: [{name: A, value: "1"}, {name: C, value: "3"}]
        ports: [{containerPort: 80}, {containerPort: 443}]
      - {name: newer, image: "registry.test/newer:1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: app}
data: {first: "one", third: "3"}
"#;

#[test]
fn apply_changes_adds_and_removes_what_the_manifest_does() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("applying");
    kubectl.ok_with("apply -f -", FIRST).says(&["deployment.apps/app created", "configmap/app created"]);
    kubectl.ok_with("apply -f -", FIRST).says(&["deployment.apps/app unchanged", "configmap/app unchanged"]);
    kubectl.ok_with("diff -f -", FIRST);

    // What others wrote stays: an annotation, and an item of a keyed list.
    kubectl.ok("annotate deployment app other=kept");
    kubectl.ok(
        r#"patch deployment app -p '{"spec":{"template":{"spec":{"containers":[{"name":"injected","image":"registry.test/sidecar:1"}]}}}}'"#,
    );

    let difference = kubectl.fails_with("diff -f -", SECOND);
    difference.says(&["-  second: \"2\"", "+  third: \"3\"", "+        image: registry.test/main:2"]);
    assert_eq!(kubectl.path("configmap app", "{.data.second}"), "2", "a diff changes nothing");

    kubectl
        .ok_with("apply -f -", SECOND)
        .says(&["deployment.apps/app configured", "configmap/app configured"]);
    assert_eq!(kubectl.path("configmap app", "{.data}"), r#"{"first":"one","third":"3"}"#);
    assert_eq!(kubectl.path("deployment app", "{.metadata.labels}"), r#"{"kept":"1"}"#);
    assert_eq!(kubectl.path("deployment app", "{.metadata.annotations.other}"), "kept");
    assert_eq!(kubectl.path("deployment app", "{.spec.replicas}"), "3");
    let pod = "{.spec.template.spec";
    let mut containers: Vec<String> = kubectl
        .path("deployment app", &format!("{pod}.containers[*].name}}"))
        .split(' ')
        .map(str::to_owned)
        .collect();
    containers.sort();
    assert_eq!(containers, ["injected", "main", "newer"]);
    let main = format!("{pod}.containers[?(@.name==\"main\")]");
    assert_eq!(kubectl.path("deployment app", &format!("{main}.image}}")), "registry.test/main:2");
    assert_eq!(kubectl.path("deployment app", &format!("{main}.env[*].name}}")), "A C");
    assert_eq!(kubectl.path("deployment app", &format!("{main}.ports[*].containerPort}}")), "80 443");
    assert_eq!(kubectl.path("deployment app", &format!("{pod}.volumes}}")), "");
    kubectl.ok("apply view-last-applied configmap/app").says(&["third: \"3\""]);

    // kubectl sends the order of the containers again, because there is one that it does not know; nothing changes.
    let version = kubectl.path("deployment app", "{.metadata.generation}");
    kubectl.ok_with("apply -f -", SECOND).says(&["configmap/app unchanged"]);
    assert_eq!(kubectl.path("deployment app", "{.metadata.generation}"), version);
}

#[test]
fn apply_prunes_dry_runs_and_takes_over() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("applying");
    let set = |names: &[&str]| {
        names
            .iter()
            .map(|name| {
                format!(
                    "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{set: s}}}}\n"
                )
            })
            .collect::<String>()
    };
    let prune = "apply -f - --prune -l set=s --prune-allowlist=core/v1/ConfigMap";
    kubectl.ok_with(prune, &set(&["a", "b"])).says(&["configmap/a created", "configmap/b created"]);
    kubectl.ok_with(prune, &set(&["b"])).says(&["configmap/b unchanged", "configmap/a pruned"]);
    kubectl.fails("get configmap a").says(&["NotFound"]);

    kubectl
        .ok_with("apply -f - --dry-run=server", &set(&["c"]))
        .says(&["configmap/c created (server dry run)"]);
    kubectl.fails("get configmap c").says(&[r#"configmaps "c" not found"#]);

    // An object that was created otherwise.
    kubectl.ok("create configmap imperative --from-literal=a=1");
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: imperative}\ndata: {b: \"2\"}\n";
    kubectl
        .ok_with("apply -f -", manifest)
        .says(&["missing the kubectl.kubernetes.io/last-applied-configuration annotation", "configured"]);
    assert_eq!(kubectl.path("configmap imperative", "{.data}"), r#"{"a":"1","b":"2"}"#);
}

#[test]
fn server_side_apply_shares_an_object_between_managers() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("applying");
    let manifest =
        |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: app}}\ndata: {{{data}}}\n");
    let apply =
        |manager: &str, more: &str| format!("apply --server-side --field-manager={manager} {more} -f -");
    kubectl.ok_with(&apply("one", ""), &manifest("first: \"1\", both: \"1\""));
    kubectl.ok_with(&apply("two", ""), &manifest("second: \"2\""));
    assert_eq!(kubectl.path("configmap app", "{.data}"), r#"{"both":"1","first":"1","second":"2"}"#);
    kubectl
        .fails_with(&apply("two", ""), &manifest("second: \"2\", both: \"2\""))
        .says(&["conflict with \"one\"", ".data.both"]);
    kubectl.ok_with(&apply("two", "--force-conflicts"), &manifest("second: \"2\", both: \"2\""));
    // What a manager no longer applies goes, if nobody else has it.
    kubectl.ok_with(&apply("one", ""), &manifest("third: \"3\""));
    assert_eq!(kubectl.path("configmap app", "{.data}"), r#"{"both":"2","second":"2","third":"3"}"#);
}

#[test]
fn replace_writes_the_whole_object_and_guards_against_lost_updates() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("applying");
    kubectl.ok_with("create -f -", FIRST);
    kubectl.ok_with("replace -f -", SECOND).says(&["deployment.apps/app replaced", "configmap/app replaced"]);
    assert_eq!(kubectl.path("configmap app", "{.data}"), r#"{"first":"one","third":"3"}"#);

    let stale = kubectl.ok("get configmap app -o yaml").stdout;
    kubectl.ok("label configmap app moved=on");
    kubectl.fails_with("replace -f -", &stale).says(&[
        "Conflict",
        "the object has been modified; please apply your changes to the latest version and try again",
    ]);
    let uid = kubectl.path("configmap app", "{.metadata.uid}");
    kubectl
        .ok_with("replace --force -f -", SECOND)
        .says(&[r#"configmap "app" deleted"#, "configmap/app replaced"]);
    assert_ne!(kubectl.path("configmap app", "{.metadata.uid}"), uid);
    kubectl
        .fails_with("replace -f -", "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: absent}}")
        .says(&["NotFound"]);
}
