//! The watch-fed caches that all controllers share, with their indexes.
//!
//! One informer per kind, however many controllers read it. Indexes are kept by the informers' first
//! handlers, so a controller that hears of a change finds it in every index. Lookups by owner, node or
//! selector cost what they return, not what the cluster holds.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use hawser_api::{
    Client,
    client::ListOptions,
    informer::{Change, Informer},
    resource::ObjectKey,
    typed::Kind,
};
use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
        autoscaling::v2::HorizontalPodAutoscaler,
        batch::v1::{CronJob, Job},
        certificates::{v1::CertificateSigningRequest, v1beta1::PodCertificateRequest},
        coordination::v1::Lease,
        core::v1::{
            ConfigMap, Endpoints, Namespace, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim,
            Pod, ReplicationController, ResourceQuota, Service, ServiceAccount,
        },
        discovery::v1::EndpointSlice,
        policy::v1::PodDisruptionBudget,
        rbac::v1::ClusterRole,
        resource::v1::{ResourceClaim, ResourceClaimTemplate},
        storage::v1::{CSIDriver, StorageClass, VolumeAttachment},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use parking_lot::RwLock;
use tokio::task::JoinSet;

use crate::{
    attachdetach::plan::{Attachable, shown},
    meta::{MetaExt, pod_node},
    persistentvolume::matching::{claim_ref, class_of_claim, class_of_volume},
    resource_claim,
    selector::Labels,
};

/// Where the nodes' Leases are.
pub(crate) const NODE_LEASES: &str = "kube-node-lease";
/// The ConfigMap with the cluster's CA, in every namespace.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";

/// The one term of [`Caches::gathering_roles`].
pub(crate) const GATHERING: &str = "gathering";

