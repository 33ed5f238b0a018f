//! `edit`, `patch`, `label`, `annotate`, `scale`, `set`: changes of what is there.

use hawser_tests::api_server::ApiServer;

#[test]
fn edit_and_the_three_kinds_of_patch_change_an_object() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("changing");
    kubectl.ok("create deployment web --image=registry.test/web:1 --replicas=2");
    kubectl.ok("patch deployment web --type=merge -p '{\"spec\":{\"paused\":true}}'");

    kubectl
        .ok_in("edit deployment web", &[("EDITOR", "sed -i s/replicas:.2/replicas:\\ 3/")])
        .says(&["deployment.apps/web edited"]);
    assert_eq!(kubectl.path("deployment web", "{.spec.replicas}"), "3");
    kubectl.ok_in("edit deployment web", &[("EDITOR", "true")]).says(&["Edit cancelled, no changes made."]);

    let image = "{.spec.template.spec.containers[*].image}";
    kubectl.ok(
        r#"patch deployment web --type=json -p '[{"op":"test","path":"/spec/replicas","value":3},{"op":"replace","path":"/spec/replicas","value":1},{"op":"add","path":"/metadata/labels/added","value":"yes"}]'"#,
    );
    assert_eq!(kubectl.path("deployment web", "{.spec.replicas} {.metadata.labels.added}"), "1 yes");
    kubectl.fails(
        r#"patch deployment web --type=json -p '[{"op":"test","path":"/spec/replicas","value":9},{"op":"replace","path":"/spec/replicas","value":7}]'"#,
    );
    assert_eq!(
        kubectl.path("deployment web", "{.spec.replicas}"),
        "1",
        "a patch applies whole or not at all"
    );
    kubectl.ok(r#"patch deployment web --type=merge -p '{"metadata":{"labels":{"added":null}}}'"#);
    assert_eq!(kubectl.path("deployment web", "{.metadata.labels}"), r#"{"app":"web"}"#);

    // Strategic merge: a list by its key; a merge patch would replace the list.
    kubectl.ok(
        r#"patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"registry.test/side:1"}]}}}}'"#,
    );
    let mut images: Vec<_> = kubectl.path("deployment web", image).split(' ').map(str::to_owned).collect();
    images.sort();
    assert_eq!(images, ["registry.test/side:1", "registry.test/web:1"]);
    kubectl.ok(
        r#"patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"side","$patch":"delete"}]}}}}'"#,
    );
    assert_eq!(kubectl.path("deployment web", image), "registry.test/web:1");
    kubectl
        .ok(r#"patch deployment web -p '{"spec":{"replicas":1}}'"#)
        .says(&["deployment.apps/web patched (no change)"]);
    kubectl
        .fails(r#"patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"web","$patch":"delete"}]}}}}'"#)
        .says(&["spec.template.spec.containers: Required value"]);
    kubectl.ok(r#"patch deployment web --subresource=scale --type=merge -p '{"spec":{"replicas":4}}'"#);
    assert_eq!(kubectl.path("deployment web", "{.spec.replicas}"), "4");
    kubectl.ok(r#"patch deployment web --subresource=status --type=merge -p '{"status":{"collisionCount":5},"spec":{"replicas":9}}'"#);
    assert_eq!(
        kubectl.path("deployment web", "{.spec.replicas}"),
        "4",
        "a write of the status leaves the rest"
    );
}

#[test]
fn labels_and_annotations_are_set_kept_and_removed() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("changing");
    for name in ["a", "b"] {
        kubectl.ok(&format!("create configmap {name}"));
    }
    kubectl.ok("label configmap a color=red").says(&["configmap/a labeled"]);
    kubectl
        .fails("label configmap a color=blue")
        .says(&["already has a value (red), and --overwrite is false"]);
    kubectl.ok("label configmap a color=blue --overwrite");
    kubectl.ok("label configmap a color=blue").says(&["not labeled"]);
    kubectl
        .fails("label configmap a color=green --overwrite --resource-version=1")
        .says(&["the object has been modified"]);
    kubectl.fails("label configmap a color='not valid!' --overwrite").says(&["a valid label must be"]);
    assert_eq!(kubectl.path("configmap a", "{.metadata.labels}"), r#"{"color":"blue"}"#);
    kubectl.ok("label configmap -l color=blue marked=yes").says(&["configmap/a labeled"]);
    kubectl.ok("label configmap a --list").says(&["color=blue", "marked=yes"]);
    kubectl.ok("label configmap a color- marked-").says(&["configmap/a unlabeled"]);
    assert_eq!(kubectl.path("configmap a", "{.metadata.labels}"), "");

    kubectl
        .ok("annotate configmap a b note='two words'")
        .says(&["configmap/a annotated", "configmap/b annotated"]);
    assert_eq!(kubectl.path("configmap b", "{.metadata.annotations.note}"), "two words");
    kubectl.ok("annotate configmap b note-");
    assert_eq!(kubectl.path("configmap b", "{.metadata.annotations}"), "");
}

#[test]
fn scale_and_set_change_workloads() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("changing");
    kubectl.ok("create deployment web --image=registry.test/web:1 --replicas=1");
    kubectl.ok("create service clusterip front --tcp=80");
    kubectl.ok("create serviceaccount robot");
    kubectl.ok("create configmap settings --from-literal=MODE=fast");
    kubectl.ok("create clusterrole reader --verb=get --resource=pods");
    kubectl.ok("create clusterrolebinding readers --clusterrole=reader --user=joe");

    kubectl.ok("scale deployment web --replicas=3").says(&["deployment.apps/web scaled"]);
    kubectl.eventually("deployment web", "{.status.replicas}", "3");
    kubectl
        .fails("scale deployment web --current-replicas=7 --replicas=1")
        .says(&["Expected replicas to be 7, was 3"]);
    kubectl.ok("scale deployment web --current-replicas=3 --replicas=0");
    kubectl.eventually("deployment web", "{.status.replicas}", "");
    kubectl.fails("scale service front --replicas=2").says(&["could not find the requested resource"]);

    kubectl.ok("set image deployment/web web=registry.test/web:2").says(&["image updated"]);
    kubectl.ok("set env deployment/web A=1 B=2").says(&["env updated"]);
    kubectl.ok("set env deployment/web --from=configmap/settings --prefix=S_");
    kubectl.ok("set env deployment/web B-");
    kubectl
        .ok("set env deployment/web --list")
        .says(&["A=1", "# S_MODE from configmap settings, key MODE"])
        .lacks("B=2");
    kubectl.ok("set resources deployment/web --limits=cpu=200m,memory=64Mi --requests=cpu=100m");
    kubectl.ok("set serviceaccount deployment web robot");
    kubectl.ok("set selector service front app=web");
    kubectl.ok("set subject clusterrolebinding readers --group=staff --serviceaccount=changing:robot");
    let container = "{.spec.template.spec.containers[0]";
    let of = |path: &str| kubectl.path("deployment web", &format!("{container}{path}}}"));
    assert_eq!(of(".image"), "registry.test/web:2");
    assert_eq!(of(".resources.limits"), r#"{"cpu":"200m","memory":"64Mi"}"#);
    assert_eq!(of(".resources.requests.cpu"), "100m");
    assert_eq!(kubectl.path("deployment web", "{.spec.template.spec.serviceAccountName}"), "robot");
    assert_eq!(kubectl.path("service front", "{.spec.selector}"), r#"{"app":"web"}"#);
    assert_eq!(kubectl.path("clusterrolebinding readers", "{.subjects[*].name}"), "joe staff robot");
}
