//! Keys and certificates of pods for projected volumes (KEP-4317): asked for through PodCertificateRequests, renewed in
//! time.
//!
//! Keys are made here, each for one certificate, and never leave the node. Nothing is kept over an agent's end: the next
//! one asks anew for each source, and shows what is in the volume until the answer has come. Requests are not watched,
//! but looked at one by one, as long as they are open.

mod key;
mod record;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::GroupVersionResource;
use hawser_api::client::{Client, WriteOptions};
use hawser_api::informer::Informer;
use hawser_api::resource::{ObjectKey, Target};
use hawser_api::typed::{decode, encode};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{
    PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus,
};
use k8s_openapi::api::core::v1::{Node, PodCertificateProjection, ServiceAccount, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;

use super::VolumeError;
use crate::pod::DesiredPod;
use key::{certificates, generate, jitter, shown_in};
use record::{Record, Request, Step};

pub use key::Bundle;

/// What sources show, by their place in the volume.
pub type Bundles = BTreeMap<usize, Arc<Bundle>>;

/// How long a pod's volumes wait for their first certificates before they are said to lack them: signers are programs.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// A new certificate is asked for when the signer says so, or up to this much later. (The API sees to it that the old one is
/// good for ten minutes more.)
const MOST_JITTER: Duration = Duration::from_secs(300);
/// Without the API, whether it is back is looked at so often.
const OFFLINE: Duration = Duration::from_secs(10);
/// Of one node, of a signer. Who finds no room tries again as after an error.
const MOST_OPEN_REQUESTS: usize = 256;

/// A source of a pod: volume and place.
type Source = (String, usize);

#[derive(Debug)]
struct Kept {
    signer: String,
    record: Record,
}

/// The sources of this node's pods, by the pods' uid; a pod's are forgotten with its volumes.
pub struct PodCertificates {
    client: Arc<dyn Client>,
    node_name: String,
    nodes: Informer<Node>,
    kept: Mutex<HashMap<String, BTreeMap<Source, Kept>>>,
}

/// An event's reason and text.
pub type Warning = (&'static str, String);

pub(super) fn projections(volume: &Volume) -> impl Iterator<Item = (usize, &PodCertificateProjection)> {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten()).enumerate();
    sources.filter_map(|(index, source)| Some((index, source.pod_certificate.as_ref()?)))
}

impl PodCertificates {
    pub fn new(client: Arc<dyn Client>, node_name: String, nodes: Informer<Node>) -> Self {
        Self { client, node_name, nodes, kept: Mutex::default() }
    }

    /// What the volume's sources show now, and when it has to be written again. `dir` is where it is; it is waited for first
    /// certificates until `deadline`, `None` where the API has not answered since the agent began.
    ///
    /// # Errors
    /// A source without a certificate, or one whose signer refuses.
    pub(super) async fn bundles(
        &self,
        pod: &DesiredPod,
        volume: &Volume,
        dir: &Path,
        deadline: Option<Instant>,
    ) -> Result<(Bundles, Option<Duration>), VolumeError> {
        let mut bundles = Bundles::new();
        let mut due: Option<Instant> = None;
        let mut wrong = None;
        for (index, projection) in projections(volume) {
            let source = (volume.name.clone(), index);
            self.find(pod, &source, projection, dir);
            if let Some(deadline) = deadline {
                self.advance(pod, &source, projection, deadline).await;
            }
            let known = self.on(pod.uid(), &source, |record| (record.shown(), record.due_at()));
            let (shown, again) = known.unwrap_or_else(|| (Err("the pod is gone".to_owned()), None));
            let offline = Instant::now() + OFFLINE;
            let again = again.map(|at| if deadline.is_some() { at } else { at.max(offline) });
            due = due.into_iter().chain(again).min();
            match shown {
                Ok(bundle) => drop(bundles.insert(index, bundle)),
                Err(message) => {
                    let signer = projection.signer_name.clone();
                    wrong.get_or_insert(VolumeError::Certificate { index, signer, message });
                }
            }
        }
        match wrong {
            Some(error) => Err(error),
            None => Ok((bundles, due.map(|at| at.saturating_duration_since(Instant::now())))),
        }
    }

    /// What the pod's user is to know of its certificates, each thing once.
    pub(super) fn warnings(&self, pod_uid: &str) -> Vec<Warning> {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        let sources = kept.get_mut(pod_uid).into_iter().flatten();
        let warnings = sources.filter_map(|((volume, index), kept)| {
            let (reason, what) = kept.record.warning(now)?;
            let Kept { signer, .. } = kept;
            Some((reason, format!("volume {volume:?}, source {index} (signer {signer:?}): {what}")))
        });
        warnings.collect()
    }

    /// How many sources are in each state, by signer.
    pub(crate) fn states(&self) -> BTreeMap<(String, &'static str), usize> {
        let now = Instant::now();
        let mut states = BTreeMap::new();
        for kept in self.kept.lock().values().flat_map(BTreeMap::values) {
            *states.entry((kept.signer.clone(), kept.record.state(now))).or_default() += 1;
        }
        states
    }

    pub(super) fn forget(&self, pod_uid: &str) {
        self.kept.lock().remove(pod_uid);
    }

    /// Begins with the source, by what an earlier agent has left of it.
    fn find(&self, pod: &DesiredPod, source: &Source, projection: &PodCertificateProjection, dir: &Path) {
        let mut kept = self.kept.lock();
        let sources = kept.entry(pod.uid().to_owned()).or_default();
        sources.entry(source.clone()).or_insert_with(|| {
            let now = Instant::now();
            let found = shown_in(dir, projection).map(|(bundle, ends)| {
                let expires_at = instant_of(ends, now);
                // Not all of a cluster at once where all agents are replaced.
                let may_wait = expires_at > now + 3 * MOST_JITTER;
                (bundle, if may_wait { now + jitter(MOST_JITTER) } else { now }, expires_at)
            });
            Kept { signer: projection.signer_name.clone(), record: Record::new(found, now) }
        });
    }

    /// `None` for a source that was forgotten meanwhile.
    fn on<T>(&self, pod_uid: &str, source: &Source, act: impl FnOnce(&mut Record) -> T) -> Option<T> {
        let mut kept = self.kept.lock();
        let kept = kept.get_mut(pod_uid)?.get_mut(source)?;
        Some(act(&mut kept.record))
    }

    /// Does what is due, and waits until `deadline` for a first certificate.
    async fn advance(
        &self,
        pod: &DesiredPod,
        source: &Source,
        projection: &PodCertificateProjection,
        deadline: Instant,
    ) {
        loop {
            let now = Instant::now();
            let known = self.on(pod.uid(), source, |record| (record.step(now), record.awaited_at()));
            let Some((step, awaited)) = known else { return };
            let done = match step {
                Step::Ask => self.ask(pod, projection).await.map(|request| {
                    self.on(pod.uid(), source, |record| record.asked(request, Instant::now()));
                }),
                Step::Look(request) => self.look(pod, source, &request).await,
                Step::Rest => match awaited.filter(|at| *at < deadline) {
                    Some(at) => {
                        tokio::time::sleep_until(at).await;
                        continue;
                    }
                    None => return,
                },
            };
            if let Err(error) = done {
                warn!(pod = %pod.key(), volume = source.0, index = source.1, %error, "a pod certificate was not got");
                self.on(pod.uid(), source, |record| record.failed(error, Instant::now()));
            }
        }
    }

    async fn ask(&self, pod: &DesiredPod, projection: &PodCertificateProjection) -> Result<Request, String> {
        let open = |kept: &Kept| kept.record.is_asking() && kept.signer == projection.signer_name;
        let count = self.kept.lock().values().flat_map(BTreeMap::values).filter(|kept| open(kept)).count();
        if count >= MOST_OPEN_REQUESTS {
            return Err(format!("{count} certificates of this signer are asked for already"));
        }
        let new = generate(&projection.key_type)?;
        let node = self.nodes.get(&ObjectKey::new("", &self.node_name));
        let node_uid = node.and_then(|node| node.metadata.uid.clone());
        let node_uid = node_uid.ok_or_else(|| format!("node {:?} is not known yet", self.node_name))?;
        let account = pod.service_account();
        let resource = GroupVersionResource::of::<ServiceAccount>();
        let found = self.client.get(&Target::object(resource, Some(pod.namespace()), account)).await;
        let found = found.and_then(|found| decode::<ServiceAccount>(&found));
        let found = found.map_err(|error| format!("service account {account:?}: {error}"))?;
        let spec = PodCertificateRequestSpec {
            signer_name: projection.signer_name.clone(),
            pod_name: pod.name().to_owned(),
            pod_uid: pod.uid().to_owned(),
            service_account_name: account.to_owned(),
            service_account_uid: found.metadata.uid.unwrap_or_default(),
            node_name: self.node_name.clone(),
            node_uid,
            max_expiration_seconds: projection.max_expiration_seconds,
            stub_pkc_s10_request: ByteString(new.request),
            unverified_user_annotations: projection.user_annotations.clone(),
            ..PodCertificateRequestSpec::default()
        };
        let made = self.create(pod, spec).await;
        let made = made.map_err(|error| format!("creating a PodCertificateRequest: {error}"))?;
        let (name, uid) = (made.name.unwrap_or_default(), made.uid.unwrap_or_default());
        Ok(Request { name, uid, key: new.pem })
    }

    /// Makes a request that goes with its pod; returns the metadata that the API has given it.
    async fn create(
        &self,
        pod: &DesiredPod,
        spec: PodCertificateRequestSpec,
    ) -> Result<ObjectMeta, hawser_api::Error> {
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta {
            generate_name: Some("req-".to_owned()),
            namespace: Some(pod.namespace().to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        };
        let request = PodCertificateRequest { metadata, spec, status: None };
        let resource = GroupVersionResource::of::<PodCertificateRequest>();
        let target = Target::collection(resource, Some(pod.namespace()));
        let made = self.client.create(&target, encode(&request)?, &WriteOptions::default()).await?;
        Ok(decode::<PodCertificateRequest>(&made)?.metadata)
    }

    async fn look(&self, pod: &DesiredPod, source: &Source, request: &Request) -> Result<(), String> {
        let resource = GroupVersionResource::of::<PodCertificateRequest>();
        let target = Target::object(resource, Some(pod.namespace()), &request.name);
        let named = |error: hawser_api::Error| format!("PodCertificateRequest {:?}: {error}", request.name);
        let found = match self.client.get(&target).await {
            // A node is not told of a request that is not there, only that it has no right to it.
            Err(error) if error.is_not_found() || error.code() == 403 => None,
            found => Some(found.and_then(|found| decode::<PodCertificateRequest>(&found)).map_err(named)?),
        };
        let found = found.filter(|found| found.metadata.uid.as_deref() == Some(&request.uid));
        let now = Instant::now();
        let Some(found) = found else {
            self.on(pod.uid(), source, |record| record.missing(now));
            return Ok(());
        };
        let status = found.status.unwrap_or_default();
        let answer = status.conditions.iter().flatten().find(|condition| condition.status == "True");
        let Some(answer) = answer else {
            self.on(pod.uid(), source, |record| record.pending(now));
            return Ok(());
        };
        let state = match answer.type_.as_str() {
            "Issued" => {
                self.on(pod.uid(), source, |record| match read(&status, request, now) {
                    Ok((bundle, refresh_at, expires_at)) => {
                        record.issued(bundle, refresh_at, expires_at, now)
                    }
                    // An answer does not change any more.
                    Err(message) => record.refused("failed", message),
                });
                return Ok(());
            }
            "Denied" => "denied",
            _ => "failed",
        };
        let message = format!(
            "PodCertificateRequest {:?} was permanently {state}: reason={:?} message={:?}",
            request.name, answer.reason, answer.message
        );
        self.on(pod.uid(), source, |record| record.refused(state, message));
        Ok(())
    }
}

/// What was issued, and by this node's clock when it is to be renewed and when it ends.
fn read(
    status: &PodCertificateRequestStatus,
    request: &Request,
    now: Instant,
) -> Result<(Bundle, Instant, Instant), String> {
    let lacking = |what: &str| format!("PodCertificateRequest {:?} is issued without {what}", request.name);
    let at = |time: &Option<Time>| time.as_ref().map(|time| instant_of(time.0, now));
    let chain = certificates(status.certificate_chain.as_deref().unwrap_or_default());
    let chain = chain.map_err(|why| lacking(&format!("a chain that can be read: {why}")))?;
    if chain.is_empty() {
        return Err(lacking("a certificate"));
    }
    let refresh_at = at(&status.begin_refresh_at).ok_or_else(|| lacking("beginRefreshAt"))?;
    let expires_at = at(&status.not_after).ok_or_else(|| lacking("notAfter"))?;
    Ok((Bundle { key: request.key.clone(), chain }, refresh_at + jitter(MOST_JITTER), expires_at))
}

/// On the monotonic clock, by how far it is from now; what has been is now.
fn instant_of(time: Timestamp, now: Instant) -> Instant {
    let left = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default();
    now + left
}
