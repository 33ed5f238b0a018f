//! What kinds do beyond being stored: defaults, preparation, validation, printing.
//!
//! The registry is generic over [`Kind`] and calls the functions of this module in this order: create is
//! [`default`], [`prepare_create`], admission, [`validate_create`]; update is [`default`], [`prepare_update`] (or
//! [`prepare_status`]), admission, [`validate_update`] (or [`validate_status`]). They do what all kinds share
//! (object metadata, generation, status apart from spec) and then ask the kind's [`Hooks`]. Objects are JSON
//! in canonical form, already checked against the schema: a field that is there has the right JSON type.
//! Everything here is pure; names that must exist and numbers that must be free are admission's matter.

mod addresses;
mod aggregation;
mod apps;
mod autoscaling;
mod autoscaling_rules;
mod autoscaling_v1;
mod batch;
pub mod certificates;
mod config;
mod cron_job;
mod custom_resource;
mod device;
mod endpoints;
mod event;
mod flow_control;
mod generic;
pub mod human;
mod job_policies;
mod lease;
mod meta;
mod names;
mod namespace;
mod networking;
mod node;
mod pod;
pub(crate) mod pod_certificate;
mod pod_group;
mod policy;
mod quantity;
mod ratchet;
mod rbac;
mod registration;
mod replication_controller;
mod resource_names;
mod rules;
mod selector;
mod service;
mod storage;
mod usage;
mod value;
mod volume_attributes;
mod warnings;

pub use certificates::validate_approval;
pub(crate) use event::newer as validate_newer_event;
pub(crate) use generic::validate_change;
pub use generic::{
    REACH_OF_APPROVAL, REACH_OF_FINALIZE, default, deletion_grace_seconds, is_held_back, needs_version,
    on_deletion, orphans_by_default, prepare_approval, prepare_create, prepare_finalize, prepare_status,
    prepare_update, reach_of_status, scale_of, scaled, validate_create, validate_status, validate_update,
};
pub use names::NameRule;
pub(crate) use pod::{
    REACH_OF_RESIZE, prepare_ephemeral, prepare_resize, validate_ephemeral, validate_resize,
};
pub(crate) use usage::USAGE;
pub(crate) use warnings::of as warnings;

use hawser_api::FieldError;
use jiff::Timestamp;
use serde_json::Value;

/// What one kind does. The plain one, for kinds that are data only, does nothing.
pub struct Hooks {
    /// Fills in what upstream fills in; changes nothing the second time.
    pub default: fn(&mut Value),
    /// After the status was dropped (see `status_at_create`).
    pub prepare_create: fn(&mut Value),
    /// After the old status was put back.
    pub prepare_update: fn(&mut Value, &Value),
    /// Rules for a new object only; those of `validate_create` hold for it too.
    pub validate_new: fn(&Value) -> Vec<FieldError>,
    pub validate_create: fn(&Value) -> Vec<FieldError>,
    /// Rules about the change only; the rules of `validate_create` hold for the new object too.
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// Rules about a change of the status.
    pub validate_status: fn(&Value, &Value) -> Vec<FieldError>,
    /// All columns, `Name` and `Age` included, as `kubectl get` shows them.
    pub columns: &'static [Column],
    /// One cell for each column.
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
    /// Field selectors beside `metadata.name` and `metadata.namespace`.
    pub selectable: &'static [Selectable],
    /// Seconds between the request to delete and the end; `None` where objects go at once.
    pub deletion_grace: Option<fn(&Value, Option<i64>) -> i64>,
    /// Marks an object whose deletion has begun and is not done.
    pub on_deletion: fn(&mut Value),
    /// Whether something other than `metadata.finalizers` keeps a deleted object.
    pub is_held_back: fn(&Value) -> bool,
    pub scale: Option<ScalePaths>,
    /// For kinds whose objects are stored as another kind, or are served in a version beside the stored one.
    pub view: Option<View>,
    pub name: NameRule,
    /// Whether a client may say the status when it creates the object (nodes do).
    pub status_at_create: bool,
    /// PUT of a name that does not exist creates it.
    pub create_on_update: bool,
    /// Said with the answer to every write of such an object: that what it asks for is not done.
    pub warning: Option<&'static str>,
    /// Said with every answer about such objects: that the kind is old, and what to use instead.
    pub deprecation: Option<&'static str>,
}