pub(crate) struct Caches {
    pub(crate) pods: Informer<Pod>,
    /// By the controller's uid, or [`orphans_of`] a namespace.
    pub(crate) pods_by_controller: Index<Pod>,
    pub(crate) pods_by_namespace: Index<Pod>,
    pub(crate) pods_by_node: Index<Pod>,
    /// By [`pair_term`] of each label.
    pub(crate) pods_by_label: Index<Pod>,
    pub(crate) replica_sets: Informer<ReplicaSet>,
    pub(crate) replica_sets_by_controller: Index<ReplicaSet>,
    pub(crate) replica_sets_by_namespace: Index<ReplicaSet>,
    pub(crate) deployments: Informer<Deployment>,
    pub(crate) deployments_by_namespace: Index<Deployment>,
    pub(crate) daemon_sets: Informer<DaemonSet>,
    pub(crate) daemon_sets_by_namespace: Index<DaemonSet>,
    pub(crate) stateful_sets: Informer<StatefulSet>,
    pub(crate) stateful_sets_by_namespace: Index<StatefulSet>,
    pub(crate) replication_controllers: Informer<ReplicationController>,
    pub(crate) replication_controllers_by_namespace: Index<ReplicationController>,
    pub(crate) revisions: Informer<ControllerRevision>,
    /// By the controller's uid, or [`orphans_of`] a namespace.
    pub(crate) revisions_by_controller: Index<ControllerRevision>,
    pub(crate) jobs: Informer<Job>,
    pub(crate) jobs_by_controller: Index<Job>,
    pub(crate) jobs_by_namespace: Index<Job>,
    pub(crate) cron_jobs: Informer<CronJob>,
    pub(crate) autoscalers: Informer<HorizontalPodAutoscaler>,
    pub(crate) budgets: Informer<PodDisruptionBudget>,
    pub(crate) budgets_by_namespace: Index<PodDisruptionBudget>,
    pub(crate) services: Informer<Service>,
    /// By [`pair_term`] of one pair of the selector.
    pub(crate) services_by_selector: Index<Service>,
    pub(crate) endpoint_slices: Informer<EndpointSlice>,
    /// By `namespace/service`.
    pub(crate) endpoint_slices_by_service: Index<EndpointSlice>,
    pub(crate) endpoints: Informer<Endpoints>,
    pub(crate) nodes: Informer<Node>,
    /// Nodes by the volumes that their status lists as attached.
    pub(crate) nodes_by_attached: Index<Node>,
    pub(crate) leases: Informer<Lease>,
    pub(crate) namespaces: Informer<Namespace>,
    pub(crate) service_accounts: Informer<ServiceAccount>,
    pub(crate) root_ca: Informer<ConfigMap>,
    pub(crate) cluster_roles: Informer<ClusterRole>,
    /// Those with an aggregation rule, by [`GATHERING`].
    pub(crate) gathering_roles: Index<ClusterRole>,
    pub(crate) resource_quotas: Informer<ResourceQuota>,
    pub(crate) resource_quotas_by_namespace: Index<ResourceQuota>,
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    /// Claims that are not bound, by class; empty for those without one.
    pub(crate) waiting_claims: Index<PersistentVolumeClaim>,
    /// Claims by the volume that they name.
    pub(crate) claims_by_volume: Index<PersistentVolumeClaim>,
    pub(crate) volumes: Informer<PersistentVolume>,
    /// Volumes that are for no claim, by class; empty for those without one.
    pub(crate) volumes_by_class: Index<PersistentVolume>,
    /// Volumes by [`claim_term`] of the claim that they are for.
    pub(crate) volumes_by_claim: Index<PersistentVolume>,
    /// Volumes of CSI drivers by their unique name, as the statuses of nodes have it.
    pub(crate) volumes_by_unique_name: Index<PersistentVolume>,
    pub(crate) classes: Informer<StorageClass>,
    pub(crate) drivers: Informer<CSIDriver>,
    pub(crate) attachments: Informer<VolumeAttachment>,
    /// Attachments by the PersistentVolume.
    pub(crate) attachments_by_volume: Index<VolumeAttachment>,
    pub(crate) attachments_by_node: Index<VolumeAttachment>,
    pub(crate) resource_claims: Informer<ResourceClaim>,
    pub(crate) resource_claim_templates: Informer<ResourceClaimTemplate>,
    pub(crate) signing_requests: Informer<CertificateSigningRequest>,
    pub(crate) pod_certificate_requests: Informer<PodCertificateRequest>,
    /// Pods by [`claim_term`] of the claims that they mount.
    pub(crate) pods_by_claim: Index<Pod>,
    /// Pods by [`claim_term`] of the ResourceClaims that they use.
    pub(crate) pods_by_resource_claim: Index<Pod>,
}

