//! What the kubelet has to know to start its pods while the API is away: kept on disk, for a machine that is started
//! again.
//!
//! Pods are in one file, what they name (ConfigMaps, the services that their environment shows, and Secrets where that is
//! wanted) in another. Both are written a moment after a change, whole, and only once the API's list is complete, so that
//! they never hold less than what was known before. At a start they fill the caches, and the API's word replaces them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::informer::Informer;
use hawser_api::resource::ObjectKey;
use hawser_api::typed::Kind;
use hawser_services::{Change, Service};
use k8s_openapi::api::core::v1::{self, ConfigMap, Pod, Secret, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::durable;
use crate::interfaces::Objects;
use crate::pod::DesiredPod;
use crate::static_pods::is_mirror;

/// Changes that come together are written together.
const DELAY: Duration = Duration::from_secs(1);
/// One write after another, at the most.
const PAUSE: Duration = Duration::from_secs(5);
/// Of each file. What does not fit is left out, and told.
const MAX_BYTES: usize = 64 << 20;
/// Of the files' form. A file of another one is not read.
const FORM: u32 = 1;

#[derive(Default, Serialize, Deserialize)]
struct Pods {
    form: u32,
    pods: Vec<Pod>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    form: u32,
    config_maps: Vec<ConfigMap>,
    secrets: Vec<Secret>,
    services: Vec<v1::Service>,
}

/// Keeps the files.
pub struct Checkpoint {
    dir: PathBuf,
    with_secrets: bool,
    objects: Objects,
    dirty: Arc<Dirty>,
    /// Digests of what is on disk.
    written: [Vec<u8>; 2],
}

#[derive(Default)]
struct Dirty {
    /// Pods, and what they name.
    files: Mutex<[bool; 2]>,
    marked: Notify,
}

impl Dirty {
    fn mark(&self, files: [bool; 2]) {
        let mut marked = self.files.lock();
        *marked = [marked[0] || files[0], marked[1] || files[1]];
        drop(marked);
        self.marked.notify_one();
    }
}

impl Checkpoint {
    /// Fills the caches with what an earlier agent has noted, and follows them from then on. To be called before the API's
    /// word comes in: what is noted is older.
    pub fn restore(config: &Config, objects: &Objects) -> Self {
        let dir = config.root_dir.join("checkpoint");
        let named: Named = read(&dir.join(NAMED)).unwrap_or_default();
        if named.form == FORM {
            named.config_maps.into_iter().for_each(|object| put(&objects.config_maps, object));
            named.secrets.into_iter().for_each(|object| put(&objects.secrets, object));
            named.services.iter().for_each(|object| objects.services.put_service(object));
        }
        let pods: Pods = read(&dir.join(PODS)).unwrap_or_default();
        if pods.form == FORM {
            // Last: who hears of a pod finds what the pod names.
            pods.pods.into_iter().for_each(|pod| put(&objects.pods, pod));
        }
        if !objects.pods.is_empty() {
            info!(pods = objects.pods.len(), "pods that an earlier agent has noted");
        }
        let dirty = Arc::new(Dirty::default());
        let mark = |files: [bool; 2]| {
            let dirty = dirty.clone();
            move || dirty.mark(files)
        };
        // Which services are shown follows from the pods.
        let marks_both = mark([true, true]);
        objects.pods.on_change(move |_| marks_both());
        let marks = mark([false, true]);
        objects.config_maps.on_change(move |_| marks());
        let marks = mark([false, true]);
        objects.services.on_change(move |_, change| match change {
            Change::Service { .. } => marks(),
            Change::Slice { .. } => {}
        });
        if config.checkpoint_secrets {
            let marks = mark([false, true]);
            objects.secrets.on_change(move |_| marks());
        }
        // What is on disk may be of a kubelet that was set otherwise.
        dirty.mark([true, true]);
        let written = Default::default();
        Self { dir, with_secrets: config.checkpoint_secrets, objects: objects.clone(), dirty, written }
    }

    /// Writes what changes until the token is cancelled, and once more then.
    pub async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = self.objects.pods.synced() => {}
        }
        let mut ends = false;
        while !ends {
            ends = tokio::select! {
                () = shutdown.cancelled() => true,
                () = self.dirty.marked.notified() => false,
            };
            ends = ends || is_over(&shutdown, DELAY).await;
            let files = std::mem::take(&mut *self.dirty.files.lock());
            if !self.write(files).await {
                self.dirty.mark(files);
            }
            ends = ends || is_over(&shutdown, PAUSE).await;
        }
    }

    /// False when something has to be written again.
    async fn write(&mut self, files: [bool; 2]) -> bool {
        let mut done = true;
        for (index, name) in [PODS, NAMED].into_iter().enumerate().filter(|(index, _)| files[*index]) {
            let content = if index == 0 { self.pods() } else { self.named() };
            let digest = Sha256::digest(&content).to_vec();
            if self.written[index] == digest {
                continue;
            }
            let path = self.dir.join(name);
            let write = tokio::task::spawn_blocking(move || durable::write(&path, &content));
            match write.await.map_err(std::io::Error::other).flatten() {
                Ok(()) => self.written[index] = digest,
                Err(error) => {
                    warn!(file = name, %error, "what pods need without the API was not noted, trying again");
                    done = false;
                }
            }
        }
        done
    }

    fn pods(&self) -> Vec<u8> {
        let pods = self.running().into_iter().map(|pod| {
            let mut pod = (*pod).clone();
            pod.metadata.managed_fields = None;
            pod
        });
        let mut room = Room::default();
        let pods = Pods { form: FORM, pods: room.fill("pods", pods.collect()) };
        serde_json::to_vec(&pods).unwrap_or_default()
    }

    fn named(&self) -> Vec<u8> {
        let mut room = Room::default();
        let config_maps = self.objects.config_maps.all();
        let secrets = if self.with_secrets { self.objects.secrets.all() } else { Vec::new() };
        let named = Named {
            form: FORM,
            services: room.fill("services", self.services()),
            config_maps: room
                .fill("configmaps", config_maps.iter().map(|object| (**object).clone()).collect()),
            secrets: room.fill("secrets", secrets.iter().map(|object| (**object).clone()).collect()),
        };
        serde_json::to_vec(&named).unwrap_or_default()
    }

    /// The API's pods that have not ended.
    fn running(&self) -> Vec<Arc<Pod>> {
        self.objects.pods.filter(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            !matches!(phase, Some("Succeeded" | "Failed")) && !is_mirror(pod)
        })
    }

    /// Those that pods see in their environment.
    fn services(&self) -> Vec<v1::Service> {
        let pods = self.running().into_iter().map(DesiredPod::new);
        let linked = pods.filter(|pod| pod.spec().enable_service_links != Some(false));
        let namespaces: BTreeSet<String> = linked.map(|pod| pod.namespace().to_owned()).collect();
        let found = self.objects.services.filter(|service| {
            let (namespace, name) = (&*service.key.namespace, &*service.key.name);
            let is_shown = namespaces.contains(namespace) || (namespace, name) == ("default", "kubernetes");
            is_shown && !service.cluster_ips.is_empty()
        });
        found.iter().map(|service| as_object(service)).collect()
    }
}

