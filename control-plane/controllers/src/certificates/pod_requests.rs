//! PodCertificateRequests are deleted a quarter of an hour after they were made, whatever came of them: by then the node
//! has the certificate, or asks anew.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;

use crate::{
    Context, Starts,
    meta::{MetaExt, elapsed, now, only_this},
    queue::Queue,
    worker::{Next, Reconciler},
};

/// As upstream.
const KEPT: Duration = Duration::from_secs(15 * 60);

pub(super) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("podcertificaterequestcleaner") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.pod_certificate_requests.on_change(move |change| changed.add(change.key.clone()));
    starts.add(Cleaner { context }, queue, 1);
}

struct Cleaner {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Cleaner {
    type Key = ObjectKey;

    const NAME: &'static str = "podcertificaterequestcleaner";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(request) = self.context.caches.pod_certificate_requests.get(key) else {
            return Ok(Next::Done);
        };
        let left = KEPT.saturating_sub(elapsed(request.created(), now()));
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        let requests: Api<PodCertificateRequest> =
            Api::namespaced(self.context.client.clone(), &key.namespace);
        match requests.delete(&key.name, &only_this(&*request)).await {
            // Gone, or another one has the name.
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(Next::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, Running};

    #[tokio::test(start_paused = true)]
    async fn a_request_goes_after_a_quarter_of_an_hour() {
        let api = FakeApi::new();
        let _running = Running::start(&api, &["podcertificaterequestcleaner"]);
        let is_there = |api: &FakeApi, name: &str| api.read::<PodCertificateRequest>("shop", name).is_some();
        let put = |name: &str| {
            api.put::<PodCertificateRequest>(json!({ "metadata": { "name": name, "namespace": "shop" } }));
        };
        put("old");
        tokio::time::sleep(KEPT - Duration::from_secs(60)).await;
        put("new");
        assert!(is_there(&api, "old"), "its time is not over");
        api.until("the old one to go", |api| !is_there(api, "old")).await;
        assert!(is_there(&api, "new"));
        api.until("the other to go", |api| !is_there(api, "new")).await;
    }
}
