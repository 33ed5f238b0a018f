//! PodDisruptionBudgets: counts how many of a budget's pods may go at once.
//!
//! An eviction is refused unless the budget's status allows one more (the API server's `ops/eviction.rs`), and takes
//! itself off the count. Here the count is made anew whenever a pod changes ([`count`]), from the sizes that the pods'
//! controllers ask for ([`scale`]). The write is guarded by the budget's resource version: an eviction in between makes
//! it fail, and it is counted again. Where counting fails, nothing may go.

mod count;
mod scale;
mod stale;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::api::{
    core::v1::Pod,
    policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
};

use crate::{
    Context, Starts,
    events::Recorder,
    meta::{MetaExt, now},
    queue::Queue,
    selector,
    worker::{Next, Reconciler},
};

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("disruption") {
        return;
    }
    stale::register(starts);
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.budgets.on_change(move |change| changed.add(change.key.clone()));
    // Weak: the caches, which own the handlers, are in the context.
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.pods.on_change(move |change| {
        let Some(context) = weak.upgrade() else { return };
        for budget in context.caches.budgets_by_namespace.get(&change.key.namespace) {
            if change.old.into_iter().chain(change.new).any(|pod| covers(&budget, pod)) {
                changed.add(ObjectKey::of(&*budget));
            }
        }
    });
    let recorder = context.recorder.of("controllermanager");
    let workers = context.config.workers;
    starts.add(Controller { context, recorder }, queue, workers);
}

/// An absent selector covers no pod, an empty one all.
fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let wanted = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    wanted.is_some_and(|wanted| selector::matches(wanted, pod.labels()))
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "disruption";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(budget) = self.context.caches.budgets.get(key) else { return Ok(Next::Done) };
        match self.count(&budget).await {
            Ok((status, next)) => {
                self.write(&budget, status).await?;
                Ok(next)
            }
            Err(error) => {
                self.write(&budget, count::unknown(&budget, &error, now())).await?;
                Err(error)
            }
        }
    }
}

impl Controller {
    async fn count(&self, budget: &PodDisruptionBudget) -> Result<(PodDisruptionBudgetStatus, Next), Error> {
        let spec = budget.spec.clone().unwrap_or_default();
        let pods = self.context.caches.pods_selected(budget.namespace(), spec.selector.as_ref());
        if pods.is_empty() {
            self.recorder.normal(budget, "NoPods", "No matching pods found".to_owned());
        }
        let needed = match count::needed_of_pods(&spec, pods.len()) {
            Some(needed) => needed,
            None => count::needed_of_scale(&spec, self.expected_scale(budget, &pods).await?),
        };
        let now = now();
        let disrupted = count::disrupted(budget, &pods, now);
        for pod in &disrupted.overdue {
            let message = format!(
                "Pod was expected by PDB {}/{} to be deleted but it wasn't",
                budget.namespace(),
                budget.name()
            );
            self.recorder.warning(&**pod, "NotDeleted", message);
        }
        let next = Next::after(disrupted.wait);
        Ok((count::status(budget, &pods, needed, disrupted, now), next))
    }

    /// The sum of what the pods' controllers ask for.
    async fn expected_scale(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<i32, Error> {
        let counted = scale::expected(&self.context, pods).await.inspect_err(|error| {
            let message = format!("Failed to calculate the number of expected pods: {error}");
            self.recorder.warning(budget, "CalculateExpectedPodCountFailed", message);
        })?;
        if counted.has_unmanaged {
            let wanted = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, \
                 the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To \
                 account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                wanted.map(selector::to_text).unwrap_or_default()
            );
            self.recorder.warning(budget, "UnmanagedPods", message);
        }
        Ok(counted.replicas)
    }

    async fn write(
        &self,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result<(), Error> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        let budgets: Api<PodDisruptionBudget> =
            Api::namespaced(self.context.client.clone(), budget.namespace());
        match budgets.update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}
