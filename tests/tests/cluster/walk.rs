//! The first walk of the README, with kubectl.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use hawser_tests::{cluster::Namespace, eventually};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn nodes_are_ready_with_version_and_address() {
    let Some(ns) = Namespace::of_shared_cluster("nodes") else { return };
    let table = ns.kubectl("get nodes -o wide").expect("nodes are listed");
    let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3, "{table}");
    for row in rows {
        assert_eq!(row[1], "Ready", "{table}");
        assert!(row[4].starts_with("v1.36"), "{table}");
        assert!(row[5].parse::<std::net::Ipv4Addr>().is_ok(), "{table}");
    }
}

#[test]
fn deployment_is_created_exposed_scaled_and_deleted() {
    let Some(ns) = Namespace::of_shared_cluster("walk") else { return };
    let image = ns.cluster.demo_image(1);
    ns.kubectl(&format!("create deployment web --image={image} --replicas=3")).expect("created");
    ns.kubectl("expose deployment web --port=80 --target-port=8080").expect("exposed");
    ns.wait_for_rollout("web");

    let pods = ns.kubectl("get pods -o wide --no-headers").expect("pods are listed");
    assert_eq!(
        pods.lines().filter(|line| line.contains("1/1") && line.contains("Running")).count(),
        3,
        "{pods}"
    );

    let pod = ns.field("pods", "/items/0/metadata/name").expect("a pod");
    let described = ns.kubectl(&format!("describe pod {pod}")).expect("described");
    for words in ["Successfully assigned", "Started", "Node:", "QoS Class:"] {
        assert!(described.contains(words), "no {words:?} in {described}");
    }
    eventually(SOON, "the server's first line in the log", || {
        let log = ns.kubectl(&format!("logs {pod}"))?;
        anyhow::ensure!(log.contains("listens on port 8080"), "log: {log:?}");
        Ok(())
    });
    let events = ns.kubectl("get events").expect("events are listed");
    assert!(events.contains("Scheduled") && events.contains("SuccessfulCreate"), "{events}");

    ns.kubectl("scale deployment web --replicas=5").expect("scaled");
    ns.wait_for_rollout("web");
    let address = ns.field("service/web", "/spec/clusterIP").expect("an address");
    let answers = ns.exec(&pod, &["/demo", "get", &format!("{address}:80"), "200"]).expect("all answered");
    assert_eq!(answers.lines().count(), 5, "each of five backends answers: {answers}");

    ns.kubectl("delete deployment web").expect("deleted");
    eventually(Duration::from_secs(60), "all pods gone", || {
        let left = ns.kubectl("get pods -o name")?;
        anyhow::ensure!(left.trim().is_empty(), "left: {left}");
        Ok(())
    });
}

#[test]
fn rolling_update_fails_no_request() {
    let Some(ns) = Namespace::of_shared_cluster("rolling") else { return };
    let image = ns.cluster.demo_image(1);
    ns.kubectl(&format!("create deployment web --image={image} --replicas=3")).expect("created");
    // Readiness gates the old pods' end; without it a pod counts as ready before it listens.
    let probe = r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","readinessProbe":{"httpGet":{"path":"/readyz","port":8080},"periodSeconds":1}}]}}}}"#;
    ns.kubectl_words(&["patch", "deployment", "web", "-p", probe]).expect("patched");
    ns.kubectl("expose deployment web --port=80 --target-port=8080").expect("exposed");
    ns.kubectl(&format!("run client --image={image} --restart=Never -- serve 9090")).expect("a client pod");
    ns.wait_for_rollout("web");
    ns.wait_for_pod("client");
    let address = format!("{}:80", ns.field("service/web", "/spec/clusterIP").expect("an address"));

    let (done, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut answers = Vec::new();
            while !done.load(Ordering::Relaxed) {
                // Fails where one of the requests is refused, reset or late.
                answers.push(ns.exec("client", &["/demo", "get", &address, "100"]));
                asked.fetch_add(100, Ordering::Relaxed);
            }
            answers
        });
        ns.kubectl(&format!("set image deployment/web web={}", ns.cluster.demo_image(2)))
            .expect("image is set");
        ns.wait_for_rollout("web");
        done.store(true, Ordering::Relaxed);
        for answer in load.join().expect("the load ran") {
            answer.expect("no request failed");
        }
    });
    assert!(asked.load(Ordering::Relaxed) >= 100);
    let versions = |expected: &str| {
        let answers = ns.exec("client", &["/demo", "get", &address, "30"])?;
        anyhow::ensure!(answers.lines().all(|line| line.ends_with(expected)), "{answers}");
        Ok(())
    };
    versions(" 2").expect("only the new version answers");

    let history = ns.kubectl("rollout history deployment/web").expect("history");
    ns.kubectl("rollout undo deployment/web").expect("undone");
    ns.wait_for_rollout("web");
    assert!(history.lines().count() >= 4, "two revisions: {history}");
    eventually(SOON, "the earlier version", || versions(" 1"));
}

