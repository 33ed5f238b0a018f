//! PodDisruptionBudgets and evictions, of pods that are only reported to run.

use anyhow::ensure;
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, ResourceExt, api::EvictParams};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    kubelet::{IMAGE, run},
    steps::{counted, create, delete, delete_all, gone, list, patch, patch_status, update, update_status},
    support::{eventually, refused, test, unique},
};

texts! {
    "PodDisruptionBudget: block an eviction until the PDB is updated to allow it"
        => should_block_an_eviction_until_the_pdb_is_updated_to_allow_it,
    "PodDisruptionBudget: Status updates" => should_observe_poddisruptionbudget_status_updated,
    "PodDisruptionBudget: create, update, patch, and delete object" => should_create_a_poddisruptionbudget,
    "PodDisruptionBudget: list and delete collection" => should_list_and_delete_a_collection_of_poddisruptionbudgets,
    "PodDisruptionBudget: update and patch status" => should_update_patch_poddisruptionbudget_status,
}

fn budget(name: &str, min_available: Value) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "minAvailable": min_available, "selector": { "matchLabels": { "app": name } } },
    })
}

fn min_available(budget: &PodDisruptionBudget) -> Option<&IntOrString> {
    budget.spec.as_ref().and_then(|spec| spec.min_available.as_ref())
}

/// Waits until the controller has counted, and allows so many disruptions.
async fn allows(budgets: &Api<PodDisruptionBudget>, name: &str, allowed: i32) -> PodDisruptionBudgetStatus {
    eventually("the budget is counted", async || {
        let budget = budgets.get(name).await?;
        let status = budget.status.unwrap_or_default();
        ensure!(status.observed_generation == budget.metadata.generation, "{status:?}");
        ensure!(status.disruptions_allowed == Some(allowed), "{status:?}");
        Ok(status)
    })
    .await
}

/// PodDisruptionBudget: block an eviction until the PDB is updated to allow it
#[test]
fn should_block_an_eviction_until_the_pdb_is_updated_to_allow_it() {
    test(async |bed| {
        let (budgets, pods) = (bed.api::<PodDisruptionBudget>(), bed.api::<Pod>());
        let name = unique("evicted");
        let mut names = Vec::new();
        for number in 0..3 {
            let pod = json!({
                "metadata": { "name": format!("{name}-{number}"), "labels": { "app": name } },
                "spec": { "containers": [{ "name": "app", "image": IMAGE }] },
            });
            names.push(create(&pods, pod).await.name_any());
            run(&pods, &names[number], "192.0.2.1").await;
        }
        let evict = async |name: &str| pods.evict(name, &EvictParams::default()).await;

        create(&budgets, budget(&name, json!(3))).await;
        let counted = allows(&budgets, &name, 0).await;
        assert_eq!((counted.expected_pods, counted.current_healthy), (Some(3), Some(3)));
        let blocked = refused(evict(&names[0]).await, 429, "TooManyRequests");
        assert_eq!(pods.get(&names[0]).await.expect("the pod stays").metadata.deletion_timestamp, None);

        let lower = |number: i32| {
            move |budget: &mut PodDisruptionBudget| {
                budget.spec.get_or_insert_default().min_available = Some(IntOrString::Int(number));
            }
        };
        update(&budgets, &name, lower(2)).await;
        allows(&budgets, &name, 1).await;
        evict(&names[0]).await.expect("the eviction is allowed");
        gone(&pods, &names[0]).await;

        let causes = blocked.details.map(|details| details.causes).unwrap_or_default();
        assert!(causes.iter().any(|cause| cause.reason == "DisruptionBudget"), "{causes:?}");
        // The server takes the disruption off the budget, so that the next eviction need not wait for a count.
        refused(evict(&names[1]).await, 429, "TooManyRequests");
        let counted = allows(&budgets, &name, 0).await;
        assert_eq!(counted.conditions.expect("a condition")[0].reason, "InsufficientPods");

        delete(&budgets, &name).await;
        gone(&budgets, &name).await;
        evict(&names[1]).await.expect("nothing forbids the eviction");
        gone(&pods, &names[1]).await;
    });
}

