//! What keeps pods: sets with a pod on every node, sets with names and an order, jobs, and budgets of disruption.

use std::time::Duration;

use anyhow::ensure;
use hawser_tests::{cluster::Namespace, eventually};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn daemon_set_has_a_pod_on_every_node_and_rolls_out() {
    let Some(ns) = Namespace::of_shared_cluster("daemons") else { return };
    ns.apply(
        r#"{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"agent"},"spec":{
            "selector":{"matchLabels":{"app":"agent"}},
            "template":{"metadata":{"labels":{"app":"agent"}},"spec":{"terminationGracePeriodSeconds":1,
                "containers":[{"name":"agent","image":"DEMO"}]}}}}"#,
    )
    .expect("applied");
    ns.kubectl("rollout status daemonset/agent --timeout=60s").expect("rolled out");
    let on_nodes = || {
        let mut nodes: Vec<String> = ns
            .kubectl("get pods -l app=agent -o jsonpath={.items[*].spec.nodeName}")
            .expect("pods are listed")
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        nodes.sort();
        nodes
    };
    let mut nodes = ns.cluster.nodes().expect("nodes are listed");
    nodes.sort();
    assert_eq!(on_nodes(), nodes);
    ns.kubectl("set env daemonset/agent VERSION=2").expect("changed");
    ns.kubectl("rollout status daemonset/agent --timeout=120s").expect("rolled out again");
    let env = "get pods -l app=agent -o jsonpath={.items[*].spec.containers[0].env[0].value}";
    assert_eq!(ns.kubectl(env).expect("pods are listed").trim(), "2 2 2");
    assert_eq!(on_nodes(), nodes);
}

#[test]
fn stateful_set_starts_in_order_and_keeps_names() {
    let Some(ns) = Namespace::of_shared_cluster("stateful") else { return };
    ns.apply(
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"db"},"spec":{
            "clusterIP":"None","selector":{"app":"db"},"ports":[{"port":8080}]}}"#,
    )
    .expect("applied");
    ns.apply(
        r#"{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"db"},"spec":{
            "serviceName":"db","replicas":2,"selector":{"matchLabels":{"app":"db"}},
            "template":{"metadata":{"labels":{"app":"db"}},"spec":{"terminationGracePeriodSeconds":1,
                "containers":[{"name":"db","image":"DEMO",
                    "readinessProbe":{"httpGet":{"path":"/readyz","port":8080},"periodSeconds":1}}]}}}}"#,
    )
    .expect("applied");
    ns.kubectl("rollout status statefulset/db --timeout=90s").expect("rolled out");
    let started = |pod: &str| ns.field(&format!("pod/{pod}"), "/status/startTime").expect("it has started");
    assert!(started("db-0") <= started("db-1"), "the first one is first");
    let uid = ns.field("pod/db-1", "/metadata/uid").expect("a pod");
    ns.kubectl("delete pod db-1").expect("deleted");
    eventually(SOON, "the name has another pod", || {
        let again = ns.field("pod/db-1", "/metadata/uid")?;
        ensure!(again != uid, "the same still");
        Ok(())
    });
    ns.kubectl("rollout status statefulset/db --timeout=90s").expect("whole again");
    let answer = ns.exec("db-0", &["/demo", "get", "db-1.db:8080"]).expect("it is reached by its name");
    assert!(!answer.trim().is_empty());
}

#[test]
fn jobs_run_to_completion_and_cron_jobs_make_them() {
    let Some(ns) = Namespace::of_shared_cluster("jobs") else { return };
    ns.apply(
        r#"{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"once"},"spec":{
            "completions":3,"parallelism":2,"completionMode":"Indexed",
            "template":{"spec":{"restartPolicy":"Never","containers":[{"name":"work","image":"BUSYBOX",
                "command":["sh","-c","echo index $JOB_COMPLETION_INDEX"]}]}}}}"#,
    )
    .expect("applied");
    ns.apply(
        r#"{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"fails"},"spec":{"backoffLimit":0,
            "template":{"spec":{"restartPolicy":"Never","containers":[{"name":"work","image":"BUSYBOX",
                "command":["sh","-c","exit 3"]}]}}}}"#,
    )
    .expect("applied");
    ns.kubectl("wait --for=condition=complete job/once --timeout=60s").expect("complete");
    assert_eq!(ns.field("job/once", "/status/succeeded").expect("counted"), "3");
    assert_eq!(ns.field("job/once", "/status/completedIndexes").expect("counted"), "0-2");
    let logs = ns.kubectl("logs -l job-name=once --prefix=false").expect("logs");
    for index in 0..3 {
        assert!(logs.contains(&format!("index {index}")), "{logs}");
    }
    ns.kubectl("wait --for=condition=failed job/fails --timeout=60s").expect("failed");

    let image = ns.cluster.busybox_image();
    ns.kubectl_words(&[
        "create",
        "cronjob",
        "often",
        &format!("--image={image}"),
        "--schedule=* * * * *",
        "--",
        "true",
    ])
    .expect("created");
    eventually(Duration::from_secs(90), "a job at the next minute", || {
        let jobs = ns.kubectl("get jobs -o name")?;
        ensure!(jobs.contains("job.batch/often-"), "{jobs}");
        Ok(())
    });
}

#[test]
fn evictions_heed_the_budget() {
    let Some(ns) = Namespace::of_shared_cluster("budget") else { return };
    let image = ns.cluster.demo_image(1);
    ns.kubectl(&format!("create deployment web --image={image} --replicas=2")).expect("created");
    ns.kubectl("create poddisruptionbudget web --selector=app=web --min-available=1").expect("created");
    ns.wait_for_rollout("web");
    let allowed = |count: &str| {
        eventually(SOON, "the budget is counted", || {
            let found = ns.field("pdb/web", "/status/disruptionsAllowed")?;
            ensure!(found == count, "{found}");
            Ok(())
        });
    };
    allowed("1");
    let evict = |pod: &str| {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", ns.name);
        let eviction = format!(
            r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}","namespace":"{}"}}}}"#,
            ns.name
        );
        ns.cluster.kubectl_with(["create", "--raw", &path, "-f", "-"], Some(&eviction))
    };
    ns.kubectl("scale deployment web --replicas=1").expect("scaled");
    allowed("0");
    let pod = eventually(SOON, "one pod is left", || {
        let pods = ns.kubectl("get pods -l app=web -o jsonpath={.items[*].metadata.name}")?;
        ensure!(!pods.trim().contains(' '), "{pods}");
        Ok(pods.trim().to_owned())
    });
    let refusal = evict(&pod).expect_err("the last one stays").to_string();
    assert!(refusal.contains("disruption budget"), "{refusal}");
    ns.kubectl("scale deployment web --replicas=2").expect("scaled");
    allowed("1");
    evict(&pod).expect("one of two may go");
}
