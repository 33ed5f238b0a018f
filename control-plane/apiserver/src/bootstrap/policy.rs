//! The default roles and bindings, as tables: what upstream's bootstrap policy has at v1.36 with its default features, and
//! for PodCertificateRequests.
//!
//! A line without indentation begins a role: its name, then words for what is particular to it (`+label`, `<label` for a
//! role that gathers the rules of those with the label). Indented lines are its rules, with colons between the fields:
//! `verbs : groups : resources [: names]`, or `verbs : paths`. The core group is `core`; `read`, `write`, `all` and
//! `change` stand for the verbs of [`VERBS`], and `events` for the rule that lets a component record events.

use crate::auth::rbac::PolicyRule;

/// Words that stand for several verbs.
const VERBS: [(&str, &str); 4] = [
    ("read", "get list watch"),
    ("write", "create update patch delete deletecollection"),
    ("all", "get list watch create update patch delete deletecollection"),
    ("change", "get list watch update patch"),
];

const EVENTS: &str = "create update patch : core events.k8s.io : events";

/// A role of the tables.
#[derive(Debug, Default)]
pub(super) struct Role {
    pub(super) name: &'static str,
    /// Label of the roles that gather this one's rules: `admin` for `aggregate-to-admin`.
    pub(super) label: Option<&'static str>,
    /// Label of the roles whose rules this one gathers.
    pub(super) gathers: Option<&'static str>,
    pub(super) rules: Vec<PolicyRule>,
}

/// The roles of a table, in its order.
pub(super) fn roles(table: &'static str) -> Vec<Role> {
    let mut roles: Vec<Role> = Vec::new();
    for line in table.lines().filter(|line| !line.trim().is_empty()) {
        if !line.starts_with(' ') {
            let mut words = line.split_whitespace();
            let mut role = Role { name: words.next().unwrap_or_default(), ..Role::default() };
            for word in words {
                role.label = word.strip_prefix('+').or(role.label);
                role.gathers = word.strip_prefix('<').or(role.gathers);
            }
            roles.push(role);
        } else if let Some(role) = roles.last_mut() {
            role.rules.push(rule(line.trim()));
        }
    }
    roles
}

fn rule(line: &str) -> PolicyRule {
    let line = if line == "events" { EVENTS } else { line };
    // Names have colons too, but none stands alone.
    let fields: Vec<Vec<&str>> = line.split(" : ").map(|field| field.split_whitespace().collect()).collect();
    // As upstream, every list is in order.
    let list = |field: usize| {
        let mut words: Vec<String> =
            fields.get(field).into_iter().flatten().map(ToString::to_string).collect();
        words.sort_unstable();
        words
    };
    let mut verbs: Vec<String> = Vec::new();
    for word in &fields[0] {
        let known = VERBS.iter().find(|(short, _)| short == word).map_or(*word, |(_, verbs)| verbs);
        verbs.extend(known.split_whitespace().map(str::to_owned));
    }
    verbs.sort_unstable();
    if fields.len() == 2 {
        return PolicyRule { non_resource_urls: list(1), verbs, ..PolicyRule::default() };
    }
    let mut api_groups: Vec<String> =
        list(1).into_iter().map(|group| if group == "core" { String::new() } else { group }).collect();
    api_groups.sort_unstable();
    PolicyRule { api_groups, resources: list(2), resource_names: list(3), verbs, ..PolicyRule::default() }
}

/// For users, for programs beside the cluster, and for the components; those of controllers are in a table of their own.
pub(super) const CLUSTER_ROLES: &str = "
cluster-admin
    * : * : *
    * : *
admin <admin
edit +admin <edit
view +edit <view
system:aggregate-to-admin +admin
    create : authorization.k8s.io : localsubjectaccessreviews
    all : rbac.authorization.k8s.io : roles rolebindings
system:aggregate-to-edit +edit
    read : core : pods/attach pods/proxy pods/exec pods/portforward secrets services/proxy
    impersonate : core : serviceaccounts
    write : core : pods pods/attach pods/proxy pods/exec pods/portforward
    create : core : pods/eviction
    write : core : replicationcontrollers replicationcontrollers/scale serviceaccounts services services/proxy persistentvolumeclaims configmaps secrets
    create : core : serviceaccounts/token
    write : core events.k8s.io : events
    write : apps : statefulsets statefulsets/scale daemonsets deployments deployments/scale deployments/rollback replicasets replicasets/scale
    write : autoscaling : horizontalpodautoscalers
    write : batch : jobs cronjobs
    write : extensions : daemonsets deployments deployments/scale deployments/rollback ingresses replicasets replicasets/scale replicationcontrollers/scale networkpolicies
    write : policy : poddisruptionbudgets
    write : networking.k8s.io : networkpolicies ingresses
    all : coordination.k8s.io : leases
    write : resource.k8s.io : resourceclaims resourceclaimtemplates
