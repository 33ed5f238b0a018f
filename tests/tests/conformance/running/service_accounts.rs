//! Tokens in pods.

use k8s_openapi::api::authentication::v1::TokenReview;
use serde_json::{Value, json};

use super::{Pod, sleeper, test};
use crate::{
    coverage::texts,
    steps::{as_json, create},
    support::Bed,
};

texts! {
    "Service Account Tokens Must AutoMount" => should_mount_an_api_token_into_pods,
    "TokenRequestProjection should mount a projected volume with token using TokenRequest API." =>
        should_mount_projected_service_account_token,
}

/// What the API says of a token.
async fn review(bed: &Bed, token: &str, audiences: Value) -> Value {
    let review = json!({ "spec": { "token": token, "audiences": audiences } });
    as_json(&create(&bed.all::<TokenReview>(), review).await)["status"].clone()
}

/// The token is this pod's.
#[track_caller]
fn is_of(status: &Value, bed: &Bed, pod: &Pod) {
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(status["user"]["username"], format!("system:serviceaccount:{}:default", bed.namespace));
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-name"][0], pod.name, "{status}");
}

/// Service Account Tokens Must AutoMount
#[test]
fn should_mount_an_api_token_into_pods() {
    test(async |bed| {
        let pod = Pod::start(bed, sleeper()).await;
        let file = async |name: &str| {
            pod.run(&format!("cat /var/run/secrets/kubernetes.io/serviceaccount/{name}")).await
        };
        assert_eq!(file("namespace").await, bed.namespace);
        assert!(file("ca.crt").await.starts_with("-----BEGIN CERTIFICATE-----"));
        is_of(&review(bed, &file("token").await, Value::Null).await, bed, &pod);
        let mut without = sleeper();
        without["spec"]["automountServiceAccountToken"] = json!(false);
        let without = Pod::start(bed, without).await;
        assert_eq!(without.run("ls /var/run/secrets 2>/dev/null || true").await, "");
    });
}

/// TokenRequestProjection should mount a projected volume with token using TokenRequest API.
#[test]
fn should_mount_projected_service_account_token() {
    test(async |bed| {
        let mut pod = sleeper();
        let token = json!({ "path": "token", "audience": "vault", "expirationSeconds": 3600 });
        pod["spec"]["volumes"] =
            json!([{ "name": "token", "projected": { "sources": [{ "serviceAccountToken": token }] } }]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "token", "mountPath": "/tokens" }]);
        let pod = Pod::start(bed, pod).await;
        assert_eq!(pod.run("stat -Lc %a /tokens/token").await, "644\n");
        let token = pod.run("cat /tokens/token").await;
        let status = review(bed, &token, json!(["vault"])).await;
        is_of(&status, bed, &pod);
        assert_eq!(status["audiences"], json!(["vault"]));
        // It is nothing to the API itself.
        assert_ne!(review(bed, &token, Value::Null).await["authenticated"], true);
    });
}
