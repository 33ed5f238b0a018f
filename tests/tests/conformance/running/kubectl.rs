//! What kubectl's users do with pods that run.

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Pod as CorePod, Service};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Pod, script, server, test, web};
use crate::{
    coverage::texts,
    steps::{counted, list},
    support::{Bed, eventually},
};

texts! {
    "Kubectl, guestbook application" => should_create_and_stop_a_working_application,
    "Kubectl, replication controller" => should_create_and_stop_a_replication_controller,
    "Kubectl, scale replication controller" => should_scale_a_replication_controller,
    "Kubectl, logs" => should_be_able_to_retrieve_and_filter_logs,
}

/// A Deployment of the demo program with these arguments, and a Service for it on port 80.
fn tier(name: &str, replicas: u8, args: &[&str]) -> [Value; 2] {
    let labels = json!({ "app": "guestbook", "tier": name });
    let mut spec = server()["spec"].clone();
    spec["containers"][0]["args"] = json!(args);
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec },
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "labels": labels },
        "spec": { "selector": labels, "ports": [{ "port": 80, "targetPort": 8080 }] },
    });
    [deployment, service]
}

/// Kubectl, guestbook application
#[test]
fn should_create_and_stop_a_working_application() {
    test(async |bed| {
        // One keeps what is written, two are read from, and three are what users see.
        let tiers = [
            tier("primary", 1, &["serve"]),
            tier("replica", 2, &["relay", "primary:80", "primary:80"]),
            tier("frontend", 3, &["relay", "primary:80", "replica:80"]),
        ];
        let all = json!({ "apiVersion": "v1", "kind": "List", "items": tiers.as_flattened() }).to_string();
        let kubectl = bed.kubectl();
        kubectl.ok_with("create -f -", &all);
        for name in ["primary", "replica", "frontend"] {
            kubectl.ok(&format!("rollout status deployment/{name} --timeout=55s"));
        }
        let front = format!("/api/v1/namespaces/{}/services/frontend/proxy", bed.namespace);
        let ask = async |path: &str, expected: &str| {
            eventually(&format!("{path} is {expected}"), async || {
                let answer = bed.send("GET", &format!("{front}{path}"), &[], "").await;
                ensure!(answer.code == 200 && answer.text() == expected, "{} {}", answer.code, answer.text());
                Ok(())
            })
            .await;
        };
        ask("/get", "").await;
        ask("/set?value=TestEntry", "kept").await;
        ask("/get", "TestEntry").await;
        kubectl.ok_with("delete --grace-period=0 --force -f -", &all);
        counted(&bed.api::<CorePod>(), "app=guestbook", 0).await;
        assert_eq!(list(&bed.api::<Service>(), "app=guestbook").await.len(), 0);
    });
}

const CONTROLLER: &str = "update-demo";

fn controller() -> String {
    let labels = json!({ "name": CONTROLLER });
    json!({
        "apiVersion": "v1",
        "kind": "ReplicationController",
        "metadata": { "name": CONTROLLER },
        "spec": {
            "replicas": 2,
            "selector": labels,
            "template": { "metadata": { "labels": labels }, "spec": server()["spec"] },
        },
    })
    .to_string()
}

/// Waits until there are so many pods that run, by kubectl's account, and asks each of them.
async fn validate(bed: &Bed, replicas: usize) {
    let template = "{{range .items}}{{.metadata.name}} {{range .status.containerStatuses}}{{.image}} \
                    {{if .state.running}}runs{{end}}{{end}}\n{{end}}";
    let line = format!("get pods -l name={CONTROLLER} -o 'go-template={template}'");
    let kubectl = bed.kubectl();
    let names = eventually(&format!("{replicas} pods run"), async || {
        let said = kubectl.run(&line, None);
        let pods: Vec<_> = said.stdout.lines().map(str::to_owned).collect();
        let runs = format!(" {} runs", web());
        ensure!(
            said.succeeded && pods.len() == replicas && pods.iter().all(|pod| pod.ends_with(&runs)),
            "{pods:?}"
        );
        Ok(pods.iter().map(|pod| pod.trim_end_matches(&runs).to_owned()).collect::<Vec<_>>())
    })
    .await;
    for name in names {
        let path = format!("/api/v1/namespaces/{}/pods/{name}:8080/proxy/", bed.namespace);
        eventually("the pod answers", async || {
            let answer = bed.send("GET", &path, &[], "").await;
            ensure!(
                answer.code == 200 && answer.text() == format!("{name} 1\n"),
                "{} {}",
                answer.code,
                answer.text()
            );
            Ok(())
        })
        .await;
    }
}

/// Kubectl, replication controller
#[test]
fn should_create_and_stop_a_replication_controller() {
    test(async |bed| {
        let kubectl = bed.kubectl();
        kubectl.ok_with("create -f -", &controller());
        validate(bed, 2).await;
        kubectl.ok_with("delete --grace-period=0 --force -f -", &controller());
        counted(&bed.api::<CorePod>(), &format!("name={CONTROLLER}"), 0).await;
        kubectl.fails(&format!("get rc {CONTROLLER}")).says(&["NotFound"]);
    });
}

/// Kubectl, scale replication controller
#[test]
fn should_scale_a_replication_controller() {
    test(async |bed| {
        let kubectl = bed.kubectl();
        kubectl.ok_with("create -f -", &controller());
        validate(bed, 2).await;
        for replicas in [1, 2] {
            kubectl.ok(&format!("scale rc {CONTROLLER} --replicas={replicas} --timeout=50s"));
            validate(bed, replicas).await;
        }
    });
}

/// Kubectl, logs
#[test]
fn should_be_able_to_retrieve_and_filter_logs() {
    test(async |bed| {
        // It says no more then: a line that comes while the log is read would be read too.
        let work = "for n in $(seq 20); do echo line $n of the log; done; sleep 3; echo line 21 of the log; sleep 3600";
        let pod = Pod::start(bed, script(work)).await;
        pod.says("main", "line 21 ").await;
        let kubectl = bed.kubectl();
        let logs = |flags: &str| kubectl.ok(&format!("logs {} main {flags}", pod.name)).stdout;
        assert!(logs("").starts_with("line 1 of the log\nline 2 of the log\n"));
        let last = logs("--tail=1");
        assert_eq!(last, "line 21 of the log\n");
        assert_eq!(logs("--limit-bytes=1"), "l");
        let stamped = logs("--tail=1 --timestamps");
        let (time, rest) = stamped.split_once(' ').expect("a time and a line");
        let time: k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime =
            crate::support::object(json!(time));
        assert!(time.0.as_second() > 0 && rest == "line 21 of the log\n", "{stamped}");
        let (recent, all) = (logs("--since=1s"), logs("--since=24h"));
        assert!(recent.is_empty() || recent == "line 21 of the log\n", "{recent}");
        assert_eq!(all.lines().count(), 21, "{all}");
        let names = list(&bed.api::<CorePod>(), "").await;
        assert_eq!(names.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), [pod.name]);
    });
}