const PODS: &str = "pods.json";
const NAMED: &str = "named.json";

/// What is there already is the API's word.
fn put<K: Kind>(cache: &Informer<K>, object: K) {
    if cache.get(&ObjectKey::of(&object)).is_none() {
        cache.put(object);
    }
}

/// True when the token is cancelled within this time.
async fn is_over(shutdown: &CancellationToken, time: Duration) -> bool {
    tokio::time::timeout(time, shutdown.cancelled()).await.is_ok()
}

fn read<T: DeserializeOwned>(path: &std::path::Path) -> Option<T> {
    let content = match std::fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            warn!(path = %path.display(), %error, "what pods need without the API cannot be read");
            return None;
        }
    };
    match serde_json::from_slice(&content) {
        Ok(noted) => Some(noted),
        Err(error) => {
            warn!(path = %path.display(), %error, "what pods need without the API is damaged");
            None
        }
    }
}

/// As much of a Service as an environment shows.
fn as_object(service: &Service) -> v1::Service {
    let ips: Vec<String> = service.cluster_ips.iter().map(ToString::to_string).collect();
    let ports = service.ports.iter().map(|port| ServicePort {
        name: Some(port.name.to_string()).filter(|name| !name.is_empty()),
        port: i32::from(port.port),
        protocol: Some(port.protocol.as_str().to_owned()),
        ..ServicePort::default()
    });
    v1::Service {
        metadata: ObjectMeta {
            namespace: Some(service.key.namespace.to_string()),
            name: Some(service.key.name.to_string()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: ips.first().cloned(),
            cluster_ips: Some(ips),
            ports: Some(ports.collect()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// What is left of a file's bytes.
struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(MAX_BYTES)
    }
}

impl Room {
    /// As many of the objects as fit, in order of their names.
    fn fill<K: Kind>(&mut self, what: &str, mut objects: Vec<K>) -> Vec<K> {
        objects.sort_by_cached_key(|object| ObjectKey::of(object).to_string());
        let all = objects.len();
        objects.retain(|object| {
            let bytes = serde_json::to_vec(object).map_or(usize::MAX, |text| text.len());
            let fits = bytes <= self.0;
            self.0 = self.0.saturating_sub(if fits { bytes } else { 0 });
            fits
        });
        if objects.len() < all {
            warn!(
                what,
                noted = objects.len(),
                all,
                "not all that pods need without the API fits into its file"
            );
        }
        objects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{container, pod_object, spec};

    fn named(name: &str, bytes: usize) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("default".into()),
                ..ObjectMeta::default()
            },
            data: Some([("key".to_owned(), "x".repeat(bytes))].into()),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let mut room = Room(1000);
        let kept = room.fill("configmaps", vec![named("c", 100), named("b", 900), named("a", 100)]);
        let names: Vec<_> = kept.iter().filter_map(|map| map.metadata.name.as_deref()).collect();
        assert_eq!(names, ["a", "c"]);
    }

    #[test]
    fn services_that_pods_see_are_kept_with_what_they_show() {
        let objects = Objects::default();
        let service = |namespace: &str, name: &str, ip: Option<&str>| {
            let port = ServicePort { port: 80, name: Some("http".into()), ..ServicePort::default() };
            objects.services.put_service(&v1::Service {
                metadata: ObjectMeta {
                    name: Some(name.into()),
                    namespace: Some(namespace.into()),
                    ..ObjectMeta::default()
                },
                spec: Some(ServiceSpec {
                    cluster_ip: ip.map(str::to_owned),
                    ports: Some(vec![port]),
                    ..ServiceSpec::default()
                }),
                status: None,
            });
        };
        service("default", "kubernetes", Some("10.96.0.1"));
        service("default", "web", Some("10.96.0.7"));
        service("default", "headless", None);
        service("other", "db", Some("10.96.0.8"));
        objects.pods.put(pod_object(spec("Always", vec![], vec![container("c")])));
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config::new("n", [127, 0, 0, 1].into(), dir.path());
        let kept = Checkpoint::restore(&config, &objects).services();
        let kept: Vec<Service> = kept.iter().map(Service::from).collect();
        let mut names: Vec<String> = kept.iter().map(|service| service.key.name.to_string()).collect();
        names.sort();
        assert_eq!(names, ["kubernetes", "web"]);
        let web = kept.iter().find(|service| &*service.key.name == "web").expect("kept");
        assert_eq!(web.cluster_ips[0].to_string(), "10.96.0.7");
        assert_eq!((&*web.ports[0].name, web.ports[0].port), ("http", 80));
    }

    #[test]
    fn damaged_files_are_no_reason_not_to_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config::new("n", [127, 0, 0, 1].into(), dir.path());
        std::fs::create_dir(dir.path().join("checkpoint")).expect("made");
        for content in ["{", "{}", r#"{"form":99,"pods":[]}"#] {
            for file in [PODS, NAMED] {
                std::fs::write(dir.path().join("checkpoint").join(file), content).expect("written");
            }
            let objects = Objects::default();
            Checkpoint::restore(&config, &objects);
            assert!(objects.pods.is_empty() && !objects.pods.is_synced(), "{content}");
        }
    }
}