impl Caches {
    pub(crate) fn new() -> Self {
        let (pods, replica_sets, deployments) = (Informer::new(), Informer::new(), Informer::new());
        let (services, endpoint_slices) = (Informer::new(), Informer::new());
        let (cluster_roles, resource_quotas) = (Informer::new(), Informer::new());
        let (revisions, jobs, budgets) = (Informer::new(), Informer::new(), Informer::new());
        let (daemon_sets, stateful_sets) = (Informer::new(), Informer::new());
        let (claims, volumes) = (Informer::new(), Informer::new());
        let (nodes, attachments) = (Informer::new(), Informer::new());
        let replication_controllers = Informer::new();
        Self {
            pods_by_controller: Index::new(&pods, controller_terms),
            pods_by_claim: Index::new(&pods, claim_terms),
            pods_by_resource_claim: Index::new(&pods, |pod: &Pod| {
                resource_claim::claims_of(pod).map(|key| claim_term(&key)).collect()
            }),
            pods_by_namespace: Index::new(&pods, namespace_terms),
            pods_by_node: Index::new(&pods, |pod| pod_node(pod).map(str::to_owned).into_iter().collect()),
            pods_by_label: Index::new(&pods, |pod: &Pod| {
                let pairs = pod.labels().iter();
                pairs.map(|(key, value)| pair_term(pod.namespace(), key, value)).collect()
            }),
            pods,
            replica_sets_by_controller: Index::new(&replica_sets, controller_terms),
            replica_sets_by_namespace: Index::new(&replica_sets, namespace_terms),
            replica_sets,
            deployments_by_namespace: Index::new(&deployments, namespace_terms),
            deployments,
            daemon_sets_by_namespace: Index::new(&daemon_sets, namespace_terms),
            daemon_sets,
            stateful_sets_by_namespace: Index::new(&stateful_sets, namespace_terms),
            stateful_sets,
            replication_controllers_by_namespace: Index::new(&replication_controllers, namespace_terms),
            replication_controllers,
            revisions_by_controller: Index::new(&revisions, controller_terms),
            revisions,
            jobs_by_controller: Index::new(&jobs, controller_terms),
            jobs_by_namespace: Index::new(&jobs, namespace_terms),
            jobs,
            cron_jobs: Informer::new(),
            autoscalers: Informer::new(),
            budgets_by_namespace: Index::new(&budgets, namespace_terms),
            budgets,
            services_by_selector: Index::new(&services, selector_terms),
            services,
            endpoint_slices_by_service: Index::new(&endpoint_slices, |slice: &EndpointSlice| {
                service_of(slice).map(|key| key.to_string()).into_iter().collect()
            }),
            endpoint_slices,
            endpoints: Informer::new(),
            nodes_by_attached: Index::new(&nodes, |node: &Node| shown(node).map(str::to_owned).collect()),
            nodes,
            leases: Informer::new(),
            namespaces: Informer::new(),
            service_accounts: Informer::new(),
            root_ca: Informer::new(),
            gathering_roles: Index::new(&cluster_roles, |role: &ClusterRole| {
                role.aggregation_rule.iter().map(|_| GATHERING.to_owned()).collect()
            }),
            cluster_roles,
            resource_quotas_by_namespace: Index::new(&resource_quotas, namespace_terms),
            resource_quotas,
            waiting_claims: Index::new(&claims, waiting_terms),
            claims_by_volume: Index::new(&claims, |claim: &PersistentVolumeClaim| {
                claim.spec.iter().filter_map(|spec| spec.volume_name.clone()).collect()
            }),
            claims,
            volumes_by_class: Index::new(&volumes, |volume: &PersistentVolume| {
                let free = claim_ref(volume).is_none();
                free.then(|| class_of_volume(volume).to_owned()).into_iter().collect()
            }),
            volumes_by_claim: Index::new(&volumes, |volume: &PersistentVolume| {
                claim_ref(volume).map(referenced_term).into_iter().collect()
            }),
            volumes_by_unique_name: Index::new(&volumes, |volume: &PersistentVolume| {
                Attachable::of(volume).map(|volume| volume.unique_name()).into_iter().collect()
            }),
            volumes,
            classes: Informer::new(),
            drivers: Informer::new(),
            attachments_by_volume: Index::new(&attachments, |attachment: &VolumeAttachment| {
                attachment.spec.source.persistent_volume_name.clone().into_iter().collect()
            }),
            attachments_by_node: Index::new(&attachments, |attachment: &VolumeAttachment| {
                vec![attachment.spec.node_name.clone()]
            }),
            attachments,
            resource_claims: Informer::new(),
            resource_claim_templates: Informer::new(),
            signing_requests: Informer::new(),
            pod_certificate_requests: Informer::new(),
        }
    }

    /// Starts every informer in `tasks`; they follow the API until they are dropped.
    pub(crate) fn start(&self, client: &Arc<dyn Client>, tasks: &mut JoinSet<()>) {
        start(&self.pods, client, tasks);
        start(&self.replica_sets, client, tasks);
        start(&self.deployments, client, tasks);
        start(&self.daemon_sets, client, tasks);
        start(&self.stateful_sets, client, tasks);
        start(&self.replication_controllers, client, tasks);
        start(&self.revisions, client, tasks);
        start(&self.jobs, client, tasks);
        start(&self.cron_jobs, client, tasks);
        start(&self.autoscalers, client, tasks);
        start(&self.budgets, client, tasks);
        start(&self.services, client, tasks);
        start(&self.endpoint_slices, client, tasks);
        start(&self.endpoints, client, tasks);
        start(&self.nodes, client, tasks);
        start(&self.namespaces, client, tasks);
        start(&self.cluster_roles, client, tasks);
        start(&self.resource_quotas, client, tasks);
        start(&self.claims, client, tasks);
        start(&self.volumes, client, tasks);
        start(&self.classes, client, tasks);
        start(&self.drivers, client, tasks);
        start(&self.attachments, client, tasks);
        start(&self.resource_claims, client, tasks);
        start(&self.resource_claim_templates, client, tasks);
        start(&self.signing_requests, client, tasks);
        start(&self.pod_certificate_requests, client, tasks);
        start_some(&self.leases, client, tasks, Some(NODE_LEASES), String::new());
        start_some(&self.service_accounts, client, tasks, None, "metadata.name=default".to_owned());
        start_some(&self.root_ca, client, tasks, None, format!("metadata.name={ROOT_CA}"));
    }

