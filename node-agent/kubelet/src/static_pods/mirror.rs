//! Mirror pods: what the API shows of static pods.
//!
//! [`plan`] compares the static pods with the mirrors that the API has; [`MirrorKeeper`] carries it out for as long as
//! there is a difference. A mirror that somebody deletes or that shows an older file is made anew; the pod that it
//! shows runs on. Statuses of static pods are written to their mirrors ([`MirrorStatus`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hawser_api::Api;
use hawser_api::client::{Client, DeleteOptions};
use hawser_api::informer::Informer;
use hawser_api::resource::{ObjectKey, Target};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{CONFIG_MIRROR, StaticPods, annotation};
use crate::interfaces::StatusWriter;
use crate::manager::Pods;

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Create(Arc<Pod>),
    /// A mirror that is not to be, or not as it is.
    Delete(Arc<Pod>),
}

/// The steps that bring the API's mirrors in step. `working`: uids of pods that something is left of; the mirror of one
/// that is ending stays until it has ended.
fn plan(statics: &[Arc<Pod>], mirrors: &[Arc<Pod>], working: &BTreeSet<String>) -> Vec<Step> {
    let key = |pod: &Pod| ObjectKey::of(pod);
    let mut steps = Vec::new();
    for mirror in mirrors {
        let shows = annotation(mirror, CONFIG_MIRROR).unwrap_or_default();
        let is_wanted = statics.iter().any(|pod| pod.metadata.uid.as_deref() == Some(shows));
        let is_deleted = mirror.metadata.deletion_timestamp.is_some();
        let is_ending = !is_wanted && working.contains(shows);
        if is_deleted || !is_wanted && !is_ending {
            steps.push(Step::Delete(mirror.clone()));
        }
    }
    for pod in statics {
        // Whatever else has the name goes first.
        if !mirrors.iter().any(|mirror| key(mirror) == key(pod)) {
            steps.push(Step::Create(pod.clone()));
        }
    }
    steps
}

/// The mirror of a static pod, as it is made.
fn mirror_of(pod: &Pod, node: &Node) -> Pod {
    let mut mirror = pod.clone();
    let uid = mirror.metadata.uid.take().unwrap_or_default();
    mirror.metadata.annotations.get_or_insert_default().insert(CONFIG_MIRROR.to_owned(), uid);
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror.status = None;
    mirror
}

/// Keeps the mirrors in the API what they should be.
pub struct MirrorKeeper {
    pub node_name: String,
    pub client: Arc<dyn Client>,
    pub statics: StaticPods,
    /// What the API has.
    pub pods: Informer<Pod>,
    pub nodes: Informer<Node>,
    pub workers: Pods,
}

impl MirrorKeeper {
    /// Runs until the token is cancelled. A step that fails is tried again, less and less often.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut changes = self.statics.changes();
        let statics = self.statics.clone();
        self.nodes.on_change(move |_| statics.touch());
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = self.pods.synced() => {}
        }
        let mut delay = RETRY_FIRST;
        loop {
            changes.mark_unchanged();
            let in_step = self.step().await;
            delay = if in_step { RETRY_FIRST } else { (delay * 2).min(RETRY_LAST) };
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = changes.changed() => {}
                () = tokio::time::sleep(delay), if !in_step => {}
            }
        }
    }

    /// One pass over the difference; false when something of it is left.
    async fn step(&self) -> bool {
        let statics = self.statics.all();
        let mirrors = self.pods.filter(super::is_mirror);
        if statics.is_empty() && mirrors.is_empty() {
            return true;
        }
        let Some(node) = self.nodes.get(&ObjectKey::new("", &self.node_name)) else { return false };
        let mut in_step = true;
        for step in plan(&statics, &mirrors, &self.workers.uids()) {
            let (what, pod, done) = match &step {
                Step::Create(pod) => ("create", pod, self.create(&mirror_of(pod, &node)).await),
                Step::Delete(mirror) => ("delete", mirror, self.delete(mirror).await),
            };
            match done {
                // What it has led to is seen in the cache, by another pass.
                Ok(()) => info!(pod = %ObjectKey::of(&**pod), what, "mirror pod"),
                Err(error) => {
                    warn!(pod = %ObjectKey::of(&**pod), what, %error, "mirror pod is not in step, trying again");
                    in_step = false;
                }
            }
        }
        in_step
    }

    async fn create(&self, mirror: &Pod) -> Result<(), hawser_api::Error> {
        let namespace = mirror.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        match api.create(mirror).await {
            // The cache has not heard of it yet; if it is another one, the next pass deletes it.
            Err(error) if error.is_already_exists() => Ok(()),
            done => done.map(drop),
        }
    }

    async fn delete(&self, mirror: &Pod) -> Result<(), hawser_api::Error> {
        let namespace = mirror.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: mirror.metadata.uid.clone(),
            ..DeleteOptions::default()
        };
        match api.delete(mirror.metadata.name.as_deref().unwrap_or_default(), &options).await {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            done => done,
        }
    }
}

