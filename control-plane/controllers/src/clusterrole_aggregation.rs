//! ClusterRoles that gather the rules of others (`aggregationRule`): `admin`, `edit` and `view` among them.
//!
//! The rules of such a role are this controller's: those of all roles that one of the selectors matches, selector after
//! selector and within it by name, each rule once. So two runs over the same roles write the same. A role never gathers
//! its own rules. Any change of a role is a reason to look at all that gather; what is right already is not written.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

use crate::{
    Context, Starts,
    caches::GATHERING,
    meta::MetaExt,
    queue::Queue,
    selector,
    worker::{Next, Reconciler},
};

/// Upstream has as many.
const WORKERS: usize = 5;

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("clusterrole-aggregation") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    // Weak: the caches, which own this handler, are in the context.
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.cluster_roles.on_change(move |_| {
        let Some(context) = weak.upgrade() else { return };
        for role in context.caches.gathering_roles.get(GATHERING) {
            changed.add(ObjectKey::of(&*role));
        }
    });
    starts.add(Controller { context }, queue, WORKERS);
}

struct Controller {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "clusterrole-aggregation";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let roles = &self.context.caches.cluster_roles;
        let Some(role) = roles.get(key).filter(|role| role.aggregation_rule.is_some()) else {
            return Ok(Next::Done);
        };
        let rules = gathered(&role, roles.all());
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(Next::Done);
        }
        let mut changed = (*role).clone();
        changed.rules = Some(rules);
        Api::<ClusterRole>::all(self.context.client.clone()).update(&changed).await?;
        Ok(Next::Done)
    }
}

/// The rules that `role` is to have.
fn gathered(role: &ClusterRole, all: Vec<Arc<ClusterRole>>) -> Vec<PolicyRule> {
    let mut others: Vec<_> = all.into_iter().filter(|other| other.name() != role.name()).collect();
    others.sort_by(|a, b| a.name().cmp(b.name()));
    let selectors =
        role.aggregation_rule.iter().flat_map(|rule| rule.cluster_role_selectors.iter().flatten());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for labels in selectors {
        for other in others.iter().filter(|other| selector::matches(labels, other.labels())) {
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use hawser_api::client::DeleteOptions;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{FakeApi, Running};

    fn rule(resource: &str) -> Value {
        json!({ "apiGroups": [""], "resources": [resource], "verbs": ["get"] })
    }

    fn role(name: &str, labels: &[&str], resources: &[&str]) -> Value {
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|label| (label.to_string(), json!("true"))).collect();
        let rules: Vec<Value> = resources.iter().map(|resource| rule(resource)).collect();
        json!({ "metadata": { "name": name, "labels": labels }, "rules": rules })
    }

    fn gathers(name: &str, labels: &[&str], selectors: &[&str]) -> Value {
        let selectors: Vec<Value> =
            selectors.iter().map(|label| json!({ "matchLabels": { *label: "true" } })).collect();
        let mut role = role(name, labels, &[]);
        role["aggregationRule"] = json!({ "clusterRoleSelectors": selectors });
        role
    }

    fn parse(role: Value) -> Arc<ClusterRole> {
        Arc::new(serde_json::from_value(role).expect("a role"))
    }

    fn resources(role: &ClusterRole) -> Vec<String> {
        role.rules.iter().flatten().flat_map(|rule| rule.resources.clone().unwrap_or_default()).collect()
    }

    #[test]
    fn rules_are_gathered_once_each_by_selector_and_name() {
        let all: Vec<_> = [
            role("c", &["x"], &["pods", "nodes"]),
            role("a", &["x", "y"], &["secrets", "pods"]),
            role("b", &["y"], &["events"]),
            role("other", &[], &["everything"]),
            gathers("all", &["x"], &["y", "x"]),
        ]
        .into_iter()
        .map(parse)
        .collect();
        let expected = ["secrets", "pods", "events", "nodes"];
        let mut changed = (*all[4]).clone();
        changed.rules = Some(gathered(&all[4], all.clone()));
        assert_eq!(resources(&changed), expected);
        // A role's own rules are no reason for themselves.
        let mut again = all.clone();
        again[4] = Arc::new(changed.clone());
        again.reverse();
        assert_eq!(gathered(&changed, again), changed.rules.unwrap_or_default());
    }

    #[tokio::test(start_paused = true)]
    async fn roles_that_gather_follow_the_others_through_each_other() {
        let api = FakeApi::new();
        let _running = Running::start(&api, &["clusterrole-aggregation"]);
        let has = |api: &FakeApi, name: &str, expected: &[&str]| {
            api.read::<ClusterRole>("", name).is_some_and(|role| resources(&role) == expected)
        };
        api.put::<ClusterRole>(gathers("admin", &[], &["to-admin"]));
        api.put::<ClusterRole>(gathers("edit", &["to-admin"], &["to-edit"]));
        api.put::<ClusterRole>(role("b", &["to-edit"], &["pods"]));
        api.until("what edit gathers is admin's too", |api| has(api, "admin", &["pods"])).await;
        api.put::<ClusterRole>(role("a", &["to-admin"], &["roles"]));
        api.until("a new role is gathered", |api| has(api, "admin", &["roles", "pods"])).await;
        api.patch::<ClusterRole>("", "edit", json!({ "rules": [rule("mine")] }));
        api.until("others' changes are undone", |api| has(api, "edit", &["pods"])).await;
        api.remove::<ClusterRole>("", "b", &DeleteOptions::default());
        api.until("what is gone is gone from all", |api| {
            has(api, "admin", &["roles"]) && has(api, "edit", &[])
        })
        .await;
    }
}
