//! The Pod Security Standards, seen from outside: refusals, warnings, labels.

mod common;

use common::*;
use hawser_api::resource::Target;
use hawser_apiserver::{
    auth::{SYSTEM_MASTERS, User},
    ops::{WriteOptions, Written},
};
use serde_json::{Value, json};

/// Creates an object and returns what the answer carries beside it.
async fn create(running: &Running, resource: &hawser_api::GroupVersionResource, object: Value) -> Written {
    let admin = User::named("admin", &[SYSTEM_MASTERS]);
    let target = Target::collection(resource.clone(), Some("shop"));
    let call = running.server.enter(&admin, "create", target, "").expect("may do all");
    running.server.create(&call, object, &WriteOptions::default()).await.expect("created")
}

fn labelled(mode: &str, level: &str) -> Value {
    json!({ "metadata": { "labels": { format!("pod-security.kubernetes.io/{mode}"): level } } })
}

#[tokio::test]
async fn a_namespace_refuses_warns_or_lets_pass_as_its_labels_say() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let open = create(&running, &PODS, pod("early")).await;
    assert!(open.warnings.is_empty());
    let why = "would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"main\" must \
               set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"main\" must set \
               securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"main\" must set \
               securityContext.runAsNonRoot=true), seccompProfile (pod or container \"main\" must set \
               securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
    admin.merge(&NAMESPACES, None, "shop", labelled("warn", "restricted")).await.expect("labelled");
    assert_eq!(create(&running, &PODS, pod("warned")).await.warnings, [why]);
    let template = json!({ "metadata": { "labels": { "app": "web" } }, "spec": pod("web")["spec"] });
    let deployment = json!({ "metadata": { "name": "web" }, "spec": {
        "selector": { "matchLabels": { "app": "web" } }, "template": template,
    } });
    assert_eq!(create(&running, &DEPLOYMENTS, deployment).await.warnings, [why]);
    admin.merge(&NAMESPACES, None, "shop", labelled("enforce", "baseline")).await.expect("labelled");
    let mut bold = pod("bold");
    bold["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    let error = admin.create(&PODS, Some("shop"), bold).await.expect_err("forbidden");
    assert_eq!(error.code(), 403);
    assert_eq!(
        error.message(),
        "pods \"bold\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"main\" must not set \
         securityContext.privileged=true)"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_namespace_that_becomes_stricter_is_told_of_its_pods_and_wrong_labels_are_refused() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for name in ["a", "b"] {
        let made = admin.create(&PODS, Some("shop"), pod(name)).await.expect("a pod");
        running.server.registry().cache().consistent().await.expect("seen");
        assert_eq!(made["metadata"]["name"], name);
    }
    let user = User::named("admin", &[SYSTEM_MASTERS]);
    let call = running
        .server
        .enter(&user, "update", Target::object(NAMESPACES, None, "shop"), "")
        .expect("may do all");
    let mut namespace = admin.get(&NAMESPACES, None, "shop").await.expect("the namespace");
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!("restricted");
    let written = running.server.update(&call, namespace, &WriteOptions::default()).await.expect("labelled");
    assert_eq!(
        written.warnings,
        [
            "existing pods in namespace \"shop\" violate the new PodSecurity enforce level \"restricted:latest\"",
            "a (and 1 other pod): allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, \
             seccompProfile",
        ]
    );
    // What was there may be labelled; what it runs may not be changed.
    let label = json!({ "metadata": { "labels": { "tier": "front" } } });
    admin.merge(&PODS, Some("shop"), "a", label).await.expect("nothing that matters");
    let mut other = admin.get(&PODS, Some("shop"), "a").await.expect("the pod");
    other["spec"]["containers"][0]["image"] = json!("another");
    assert_eq!(admin.update(&PODS, &other, "").await.map_err(|error| error.code()).err(), Some(403));
    let error =
        admin.merge(&NAMESPACES, None, "shop", labelled("warn", "strict")).await.expect_err("no such level");
    assert_eq!(
        error.message(),
        "Namespace \"shop\" is invalid: metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"strict\": must \
         be one of privileged, baseline, restricted"
    );
    running.stop().await;
}