    /// Waits until every cache and index holds its first list.
    pub(crate) async fn synced(&self) {
        self.pods.synced().await;
        self.replica_sets.synced().await;
        self.deployments.synced().await;
        self.daemon_sets.synced().await;
        self.stateful_sets.synced().await;
        self.replication_controllers.synced().await;
        self.revisions.synced().await;
        self.jobs.synced().await;
        self.cron_jobs.synced().await;
        self.autoscalers.synced().await;
        self.budgets.synced().await;
        self.services.synced().await;
        self.endpoint_slices.synced().await;
        self.endpoints.synced().await;
        self.nodes.synced().await;
        self.namespaces.synced().await;
        self.leases.synced().await;
        self.service_accounts.synced().await;
        self.root_ca.synced().await;
        self.cluster_roles.synced().await;
        self.resource_quotas.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.drivers.synced().await;
        self.attachments.synced().await;
        self.resource_claims.synced().await;
        self.resource_claim_templates.synced().await;
        self.signing_requests.synced().await;
        self.pod_certificate_requests.synced().await;
    }

    /// The pods that have every pair of `wanted`, which is not empty.
    pub(crate) fn pods_for(&self, namespace: &str, wanted: &Labels) -> Vec<Arc<Pod>> {
        let terms = wanted.iter().map(|(key, value)| pair_term(namespace, key, value));
        // The rarest pair has the fewest pods to look through.
        let rarest = terms.min_by_key(|term| self.pods_by_label.len(term));
        let mut pods = rarest.map(|term| self.pods_by_label.get(&term)).unwrap_or_default();
        pods.retain(|pod| crate::selector::contains(pod.labels(), wanted));
        pods
    }

    /// The pods of a namespace that have every pair of `wanted`; all where that is empty.
    pub(crate) fn pods_with(&self, namespace: &str, wanted: &Labels) -> Vec<Arc<Pod>> {
        if wanted.is_empty() {
            self.pods_by_namespace.get(namespace)
        } else {
            self.pods_for(namespace, wanted)
        }
    }

    /// The pods that `selector` matches; an empty one matches all of the namespace, an absent one none.
    pub(crate) fn pods_selected(&self, namespace: &str, selector: Option<&LabelSelector>) -> Vec<Arc<Pod>> {
        let Some(selector) = selector else { return Vec::new() };
        let mut pods = self.pods_with(namespace, selector.match_labels.as_ref().unwrap_or(&Labels::new()));
        pods.retain(|pod| crate::selector::matches(selector, pod.labels()));
        pods
    }

    /// The services whose selector matches `labels`.
    pub(crate) fn services_for(&self, namespace: &str, labels: &Labels) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        for (key, value) in labels {
            for service in self.services_by_selector.get(&pair_term(namespace, key, value)) {
                let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                if selector.is_some_and(|selector| crate::selector::contains(labels, selector)) {
                    keys.push(ObjectKey::of(&*service));
                }
            }
        }
        keys
    }
}

fn start<K: Kind>(informer: &Informer<K>, client: &Arc<dyn Client>, tasks: &mut JoinSet<()>) {
    start_some(informer, client, tasks, None, String::new());
}

fn start_some<K: Kind>(
    informer: &Informer<K>,
    client: &Arc<dyn Client>,
    tasks: &mut JoinSet<()>,
    namespace: Option<&str>,
    field_selector: String,
) {
    let (informer, client, namespace) = (informer.clone(), client.clone(), namespace.map(str::to_owned));
    let options = ListOptions { field_selector, ..ListOptions::default() };
    tasks.spawn(async move { informer.run(client, namespace, options).await });
}