/// PodDisruptionBudget: Status updates
#[test]
fn should_observe_poddisruptionbudget_status_updated() {
    test(async |bed| {
        let (budgets, pods) = (bed.api::<PodDisruptionBudget>(), bed.api::<Pod>());
        let name = unique("observed");
        create(&budgets, budget(&name, json!(1))).await;
        allows(&budgets, &name, 0).await;
        for number in 0..3 {
            let pod = json!({
                "metadata": { "name": format!("{name}-{number}"), "labels": { "app": name } },
                "spec": { "containers": [{ "name": "app", "image": IMAGE }] },
            });
            let pod = create(&pods, pod).await.name_any();
            run(&pods, &pod, "192.0.2.1").await;
        }
        let counted = allows(&budgets, &name, 2).await;
        assert_eq!(counted.conditions.expect("a condition")[0].reason, "SufficientPods");
    });
}

/// PodDisruptionBudget: create, update, patch, and delete object
#[test]
fn should_create_a_poddisruptionbudget() {
    test(async |bed| {
        let (name, budgets) = (unique("budget"), bed.api::<PodDisruptionBudget>());
        let made = create(&budgets, budget(&name, json!("1%"))).await;
        assert_eq!(min_available(&made), Some(&IntOrString::String("1%".into())));
        let updated = update(&budgets, &name, |budget| {
            budget.spec.get_or_insert_default().min_available = Some(IntOrString::String("2%".into()));
        });
        assert_eq!(min_available(&updated.await), Some(&IntOrString::String("2%".into())));
        let patched = patch(&budgets, &name, json!({ "spec": { "minAvailable": "3%" } })).await;
        assert_eq!(min_available(&patched), Some(&IntOrString::String("3%".into())));
        assert_eq!(patched.metadata.generation, Some(3));
        delete(&budgets, &name).await;
        gone(&budgets, &name).await;
    });
}

/// PodDisruptionBudget: list and delete collection
#[test]
fn should_list_and_delete_a_collection_of_poddisruptionbudgets() {
    test(async |bed| {
        let here = bed.api::<PodDisruptionBudget>();
        let elsewhere = bed.another_namespace().await;
        let elsewhere: Api<PodDisruptionBudget> = Api::namespaced(bed.client.clone(), &elsewhere);
        let everywhere = bed.all::<PodDisruptionBudget>();
        let label = unique("listed");
        let selector = format!("label={label}");
        for (budgets, number) in [(&here, 0), (&here, 1), (&elsewhere, 2)] {
            let mut budget = budget(&format!("{label}-{number}"), json!(1));
            budget["metadata"]["labels"] = json!({ "label": label });
            create(budgets, budget).await;
        }
        assert_eq!(list(&here, &selector).await.len(), 2);
        assert_eq!(list(&everywhere, &selector).await.len(), 3);
        delete_all(&here, &selector).await;
        let left = counted(&everywhere, &selector, 1).await;
        assert_eq!(left[0].name_any(), format!("{label}-2"));
    });
}

/// PodDisruptionBudget: update and patch status
#[test]
fn should_update_patch_poddisruptionbudget_status() {
    test(async |bed| {
        let (name, budgets) = (unique("status"), bed.api::<PodDisruptionBudget>());
        create(&budgets, budget(&name, json!(1))).await;
        let disrupted = |budget: &PodDisruptionBudget| {
            let pods = budget.status.as_ref().and_then(|status| status.disrupted_pods.clone());
            pods.unwrap_or_default().into_keys().collect::<Vec<_>>()
        };
        let first = json!({
            "disruptedPods": { "old": "2026-01-01T01:00:00Z" },
            "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
        });
        let updated = update_status(&budgets, &name, |status| *status = first.clone()).await;
        assert_eq!(disrupted(&updated), ["old"]);

        let change = json!({ "status": { "disruptedPods": { "old": null, "new": "2026-01-01T02:00:00Z" } } });
        let patched = patch_status(&budgets, &name, change).await;
        assert_eq!(disrupted(&patched), ["new"]);
        assert_eq!(patched.metadata.generation, Some(1), "a status is no change of what is wanted");
        eventually("the controller drops pods that are not there", async || {
            let read = budgets.get_status(&name).await?;
            ensure!(disrupted(&read).is_empty(), "{:?}", read.status);
            Ok(())
        })
        .await;
    });
}