/// Writes the statuses of static pods to their mirrors, and all others where they belong.
pub struct MirrorStatus {
    pub inner: Arc<dyn StatusWriter>,
    pub pods: Informer<Pod>,
}

#[async_trait]
impl StatusWriter for MirrorStatus {
    async fn patch_status(&self, target: &Target, uid: &str, patch: Value) -> Result<(), hawser_api::Error> {
        let key = ObjectKey::new(
            target.namespace.clone().unwrap_or_default(),
            target.name.clone().unwrap_or_default(),
        );
        let shown = if &*target.resource.resource == "pods" { self.pods.get(&key) } else { None };
        let mirror = shown.filter(|pod| annotation(pod, CONFIG_MIRROR) == Some(uid));
        let mirror_uid = mirror.and_then(|mirror| mirror.metadata.uid.clone());
        self.inner.patch_status(target, mirror_uid.as_deref().unwrap_or(uid), patch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::static_pods::manifest::parse;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn static_pod(name: &str, image: &str) -> Arc<Pod> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec: {{ containers: [{{ name: c, image: '{image}' }}] }}"
        );
        Arc::new(parse(text.as_bytes(), "/m/web.yaml".as_ref(), "n1").expect("a pod"))
    }

    fn node() -> Node {
        let mut node = Node::default();
        (node.metadata.name, node.metadata.uid) = (Some("n1".into()), Some("uid-of-n1".into()));
        node
    }

    fn shown(pod: &Pod, deleted: bool) -> Arc<Pod> {
        let mut mirror = mirror_of(pod, &node());
        mirror.metadata.uid = Some("uid-of-the-mirror".into());
        mirror.metadata.deletion_timestamp = deleted.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
        Arc::new(mirror)
    }

    #[test]
    fn mirror_names_what_it_shows_and_its_node() {
        let pod = static_pod("web", "one");
        let mirror = mirror_of(&pod, &node());
        assert_eq!(annotation(&mirror, CONFIG_MIRROR), pod.metadata.uid.as_deref());
        assert_eq!(annotation(&mirror, "kubernetes.io/config.hash"), pod.metadata.uid.as_deref());
        assert_eq!((mirror.metadata.uid, mirror.status), (None, None));
        let owner = &mirror.metadata.owner_references.expect("an owner")[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Node", "uid-of-n1"));
        assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), None));
    }

    #[test]
    fn mirrors_follow_the_static_pods() {
        let (one, two) = (static_pod("web", "one"), static_pod("web", "two"));
        let working = |pods: &[&Arc<Pod>]| -> BTreeSet<String> {
            pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect()
        };
        let check =
            |name: &str, statics: &[&Arc<Pod>], mirrors: &[Arc<Pod>], busy: &[&Arc<Pod>], expected| {
                let statics: Vec<Arc<Pod>> = statics.iter().map(|pod| (*pod).clone()).collect();
                let steps = plan(&statics, mirrors, &working(busy));
                let steps: Vec<&str> = steps
                    .iter()
                    .map(|step| match step {
                        Step::Create(_) => "create",
                        Step::Delete(_) => "delete",
                    })
                    .collect();
                let expected: &[&str] = expected;
                assert_eq!(steps, expected, "{name}");
            };
        check("nothing", &[], &[], &[], &[]);
        check("a new pod", &[&one], &[], &[&one], &["create"]);
        check("in step", &[&one], &[shown(&one, false)], &[&one], &[]);
        check("deleted by a user", &[&one], &[shown(&one, true)], &[&one], &["delete"]);
        check("the file is gone, the pod is not", &[], &[shown(&one, false)], &[&one], &[]);
        check("both are gone", &[], &[shown(&one, false)], &[], &["delete"]);
        check("another pod, the first one ends", &[&two], &[shown(&one, false)], &[&one], &[]);
        check("another pod", &[&two], &[shown(&one, false)], &[&two], &["delete"]);
    }
}
