//! What upstream says of its types and fields, as `kubectl explain` shows it: taken from the crate of its Rust types.

use hawser_api::schema::Type;
use k8s_openapi::{
    api::{
        admissionregistration::v1 as admissionregistration, apps::v1 as apps,
        authentication::v1 as authentication, authorization::v1 as authorization,
        autoscaling::v1 as autoscaling_v1, autoscaling::v2 as autoscaling, batch::v1 as batch,
        certificates::v1 as certificates, certificates::v1beta1 as certificates_v1beta1,
        coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
        flowcontrol::v1 as flowcontrol, networking::v1 as networking, node::v1 as node, policy::v1 as policy,
        rbac::v1 as rbac, resource::v1 as resource, scheduling::v1 as scheduling,
        scheduling::v1alpha2 as scheduling_v1alpha2, storage::v1 as storage,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions,
    apimachinery::pkg::{apis::meta::v1 as meta, runtime::RawExtension},
    kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration,
    schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings},
};
use serde_json::{Map, Value};

use super::schemas;

type Add = fn(&mut SchemaGenerator);

macro_rules! each {
    ($($group:ident: $($kind:ident)+;)+) => { &[$($(add::<$group::$kind>),+),+] };
}

/// Every kind; their types lead to all others that they have. Lists are not described: the crate has one type for all.
const KINDS: &[Add] = each! {
    core: Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
        PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount;
    admissionregistration: MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration
        ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration;
    apiextensions: CustomResourceDefinition;
    apiregistration: APIService;
    apps: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet;
    authentication: SelfSubjectReview TokenRequest TokenReview;
    authorization: LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview;
    autoscaling: HorizontalPodAutoscaler;
    autoscaling_v1: HorizontalPodAutoscaler Scale;
    batch: CronJob Job;
    certificates: CertificateSigningRequest;
    certificates_v1beta1: PodCertificateRequest;
    coordination: Lease;
    discovery: EndpointSlice;
    events: Event;
    flowcontrol: FlowSchema PriorityLevelConfiguration;
    meta: APIGroup APIGroupList APIResourceList APIVersions DeleteOptions ListMeta Status;
    networking: Ingress IngressClass IPAddress NetworkPolicy ServiceCIDR;
    node: RuntimeClass;
    policy: Eviction PodDisruptionBudget;
    rbac: ClusterRole ClusterRoleBinding Role RoleBinding;
    resource: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice;
    scheduling: PriorityClass;
    scheduling_v1alpha2: PodGroup;
    storage: CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass;
};

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// Megabytes: made for the documents at hand, and dropped with them.
pub(super) struct Descriptions(Map<String, Value>);

impl Descriptions {
    pub(super) fn new() -> Self {
        let mut generator = SchemaSettings::openapi3().into_generator();
        KINDS.iter().for_each(|add| add(&mut generator));
        add::<meta::WatchEvent<RawExtension>>(&mut generator);
        Self(generator.take_definitions(false))
    }

    pub(super) fn of(&self, ty: &Type) -> Option<&str> {
        self.0.get(&schemas::name(ty))?.get("description")?.as_str()
    }

    /// `field` as in JSON.
    pub(super) fn of_field(&self, ty: &Type, field: &str) -> Option<&str> {
        self.0.get(&schemas::name(ty))?.get("properties")?.get(field)?.get("description")?.as_str()
    }
}