system:aggregate-to-view +view
    read : core : pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status endpoints persistentvolumeclaims persistentvolumeclaims/status configmaps
    read : core : limitranges resourcequotas bindings pods/status resourcequotas/status namespaces/status replicationcontrollers/status pods/log
    read : core : namespaces
    read : core events.k8s.io : events
    read : discovery.k8s.io : endpointslices
    read : apps : controllerrevisions statefulsets statefulsets/status statefulsets/scale daemonsets daemonsets/status deployments deployments/status deployments/scale replicasets replicasets/status replicasets/scale
    read : autoscaling : horizontalpodautoscalers horizontalpodautoscalers/status
    read : batch : jobs cronjobs cronjobs/status jobs/status
    read : extensions : daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses ingresses/status replicasets replicasets/scale replicasets/status replicationcontrollers/scale networkpolicies
    read : policy : poddisruptionbudgets poddisruptionbudgets/status
    read : networking.k8s.io : networkpolicies ingresses ingresses/status
    read : resource.k8s.io : resourceclaims resourceclaims/status resourceclaimtemplates
system:aggregated-metrics-reader +view
    read : metrics.k8s.io : nodes pods
system:discovery
    get : /livez /readyz /healthz /version /version/ /openapi /openapi/* /api /api/* /apis /apis/*
system:monitoring
    get : /metrics /metrics/slis /livez /readyz /healthz /livez/* /readyz/* /healthz/* /flagz /statusz
    get : core : nodes/metrics
system:basic-user
    create : authorization.k8s.io : selfsubjectaccessreviews selfsubjectrulesreviews
    create : authentication.k8s.io : selfsubjectreviews
system:public-info-viewer
    get : /livez /readyz /healthz /version /version/
system:service-account-issuer-discovery
    get : /.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/
system:heapster
    read : core : events pods nodes namespaces
    read : extensions : deployments
system:node
    create : authentication.k8s.io : tokenreviews
    create : authorization.k8s.io : subjectaccessreviews localsubjectaccessreviews
    read : core : services
    create get list watch : core : nodes
    update patch : core : nodes/status
    update patch : core : nodes
    events
    read : core : pods
    create delete : core : pods
    update patch : core : pods/status
    create : core : pods/eviction
    read : core : secrets configmaps
    get : core : persistentvolumeclaims persistentvolumes
    get : core : endpoints
    create get list watch : certificates.k8s.io : certificatesigningrequests
    create get list watch : certificates.k8s.io : podcertificaterequests
    get create update patch delete : coordination.k8s.io : leases
    get : storage.k8s.io : volumeattachments
    create : core : serviceaccounts/token
    get update patch : core : persistentvolumeclaims/status
    read : storage.k8s.io : csidrivers
    get create update patch delete : storage.k8s.io : csinodes
    read : node.k8s.io : runtimeclasses
    get : resource.k8s.io : resourceclaims
    deletecollection : resource.k8s.io : resourceslices
    get : core : serviceaccounts
system:node-problem-detector
    get : core : nodes
    patch : core : nodes/status
    events
system:node-bootstrapper
    create get list watch : certificates.k8s.io : certificatesigningrequests
system:node-proxier
    list watch : core : services endpoints
    read : core : nodes
    events
    list watch : networking.k8s.io : servicecidrs
    list watch : discovery.k8s.io : endpointslices
system:kubelet-api-admin
    read : core : nodes
    proxy : core : nodes
    * : core : nodes/proxy nodes/metrics nodes/stats nodes/log
    * : core : nodes/pods nodes/healthz nodes/configz
system:auth-delegator
    create : authentication.k8s.io : tokenreviews
    create : authorization.k8s.io : subjectaccessreviews
system:kube-aggregator
    read : core : services endpoints
system:kube-controller-manager
    events
    create : coordination.k8s.io : leases
    get update : coordination.k8s.io : leases : kube-controller-manager
    create : core : secrets serviceaccounts
    delete : core : secrets
    get : core : namespaces secrets serviceaccounts configmaps
    update : core : secrets serviceaccounts
    create : authentication.k8s.io : tokenreviews
    create : authorization.k8s.io : subjectaccessreviews
    list watch : * : *
    create : core : serviceaccounts/token
system:kube-dns
    list watch : core : endpoints services
system:persistent-volume-provisioner
    get list watch create delete : core : persistentvolumes
    get list watch update : core : persistentvolumeclaims
    read : storage.k8s.io : storageclasses
    watch : core : events
    events
system:certificates.k8s.io:certificatesigningrequests:nodeclient
    create : certificates.k8s.io : certificatesigningrequests/nodeclient
system:certificates.k8s.io:certificatesigningrequests:selfnodeclient
    create : certificates.k8s.io : certificatesigningrequests/selfnodeclient
system:certificates.k8s.io:legacy-unknown-approver
    approve : certificates.k8s.io : signers : kubernetes.io/legacy-unknown
system:certificates.k8s.io:kubelet-serving-approver
    approve : certificates.k8s.io : signers : kubernetes.io/kubelet-serving
system:certificates.k8s.io:kube-apiserver-client-approver
    approve : certificates.k8s.io : signers : kubernetes.io/kube-apiserver-client
system:certificates.k8s.io:kube-apiserver-client-kubelet-approver
    approve : certificates.k8s.io : signers : kubernetes.io/kube-apiserver-client-kubelet
system:volume-scheduler
    change : core : persistentvolumes
    read : storage.k8s.io : storageclasses
    change : core : persistentvolumeclaims
system:kube-scheduler
    events
    create : coordination.k8s.io : leases
    get update list watch : coordination.k8s.io : leases : kube-scheduler
    all : coordination.k8s.io : leasecandidates
    read : core : nodes
    get list watch delete : core : pods
    create : core : pods/binding bindings
    patch update : core : pods/status
    read : core : services replicationcontrollers
    read : apps extensions : replicasets
    read : apps : statefulsets
    read : policy : poddisruptionbudgets
    read : core : persistentvolumeclaims persistentvolumes
    create : authentication.k8s.io : tokenreviews
    create : authorization.k8s.io : subjectaccessreviews
    read : storage.k8s.io : csinodes
    read : storage.k8s.io : volumeattachments
    read : core : namespaces
    read : storage.k8s.io : csidrivers
    read : storage.k8s.io : csistoragecapacities
    read : resource.k8s.io : deviceclasses
    change : resource.k8s.io : resourceclaims
    change : resource.k8s.io : resourceclaims/status
    update : core : pods/finalizers
    read : resource.k8s.io : resourceslices
    create delete : resource.k8s.io : resourceclaims
    update patch : resource.k8s.io : resourceclaims/binding
";

/// ClusterRoleBindings, each with the name of its role; subjects are `user:`, `group:` or `account:` (of kube-system).
pub(super) const CLUSTER_BINDINGS: &[(&str, &[&str])] = &[
    ("cluster-admin", &["group:system:masters"]),
    ("system:monitoring", &["group:system:monitoring"]),
    ("system:discovery", &["group:system:authenticated"]),
    ("system:basic-user", &["group:system:authenticated"]),
    ("system:public-info-viewer", &["group:system:authenticated", "group:system:unauthenticated"]),
    ("system:node-proxier", &["user:system:kube-proxy"]),
    ("system:kube-controller-manager", &["user:system:kube-controller-manager"]),
    ("system:kube-dns", &["account:kube-dns"]),
    ("system:kube-scheduler", &["user:system:kube-scheduler"]),
    ("system:volume-scheduler", &["user:system:kube-scheduler"]),
    ("system:service-account-issuer-discovery", &["group:system:serviceaccounts"]),
    // Nodes are the Node authorizer's; the binding is there for those who run without it.
    ("system:node", &[]),
];

/// Roles of kube-system.
pub(super) const SYSTEM_ROLES: &str = "
extension-apiserver-authentication-reader
    read : core : configmaps : extension-apiserver-authentication
system:controller:bootstrap-signer
    read : core : secrets
system:controller:cloud-provider
    create get list watch : core : configmaps
system:controller:token-cleaner
    get list watch delete : core : secrets
    events
system::leader-locking-kube-controller-manager
    watch : core : configmaps
    get update : core : configmaps : kube-controller-manager
system::leader-locking-kube-scheduler
    watch : core : configmaps
    get update : core : configmaps : kube-scheduler
";

/// RoleBindings of kube-system: name, role, subjects.
pub(super) const SYSTEM_BINDINGS: &[(&str, &str, &[&str])] = &[
    (
        "system::extension-apiserver-authentication-reader",
        "extension-apiserver-authentication-reader",
        &["user:system:kube-controller-manager", "user:system:kube-scheduler"],
    ),
    (
        "system::leader-locking-kube-controller-manager",
        "system::leader-locking-kube-controller-manager",
        &["user:system:kube-controller-manager", "account:kube-controller-manager"],
    ),
    (
        "system::leader-locking-kube-scheduler",
        "system::leader-locking-kube-scheduler",
        &["user:system:kube-scheduler", "account:kube-scheduler"],
    ),
    (
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &["account:bootstrap-signer"],
    ),
    ("system:controller:cloud-provider", "system:controller:cloud-provider", &["account:cloud-provider"]),
    ("system:controller:token-cleaner", "system:controller:token-cleaner", &["account:token-cleaner"]),
];

/// Roles of kube-public.
pub(super) const PUBLIC_ROLES: &str = "
system:controller:bootstrap-signer
    read : core : configmaps
    update : core : configmaps : cluster-info
    events
";

/// RoleBindings of kube-public.
pub(super) const PUBLIC_BINDINGS: &[(&str, &str, &[&str])] = &[(
    "system:controller:bootstrap-signer",
    "system:controller:bootstrap-signer",
    &["account:bootstrap-signer"],
)];
