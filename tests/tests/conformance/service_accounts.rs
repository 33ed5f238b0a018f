//! Service accounts: their life, their tokens, and what pods get of them.

use anyhow::ensure;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenReview},
    core::v1::{ConfigMap, Pod, ServiceAccount},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, PostParams, WatchParams},
};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    support::{Bed, create, delete, eventually, object, patch, pod, test, unique, watch},
};

texts! {
    "ServiceAccount lifecycle test" => should_run_through_the_lifecycle_of_a_serviceaccount,
    "ServiceAccount, update a ServiceAccount" => should_update_a_serviceaccount,
    "ServiceAccount, create and review token" =>
        should_create_a_serviceaccounttoken_and_ensure_a_successful_tokenreview,
    "RootCA ConfigMap test" => should_guarantee_kube_root_ca_crt_exist_in_any_namespace,
    "Service account tokens auto mount optionally" => should_allow_opting_out_of_api_token_automount,
}

/// Where pods find their token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const ROOT_CA: &str = "kube-root-ca.crt";

/// ServiceAccount lifecycle test
#[test]
fn should_run_through_the_lifecycle_of_a_serviceaccount() {
    test(async |bed| {
        let (accounts, label) = (bed.api::<ServiceAccount>(), unique("lifecycle"));
        let selector = format!("conformance={label}");
        let mut events = watch(&accounts, &WatchParams::default().labels(&selector), "0").await;
        let made = json!({ "metadata": { "name": "account", "labels": { "conformance": label } } });
        create(&accounts, made).await;
        events.until("ADDED", |account| account.name_any() == "account").await;

        patch(&accounts, "account", json!({ "automountServiceAccountToken": false })).await;
        events.until("MODIFIED", |account| account.automount_service_account_token == Some(false)).await;
        let everywhere = bed.all::<ServiceAccount>();
        let labelled = ListParams::default().labels(&selector);
        let found = everywhere.list(&labelled).await.expect("listed").items;
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].name_any().as_str(), found[0].automount_service_account_token),
            ("account", Some(false))
        );

        accounts.delete_collection(&DeleteParams::default(), &labelled).await.expect("deleted");
        events.until("DELETED", |account| account.name_any() == "account").await;
    });
}

/// ServiceAccount, update a ServiceAccount
#[test]
fn should_update_a_serviceaccount() {
    test(async |bed| {
        let accounts = bed.api::<ServiceAccount>();
        let mut made = create(&accounts, json!({ "metadata": { "name": "account" } })).await;
        assert_eq!(made.automount_service_account_token, None);
        made.automount_service_account_token = Some(true);
        accounts.replace("account", &PostParams::default(), &made).await.expect("updated");
        let found = accounts.get("account").await.expect("found");
        assert_eq!(found.automount_service_account_token, Some(true));
    });
}

/// A token of an account of the test's namespace.
pub(crate) async fn token(bed: &Bed, account: &str) -> String {
    let request: TokenRequest = object(json!({ "spec": { "audiences": [] } }));
    let accounts = bed.api::<ServiceAccount>();
    let made: TokenRequest = accounts
        .create_subresource("token", account, &PostParams::default(), &request)
        .await
        .expect("a token is made");
    made.status.expect("the token is in the status").token.unwrap_or_default()
}

/// ServiceAccount, create and review token
#[test]
fn should_create_a_serviceaccounttoken_and_ensure_a_successful_tokenreview() {
    test(async |bed| {
        create(&bed.api::<ServiceAccount>(), json!({ "metadata": { "name": "account" } })).await;
        let token = token(bed, "account").await;
        assert!(!token.is_empty());
        let reviewed = create(&bed.all::<TokenReview>(), json!({ "spec": { "token": token } })).await;
        let status = reviewed.status.expect("an answer");
        assert_eq!((status.authenticated, status.error.as_deref().unwrap_or_default()), (Some(true), ""));
        let user = status.user.expect("a user");
        let namespace = &bed.namespace;
        assert_eq!(user.username, Some(format!("system:serviceaccount:{namespace}:account")));
        let groups = user.groups.unwrap_or_default();
        for group in [
            "system:authenticated".to_owned(),
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ] {
            assert!(groups.contains(&group), "{groups:?} lack {group}");
        }
    });
}

/// RootCA ConfigMap test
#[test]
fn should_guarantee_kube_root_ca_crt_exist_in_any_namespace() {
    test(async |bed| {
        let maps = bed.api::<ConfigMap>();
        let authority = async |what: &str, old_uid: Option<String>| {
            eventually(what, async || {
                let found = maps.get(ROOT_CA).await?;
                let text =
                    found.data.as_ref().and_then(|data| data.get("ca.crt")).cloned().unwrap_or_default();
                ensure!(text.contains("BEGIN CERTIFICATE"), "{found:?}");
                ensure!(old_uid.is_none() || found.uid() != old_uid, "it is the old one");
                Ok((found.uid(), text))
            })
            .await
        };
        let (uid, text) = authority("the map is made", None).await;
        delete(&maps, ROOT_CA).await;
        let (_, again) = authority("the map is made again", uid).await;
        assert_eq!(again, text);
        patch(&maps, ROOT_CA, json!({ "data": { "ca.crt": "something else" } })).await;
        let (_, again) = authority("the map is put right", None).await;
        assert_eq!(again, text);
    });
}

/// Service account tokens auto mount optionally
///
/// What is to be mounted is in the pod when it is created.
#[test]
fn should_allow_opting_out_of_api_token_automount() {
    test(async |bed| {
        let accounts = bed.api::<ServiceAccount>();
        for (name, mounts) in [("mount", true), ("no-mount", false)] {
            create(
                &accounts,
                json!({ "metadata": { "name": name }, "automountServiceAccountToken": mounts }),
            )
            .await;
        }
        for (account, of_pod, expected) in [
            ("default", None, true),
            ("mount", None, true),
            ("no-mount", None, false),
            ("default", Some(true), true),
            ("mount", Some(true), true),
            ("no-mount", Some(true), true),
            ("default", Some(false), false),
            ("mount", Some(false), false),
            ("no-mount", Some(false), false),
        ] {
            let mut made = pod(&unique("mounts"), json!({}));
            made["spec"]["serviceAccountName"] = json!(account);
            made["spec"]["automountServiceAccountToken"] = json!(of_pod);
            let made = create(&bed.api::<Pod>(), made).await;
            assert_eq!(mounts_token(&json!(made)), expected, "account {account}, pod {of_pod:?}");
        }
    });
}

/// The container has a mount at the well-known place, of a volume that projects a token.
fn mounts_token(pod: &Value) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mounts = list(&pod["spec"]["containers"][0]["volumeMounts"]);
    let Some(mount) = mounts.iter().find(|mount| mount["mountPath"] == TOKEN_PATH) else { return false };
    let volumes = list(&pod["spec"]["volumes"]);
    let volume =
        volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("the mount has its volume");
    let sources = list(&volume["projected"]["sources"]);
    assert!(sources.iter().any(|source| source["serviceAccountToken"].is_object()), "{volume}");
    true
}