/// Translation between a kind and the one that its objects are stored as: `(to storage, from storage)`.
pub type View = (fn(&mut Value), fn(&mut Value));

/// A column of `kubectl get`.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`: OpenAPI's names.
    pub kind: &'static str,
    pub format: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
}

/// A field that selectors can name, and how to read it.
pub type Selectable = (&'static str, fn(&Value) -> String);

/// Where a kind keeps what its `scale` subresource shows.
#[derive(Clone, Copy, Debug)]
pub struct ScalePaths {
    pub spec_replicas: &'static str,
    pub status_replicas: &'static str,
    /// The selector as text.
    pub selector: fn(&Value) -> String,
}

const fn column(name: &'static str, kind: &'static str) -> Column {
    Column { name, kind, format: "", priority: 0 }
}

const fn text(name: &'static str) -> Column {
    column(name, "string")
}

const fn wide(name: &'static str) -> Column {
    Column { priority: 1, ..column(name, "string") }
}

const NAME: Column = Column { name: "Name", kind: "string", format: "name", priority: 0 };
const AGE: Column = text("Age");

/// The hooks of a kind without behaviour.
pub static PLAIN: Hooks = Hooks {
    default: |_| (),
    prepare_create: |_| (),
    prepare_update: |_, _| (),
    validate_new: |_| Vec::new(),
    validate_create: |_| Vec::new(),
    validate_update: |_, _| Vec::new(),
    validate_status: |_, _| Vec::new(),
    columns: &[NAME, Column { name: "Created At", kind: "date", format: "", priority: 0 }],
    cells: |object, _| {
        let meta = &object["metadata"];
        vec![meta["name"].clone(), meta["creationTimestamp"].clone()]
    },
    selectable: &[],
    deletion_grace: None,
    on_deletion: |_| (),
    is_held_back: |_| false,
    scale: None,
    view: None,
    name: NameRule::Subdomain,
    status_at_create: false,
    create_on_update: false,
    warning: None,
    deprecation: None,
};

/// The hooks of a kind; [`PLAIN`] for those that are data only.
pub fn hooks(group: &str, plural: &str) -> &'static Hooks {
    match (group, plural) {
        ("", "componentstatuses") => &replication_controller::COMPONENT_STATUS,
        ("", "configmaps") => &config::CONFIG_MAP,
        ("", "endpoints") => &endpoints::ENDPOINTS,
        ("", "events") => &event::CORE,
        ("", "limitranges") => &policy::LIMIT_RANGE,
        ("", "namespaces") => &namespace::NAMESPACE,
        ("", "nodes") => &node::NODE,
        ("", "persistentvolumeclaims") => &storage::CLAIM,
        ("", "persistentvolumes") => &storage::VOLUME,
        ("", "pods") => &pod::POD,
        ("", "podtemplates") => &pod::POD_TEMPLATE,
        ("", "replicationcontrollers") => &replication_controller::REPLICATION_CONTROLLER,
        ("", "resourcequotas") => &policy::RESOURCE_QUOTA,
        ("", "secrets") => &config::SECRET,
        ("", "serviceaccounts") => &config::SERVICE_ACCOUNT,
        ("", "services") => &service::SERVICE,
        ("admissionregistration.k8s.io", plural) => match plural {
            "mutatingadmissionpolicies" => &registration::MUTATING_POLICY,
            "mutatingadmissionpolicybindings" => &registration::MUTATING_BINDING,
            "mutatingwebhookconfigurations" => &registration::MUTATING_WEBHOOK,
            "validatingadmissionpolicies" => &registration::VALIDATING_POLICY,
            "validatingadmissionpolicybindings" => &registration::VALIDATING_BINDING,
            "validatingwebhookconfigurations" => &registration::VALIDATING_WEBHOOK,
            _ => &PLAIN,
        },
        ("apiextensions.k8s.io", "customresourcedefinitions") => &custom_resource::DEFINITION,
        ("apiregistration.k8s.io", "apiservices") => &aggregation::API_SERVICE,
        ("apps", "controllerrevisions") => &apps::CONTROLLER_REVISION,
        ("apps", "daemonsets") => &apps::DAEMON_SET,
        ("apps", "deployments") => &apps::DEPLOYMENT,
        ("apps", "replicasets") => &apps::REPLICA_SET,
        ("apps", "statefulsets") => &apps::STATEFUL_SET,
        ("autoscaling", "horizontalpodautoscalers") => &autoscaling::AUTOSCALER,
        ("batch", "cronjobs") => &cron_job::CRON_JOB,
        ("batch", "jobs") => &batch::JOB,
        ("certificates.k8s.io", "certificatesigningrequests") => &certificates::SIGNING_REQUEST,
        ("certificates.k8s.io", "podcertificaterequests") => &pod_certificate::POD_CERTIFICATE_REQUEST,
        ("coordination.k8s.io", "leases") => &lease::LEASE,
        ("discovery.k8s.io", "endpointslices") => &endpoints::ENDPOINT_SLICE,
        ("events.k8s.io", "events") => &event::EVENTS,
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => &flow_control::FLOW_SCHEMA,
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => &flow_control::PRIORITY_LEVEL,
        (USAGE, "nodes") => &usage::NODE_METRICS,
        (USAGE, "pods") => &usage::POD_METRICS,
        ("networking.k8s.io", "ingressclasses") => &networking::INGRESS_CLASS,
        ("networking.k8s.io", "ingresses") => &networking::INGRESS,
        ("networking.k8s.io", "ipaddresses") => &addresses::IP_ADDRESS,
        ("networking.k8s.io", "networkpolicies") => &networking::NETWORK_POLICY,
        ("networking.k8s.io", "servicecidrs") => &addresses::SERVICE_CIDR,
        ("node.k8s.io", "runtimeclasses") => &policy::RUNTIME_CLASS,
        ("policy", "poddisruptionbudgets") => &policy::DISRUPTION_BUDGET,
        ("rbac.authorization.k8s.io", "clusterrolebindings" | "rolebindings") => &rbac::BINDING,
        ("rbac.authorization.k8s.io", "clusterroles") => &rbac::CLUSTER_ROLE,
        ("rbac.authorization.k8s.io", "roles") => &rbac::ROLE,
        ("resource.k8s.io", "deviceclasses") => &device::DEVICE_CLASS,
        ("resource.k8s.io", "resourceclaims") => &device::RESOURCE_CLAIM,
        ("resource.k8s.io", "resourceclaimtemplates") => &device::RESOURCE_CLAIM_TEMPLATE,
        ("resource.k8s.io", "resourceslices") => &device::RESOURCE_SLICE,
        ("scheduling.k8s.io", "podgroups") => &pod_group::POD_GROUP,
        ("scheduling.k8s.io", "priorityclasses") => &policy::PRIORITY_CLASS,
        ("storage.k8s.io", "csidrivers") => &storage::CSI_DRIVER,
        ("storage.k8s.io", "csinodes") => &storage::CSI_NODE,
        ("storage.k8s.io", "csistoragecapacities") => &storage::CSI_CAPACITY,
        ("storage.k8s.io", "storageclasses") => &storage::STORAGE_CLASS,
        ("storage.k8s.io", "volumeattachments") => &storage::ATTACHMENT,
        ("storage.k8s.io", "volumeattributesclasses") => &volume_attributes::VOLUME_ATTRIBUTES_CLASS,
        _ => &PLAIN,
    }
}

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;
