//! `kubectl delete`: by file, label and cascade; finalizers; whole namespaces.

use hawser_tests::api_server::ApiServer;

#[test]
fn delete_by_name_label_file_and_all() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("ending");
    for name in ["a", "b", "c", "d"] {
        kubectl.ok(&format!("run {name} --image=registry.test/x:1 --labels=app={name},set=s"));
    }
    kubectl.ok("delete pod a --dry-run=server").says(&[r#"pod "a" deleted (server dry run)"#]);
    kubectl.ok("get pod a");
    kubectl.ok("delete pod a").says(&[r#"pod "a" deleted"#]);
    kubectl.fails("delete pod a").says(&[r#"pods "a" not found"#]);
    kubectl.ok("delete pod a --ignore-not-found");
    kubectl.ok("delete pods -l app=b").says(&[r#"pod "b" deleted"#]).lacks(r#""c""#);
    kubectl.ok("delete pod c --now");
    kubectl
        .ok_with("delete -f -", "---\n{apiVersion: v1, kind: Pod, metadata: {name: d}}")
        .says(&[r#"pod "d" deleted"#]);
    assert_eq!(kubectl.ok("get pods -o name").stdout, "");

    for name in ["a", "b"] {
        kubectl.ok(&format!("create secret generic {name}"));
    }
    kubectl.ok("delete secrets --all").says(&[r#"secret "a" deleted"#, r#"secret "b" deleted"#]);
    kubectl.ok("create secret generic a");
    kubectl.ok("delete --raw /api/v1/namespaces/ending/secrets").says(&[r#""kind":"SecretList""#]);
    assert_eq!(kubectl.ok("get secrets -o name").stdout, "");
}

#[test]
fn dependents_go_stay_or_go_first_as_cascade_says() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("ending");
    for name in ["background", "orphan", "foreground"] {
        kubectl.ok(&format!("create deployment {name} --image=registry.test/x:1 --replicas=1"));
        kubectl.eventually(&format!("pods -l app={name}"), "{.items[*].status.phase}", "Pending");
    }
    kubectl.ok("delete deployment background");
    kubectl.eventually("replicasets,pods -l app=background", "{.items[*].kind}", "");

    kubectl.ok("delete deployment orphan --cascade=orphan");
    assert_eq!(kubectl.path("replicasets -l app=orphan", "{.items[*].metadata.ownerReferences}"), "");
    assert_eq!(kubectl.path("replicasets,pods -l app=orphan", "{.items[*].kind}"), "ReplicaSet Pod");

    // With --wait, which is the default, nothing is left when kubectl returns.
    kubectl.ok("delete deployment foreground --cascade=foreground --timeout=30s");
    assert_eq!(kubectl.path("replicasets,pods -l app=foreground", "{.items[*].kind}"), "");
}

#[test]
fn a_finalizer_holds_an_object_until_it_is_taken_off() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("ending");
    kubectl.ok_with(
        "create -f -",
        "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: held, finalizers: [example.com/hold]}}",
    );
    kubectl.ok("delete configmap held --wait=false");
    assert_ne!(kubectl.path("configmap held", "{.metadata.deletionTimestamp}"), "");
    kubectl.fails("delete configmap held --timeout=1s").says(&["timed out waiting"]);
    kubectl
        .fails(r#"patch configmap held --type=merge -p '{"metadata":{"finalizers":["example.com/hold","example.com/more"]}}'"#)
        .says(&["metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted"]);
    kubectl.ok(r#"patch configmap held --type=merge -p '{"metadata":{"finalizers":null}}'"#);
    kubectl.fails("get configmap held").says(&["not found"]);
}

#[test]
fn a_namespace_goes_with_everything_in_it() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("ending");
    kubectl.ok("create deployment web --image=registry.test/x:1 --replicas=2");
    kubectl.ok("expose deployment web --port=80");
    kubectl.ok("create secret generic hidden");
    kubectl.ok("delete namespace ending --timeout=30s").says(&[r#"namespace "ending" deleted"#]);
    for kind in
        ["deployments", "replicasets", "pods", "services", "endpointslices", "secrets", "serviceaccounts"]
    {
        assert_eq!(kubectl.ok(&format!("get {kind} -o name")).stdout, "", "{kind}");
    }
    kubectl.fails("create configmap late").says(&[r#"namespaces "ending" not found"#]);
    kubectl.fails("delete namespace default").says(&["Forbidden", r#"namespaces "default" is forbidden"#]);
    kubectl.ok("create namespace ending");
    assert_eq!(kubectl.ok("get secrets,services -o name").stdout, "");
}
