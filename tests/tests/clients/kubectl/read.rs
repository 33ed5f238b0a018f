//! `kubectl get` and `describe`: formats, selectors, chunks and watches.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use hawser_tests::{api_server::ApiServer, kubectl::Kubectl};

fn pod(kubectl: &Kubectl<'_>, name: &str, labels: &str) {
    kubectl.ok(&format!("run {name} --image=registry.test/{name}:1 --labels={labels}"));
}

#[test]
fn get_prints_in_every_format_and_by_every_selector() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("reading");
    pod(&kubectl, "a", "app=web,tier=front");
    pod(&kubectl, "b", "app=web,tier=back");
    pod(&kubectl, "c", "app=db");
    let names = |line: &str| kubectl.ok(&format!("get pods -o name {line}")).lines();

    assert_eq!(names(""), ["pod/a", "pod/b", "pod/c"]);
    assert_eq!(names("-l app=web"), ["pod/a", "pod/b"]);
    assert_eq!(names("-l app=web,tier!=back"), ["pod/a"]);
    assert_eq!(names("-l 'app in (web, db), !tier'"), ["pod/c"]);
    assert_eq!(names("-l 'tier notin (front)'"), ["pod/b", "pod/c"]);
    assert_eq!(names("-l tier"), ["pod/a", "pod/b"]);
    assert_eq!(names("-A -l app=web"), ["pod/a", "pod/b"]);
    assert_eq!(names("--field-selector=metadata.name=b"), ["pod/b"]);
    assert_eq!(names("--field-selector=metadata.name!=b,status.phase=Pending"), ["pod/a", "pod/c"]);
    assert_eq!(names("--field-selector=spec.nodeName=n1"), Vec::<String>::new());
    assert_eq!(names("--chunk-size=1"), ["pod/a", "pod/b", "pod/c"]);
    assert_eq!(names("--sort-by={.metadata.labels.app}"), ["pod/c", "pod/a", "pod/b"]);
    kubectl.ok("get pods -l app=none").says(&["No resources found in reading namespace."]);
    kubectl.fails("get pods -l 'app in (web'").says(&["unable to parse requirement"]);
    kubectl.fails("get pods --field-selector=spec.bogus=1").says(&["field label not supported: spec.bogus"]);

    let wide = kubectl.ok("get pods -o wide").lines();
    assert_eq!(wide[0], "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES");
    assert!(wide[1].starts_with("a 0/1 Pending 0 "), "{wide:?}");
    assert!(wide[1].ends_with("<none> <none> <none> <none>"), "{wide:?}");
    let labels = kubectl.ok("get pods a -L app --show-labels --no-headers").lines();
    assert!(labels[0].ends_with("web app=web,tier=front"), "{labels:?}");
    assert_eq!(
        kubectl.ok("get pods -o custom-columns=N:.metadata.name,P:.status.phase").lines(),
        ["N P", "a Pending", "b Pending", "c Pending"]
    );
    assert_eq!(
        kubectl.path("pods", "{range .items[*]}{.metadata.name}:{.spec.containers[0].image} {end}"),
        "a:registry.test/a:1 b:registry.test/b:1 c:registry.test/c:1 "
    );
    assert_eq!(kubectl.ok("get pod a -o go-template={{.metadata.namespace}}").stdout, "reading");
    kubectl.ok("get pod a -o yaml").says(&["kind: Pod", "name: a", "resourceVersion: \""]);
    let list = kubectl.json("pods");
    assert_eq!((&list["kind"], list["items"].as_array().map(Vec::len)), (&"List".into(), Some(3)));
    kubectl.ok("get pod/a pod/c -o name").says(&["pod/a", "pod/c"]);
}