fn namespace_terms<K: Kind>(object: &K) -> Vec<String> {
    vec![object.namespace().to_owned()]
}

/// The index term of objects in `namespace` that nobody controls.
pub(crate) fn orphans_of(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

fn controller_terms<K: Kind>(object: &K) -> Vec<String> {
    vec![match object.controller() {
        Some(owner) => owner.uid.clone(),
        None => orphans_of(object.namespace()),
    }]
}

/// The index term of pods that mount a claim, or use a ResourceClaim.
pub(crate) fn claim_term(claim: &ObjectKey) -> String {
    claim.to_string()
}

fn referenced_term(reference: &ObjectReference) -> String {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    claim_term(&ObjectKey::new(text(&reference.namespace), text(&reference.name)))
}

fn waiting_terms(claim: &PersistentVolumeClaim) -> Vec<String> {
    let waits = !claim.annotations().contains_key("pv.kubernetes.io/bind-completed");
    waits.then(|| class_of_claim(claim).to_owned()).into_iter().collect()
}

/// The claims that a pod mounts, those that are made for it included.
pub(crate) fn claims_of(pod: &Pod) -> Vec<ObjectKey> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let names = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(ephemeral_claim(pod, &volume.name)),
        (None, None) => None,
    });
    names.map(|name| ObjectKey::new(pod.namespace(), name)).collect()
}

/// The name of the claim that is made for an ephemeral volume of the pod.
pub(crate) fn ephemeral_claim(pod: &Pod, volume: &str) -> String {
    format!("{}-{volume}", pod.name())
}

fn claim_terms(pod: &Pod) -> Vec<String> {
    claims_of(pod).iter().map(claim_term).collect()
}

/// The index term of a label pair.
pub(crate) fn pair_term(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

/// One pair is enough to find a service from a pod's labels; it is matched in full afterwards.
fn selector_terms(service: &Service) -> Vec<String> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let pair = selector.and_then(BTreeMap::first_key_value);
    pair.map(|(key, value)| pair_term(service.namespace(), key, value)).into_iter().collect()
}

/// The service that a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.labels().get("kubernetes.io/service-name")?;
    Some(ObjectKey::new(slice.namespace(), name.as_str()))
}

/// Objects of one kind by terms that a function reads out of them. Bounded by the informer it follows.
pub(crate) struct Index<K> {
    terms: Arc<RwLock<HashMap<String, Bucket<K>>>>,
}

type Bucket<K> = HashMap<ObjectKey, Arc<K>>;

impl<K: Kind> Index<K> {
    /// Follows `informer`, which must not run yet.
    fn new(informer: &Informer<K>, terms_of: fn(&K) -> Vec<String>) -> Self {
        let terms: Arc<RwLock<HashMap<String, Bucket<K>>>> = Arc::default();
        let shared = terms.clone();
        informer.on_change(move |change| shift(&mut shared.write(), change, terms_of));
        Self { terms }
    }

    /// The objects with `term`, in no order.
    pub(crate) fn get(&self, term: &str) -> Vec<Arc<K>> {
        self.terms.read().get(term).map(|bucket| bucket.values().cloned().collect()).unwrap_or_default()
    }

    pub(crate) fn len(&self, term: &str) -> usize {
        self.terms.read().get(term).map_or(0, HashMap::len)
    }
}

fn shift<K: Kind>(
    terms: &mut HashMap<String, Bucket<K>>,
    change: &Change<'_, K>,
    terms_of: fn(&K) -> Vec<String>,
) {
    for term in change.old.map(|old| terms_of(old)).unwrap_or_default() {
        if let Some(bucket) = terms.get_mut(&term) {
            bucket.remove(change.key);
            if bucket.is_empty() {
                terms.remove(&term);
            }
        }
    }
    let Some(new) = change.new else { return };
    for term in terms_of(new) {
        terms.entry(term).or_default().insert(change.key.clone(), new.clone());
    }
}
