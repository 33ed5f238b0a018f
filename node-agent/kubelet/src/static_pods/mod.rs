//! Static pods: those that files on the node describe, whether there is an API or not.
//!
//! [`source`] follows the files, [`manifest`] makes pods of them. They run as all pods do. The API shows each as a mirror
//! pod ([`mirror`]), which is made, and made again, where the API answers; a mirror pod itself is never run.

pub(crate) mod manifest;
pub mod mirror;
pub mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tokio::sync::watch;

/// Annotations in which upstream says where a pod comes from.
pub(crate) const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
pub(crate) const CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub(crate) const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
pub(crate) const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// The file that the pod comes from.
pub(crate) const CONFIG_FILE: &str = "hawser.io/config.file";

/// True for what only shows a static pod in the API.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR).is_some()
}

/// The uid of the static pod that a mirror shows.
pub(crate) fn mirrors(pod: &Pod) -> Option<&str> {
    annotation(pod, CONFIG_MIRROR)
}

/// True for pods that files describe, and for their mirrors.
pub fn is_static(pod: &Pod) -> bool {
    is_mirror(pod) || annotation(pod, CONFIG_SOURCE).is_some_and(|source| source != "api")
}

/// The file that a static pod comes from.
pub(crate) fn file_of(pod: &Pod) -> Option<&str> {
    annotation(pod, CONFIG_FILE).filter(|_| is_static(pod))
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

type Handler = Box<dyn Fn(&str, Option<&Arc<Pod>>) + Send + Sync>;

/// The static pods that the files describe now, by uid. Cheap to clone; bounded by [`source`].
#[derive(Clone)]
pub struct StaticPods {
    shared: Arc<Shared>,
}

struct Shared {
    pods: RwLock<BTreeMap<String, Arc<Pod>>>,
    unread: RwLock<Unread>,
    handlers: RwLock<Vec<Handler>>,
    /// Counts what may change what mirrors there should be.
    changes: watch::Sender<u64>,
}

/// Files that were not read yet: what an earlier agent made of them is not taken for gone.
#[derive(Debug)]
pub(crate) enum Unread {
    /// They could not even be listed.
    All,
    These(BTreeSet<PathBuf>),
}

impl Default for StaticPods {
    fn default() -> Self {
        let (changes, _) = watch::channel(0);
        let unread = RwLock::new(Unread::These(BTreeSet::new()));
        let (pods, handlers) = Default::default();
        Self { shared: Arc::new(Shared { pods, unread, handlers, changes }) }
    }
}

impl StaticPods {
    /// Registers a handler for the uid of each pod that comes, and, without a pod, of each that goes. It must not block.
    pub fn on_change(&self, handler: impl Fn(&str, Option<&Arc<Pod>>) + Send + Sync + 'static) {
        self.shared.handlers.write().push(Box::new(handler));
    }

    pub fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.shared.pods.read().get(uid).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.shared.pods.read().values().cloned().collect()
    }

    /// Makes the pods exactly these.
    pub fn set(&self, pods: Vec<Arc<Pod>>) {
        let fresh = pods.into_iter().filter_map(|pod| Some((pod.metadata.uid.clone()?, pod)));
        let fresh: BTreeMap<String, Arc<Pod>> = fresh.collect();
        let stale = std::mem::replace(&mut *self.shared.pods.write(), fresh.clone());
        if stale.keys().eq(fresh.keys()) {
            return;
        }
        let handlers = self.shared.handlers.read();
        for uid in stale.keys().filter(|uid| !fresh.contains_key(*uid)) {
            handlers.iter().for_each(|handler| handler(uid, None));
        }
        for (uid, pod) in fresh.iter().filter(|(uid, _)| !stale.contains_key(*uid)) {
            handlers.iter().for_each(|handler| handler(uid, Some(pod)));
        }
        drop(handlers);
        self.touch();
    }

    pub(crate) fn set_unread(&self, unread: Unread) {
        *self.shared.unread.write() = unread;
    }

    /// True while it is not known what the file says, or whether it is still there.
    pub(crate) fn is_unread(&self, file: &Path) -> bool {
        match &*self.shared.unread.read() {
            Unread::All => true,
            Unread::These(files) => files.contains(file),
        }
    }

    /// Something has changed that mirrors depend on: a pod's worker has ended, a mirror is another one.
    pub fn touch(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }
}