#[test]
fn manifests_are_applied_edited_labelled_waited_for_and_deleted() {
    let Some(ns) = Namespace::of_shared_cluster("apply") else { return };
    let manifest = |replicas: u8| {
        format!(
            r#"
apiVersion: v1
kind: ConfigMap
metadata: {{ name: settings }}
data: {{ colour: blue }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: web, labels: {{ app: web }} }}
spec:
  replicas: {replicas}
  selector: {{ matchLabels: {{ app: web }} }}
  template:
    metadata: {{ labels: {{ app: web }} }}
    spec:
      containers:
      - name: web
        image: {}
        ports: [{{ containerPort: 8080 }}]
        envFrom: [{{ configMapRef: {{ name: settings }} }}]
"#,
            ns.cluster.demo_image(1)
        )
    };
    ns.apply(&manifest(1)).expect("applied");
    ns.kubectl("wait --for=condition=Available deployment/web --timeout=60s").expect("available");
    let again = ns.apply(&manifest(1)).expect("applied again");
    assert!(again.lines().all(|line| line.ends_with("unchanged")), "{again}");
    let changed = ns.apply(&manifest(2)).expect("applied with a change");
    assert!(changed.contains("deployment.apps/web configured"), "{changed}");
    ns.wait_for_rollout("web");

    ns.kubectl("label deployment web tier=front").expect("labelled");
    assert_eq!(ns.field("deployment/web", "/metadata/labels/tier").expect("the label"), "front");
    ns.edit("deployment/web", "s/tier: front/tier: back/").expect("edited");
    assert_eq!(ns.field("deployment/web", "/metadata/labels/tier").expect("the label"), "back");
    ns.kubectl("annotate deployment web note=hello").expect("annotated");
    let explained = ns.kubectl("explain deployment.spec.replicas").expect("explained");
    assert!(explained.contains("replicas"), "{explained}");
    let refused = ns.apply(&manifest(1).replace("replicas: 1", "replicaz: 1")).expect_err("an unknown field");
    assert!(format!("{refused:#}").contains("replicaz"), "{refused:#}");
    ns.kubectl("delete deployment/web configmap/settings").expect("deleted");
    let gone = ns.kubectl("get deployment web").expect_err("it is gone");
    assert!(format!("{gone:#}").contains("NotFound"), "{gone:#}");
}

#[test]
fn pod_that_fits_nowhere_says_why_and_starts_when_it_can() {
    let Some(ns) = Namespace::of_shared_cluster("pending") else { return };
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: picky }
spec:
  nodeSelector: { colour: NAMESPACE }
  containers: [{ name: main, image: BUSYBOX, command: [sleep, "600"] }]
"#
        .replace("NAMESPACE", &ns.name)
        .as_str(),
    )
    .expect("applied");
    eventually(SOON, "an event with the reason", || {
        let described = ns.kubectl("describe pod picky")?;
        anyhow::ensure!(described.contains("0/3 nodes are available"), "{described}");
        anyhow::ensure!(described.contains("FailedScheduling"), "{described}");
        Ok(())
    });
    assert_eq!(ns.field("pod/picky", "/status/phase").expect("a phase"), "Pending");
    let node = ns.cluster.nodes().expect("nodes").pop().expect("a node");
    ns.kubectl(&format!("label node {node} colour={}", ns.name)).expect("labelled");
    ns.wait_for_pod("picky");
    assert_eq!(ns.field("pod/picky", "/spec/nodeName").expect("a node"), node);
    ns.kubectl(&format!("label node {node} colour-")).expect("unlabelled");
}