#[test]
fn tables_of_common_kinds_have_the_usual_columns() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("reading");
    for line in [
        "deployment web --image=registry.test/web:1",
        "service nodeport web --tcp=80:8080 --node-port=30333",
        "configmap settings --from-literal=a=1",
        "secret generic hidden --from-literal=a=1",
        "job once --image=registry.test/job:1",
        "cronjob often --image=registry.test/job:1 --schedule='0 * * * *'",
        "ingress door --rule=foo.example/=web:80",
        "poddisruptionbudget guard --selector=app=web --min-available=1",
        "quota small --hard=pods=10",
    ] {
        kubectl.ok(&format!("create {line}"));
    }
    let head = |kind: &str| kubectl.ok(&format!("get {kind}")).lines().remove(0);
    for (kind, columns) in [
        ("namespaces", "NAME STATUS AGE"),
        ("deployments", "NAME READY UP-TO-DATE AVAILABLE AGE"),
        ("services", "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE"),
        ("endpoints", "NAME ENDPOINTS AGE"),
        ("configmaps", "NAME DATA AGE"),
        ("secrets", "NAME TYPE DATA AGE"),
        ("serviceaccounts", "NAME SECRETS AGE"),
        ("jobs", "NAME STATUS COMPLETIONS DURATION AGE"),
        ("cronjobs", "NAME SCHEDULE TIMEZONE SUSPEND ACTIVE LAST SCHEDULE AGE"),
        ("ingresses", "NAME CLASS HOSTS ADDRESS PORTS AGE"),
        ("poddisruptionbudgets", "NAME MIN AVAILABLE MAX UNAVAILABLE ALLOWED DISRUPTIONS AGE"),
        ("resourcequotas", "NAME REQUEST LIMIT AGE"),
        ("priorityclasses", "NAME VALUE GLOBAL-DEFAULT AGE PREEMPTIONPOLICY"),
    ] {
        assert_eq!(head(kind), columns, "{kind}");
    }
    kubectl.eventually("deployment web", "{.status.observedGeneration}", "1");
    let all = kubectl.ok("get all");
    all.says(&[
        "deployment.apps/web",
        "replicaset.apps/web-",
        "pod/web-",
        "service/web",
        "job.batch/once",
        "cronjob.batch/often",
    ]);
    kubectl.ok("get service web").says(&["80:30333/TCP"]);
}

#[test]
fn describe_and_events_tell_the_story_of_a_deployment() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("reading");
    kubectl.ok("create deployment web --image=registry.test/web:1 --replicas=2");
    kubectl.ok("expose deployment web --port=80 --target-port=8080");
    kubectl.eventually("deployment web", "{.status.replicas}", "2");
    kubectl.ok("describe deployment web").says(&[
        "2 desired | 2 updated | 2 total | 0 available | 2 unavailable",
        "deployment.kubernetes.io/revision: 1",
        "NewReplicaSet:   web-",
        "Scaled up replica set web-",
    ]);
    kubectl.ok("describe replicaset").says(&[
        "Controlled By:  Deployment/web",
        "2 current / 2 desired",
        "SuccessfulCreate",
    ]);
    kubectl.ok("describe pods -l app=web").says(&["Controlled By:", "ReplicaSet/web-", "BestEffort"]);
    kubectl
        .ok("describe service web")
        .says(&["Selector:                 app=web", "TargetPort:               8080/TCP"]);
    kubectl.ok("describe namespace reading").says(&["Status:       Active"]);
    kubectl.ok("describe serviceaccount default").says(&["Tokens:"]);
    kubectl.ok("describe secret").says(&["No resources found"]);

    kubectl
        .ok("get events --field-selector=reason=ScalingReplicaSet")
        .says(&["deployment/web", "Scaled up replica set"]);
    kubectl.ok("events --for=deployment/web").says(&["ScalingReplicaSet"]);
    kubectl.ok("get events.events.k8s.io -A").says(&["ScalingReplicaSet"]);
    kubectl.ok("events --types=Warning --for=deployment/web").says(&["No events found"]);
}

#[test]
fn a_watch_prints_each_change_as_it_happens() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("reading");
    kubectl.ok("create configmap seen --from-literal=a=1");
    kubectl.ok("label configmap seen watched=yes");
    let line = "get configmaps -n reading -l watched --watch --output-watch-events --no-headers";
    let mut watch = server
        .client("kubectl")
        .args(line.split(' '))
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl is installed");
    let output = BufReader::new(watch.stdout.take().expect("the standard output is a pipe"));
    let mut lines = output.lines().map(|line| line.expect("kubectl prints text"));
    let mut next =
        || lines.next().expect("the watch goes on").split_whitespace().take(2).collect::<Vec<_>>().join(" ");

    assert_eq!(next(), "ADDED seen");
    kubectl.ok("create configmap other");
    kubectl.ok("label configmap other watched=yes");
    assert_eq!(next(), "ADDED other", "an object that enters the selector is new to the watcher");
    kubectl.ok("annotate configmap other note=1");
    assert_eq!(next(), "MODIFIED other");
    kubectl.ok("label configmap other watched-");
    assert_eq!(next(), "DELETED other", "an object that leaves the selector is gone for the watcher");
    kubectl.ok("delete configmap seen");
    assert_eq!(next(), "DELETED seen");
    watch.kill().expect("the watch can be ended");
    watch.wait().expect("the watch ends");
}
