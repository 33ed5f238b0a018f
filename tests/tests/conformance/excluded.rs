//! Conformance texts without a test here, by reason.

/// A reason, and the starts of the code names of the texts that it concerns.
type Reason = (&'static str, &'static [&'static str]);

/// In the order in which they are looked for; what has a test is not looked for.
pub(crate) const EXCLUDED: &[Reason] = &[
    ("webhooks are not called yet", WEBHOOKS),
    ("custom resources are not served yet", CUSTOM_RESOURCES),
    ("admission policies are not evaluated yet", POLICIES),
    ("other API servers are not asked yet", &["[sig-api-machinery] Aggregator "]),
    ("pods must run", RUNNING_PODS),
    (
        "no node joins the server",
        &["[sig-architecture] Conformance Tests should have at least two untainted nodes"],
    ),
    ("the controller is tested beside its code, over an API in memory", CONTROLLERS),
    ("pods do not make room for others yet", &["[sig-scheduling] SchedulerPreemption "]),
    ("containers must run", CONTAINERS),
    ("containers must have volumes", VOLUMES),
    ("packets must arrive", TRAFFIC),
    ("it measures time", &["[sig-network] Service endpoints latency "]),
];

const WEBHOOKS: &[&str] = &["[sig-api-machinery] AdmissionWebhook "];

const CUSTOM_RESOURCES: &[&str] = &[
    "[sig-api-machinery] AggregatedDiscovery should support aggregated discovery interface for CRDs",
    "[sig-api-machinery] AggregatedDiscovery should support raw aggregated discovery request for CRDs",
    "[sig-api-machinery] CustomResourceConversionWebhook ",
    "[sig-api-machinery] CustomResourceDefinition Watch ",
    "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] custom resource defaulting",
    "[sig-api-machinery] CustomResourceFieldSelectors ",
    "[sig-api-machinery] CustomResourcePublishOpenAPI ",
    "[sig-api-machinery] FieldValidation should create/apply a",
    "[sig-api-machinery] FieldValidation should detect duplicates in a CR",
    "[sig-api-machinery] FieldValidation should detect unknown metadata fields in both the root and embedded object",
];

const POLICIES: &[&str] = &[
    "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment",
    "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should allow expressions",
    "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should validate against a Deployment",
];

const RUNNING_PODS: &[&str] = &[
    "[sig-auth] ServiceAccounts should mount an API token into pods",
    "[sig-auth] ServiceAccounts should mount projected service account token",
    "[sig-cli] Kubectl client Guestbook application ",
    "[sig-cli] Kubectl client Update Demo ",
    "[sig-cli] Kubectl logs ",
];

const CONTROLLERS: &[&str] = &[
    "[sig-apps] CronJob should not schedule ",
    "[sig-apps] CronJob should replace jobs ",
    "[sig-apps] CronJob should schedule multiple jobs ",
    "[sig-apps] Daemon set [Serial] should retry ",
    "[sig-apps] Daemon set [Serial] should rollback ",
    "[sig-apps] Daemon set [Serial] should run and stop ",
    "[sig-apps] Daemon set [Serial] should update pod ",
    "[sig-apps] Job should adopt matching orphans ",
    "[sig-apps] Job should allow to use ",
    "[sig-apps] Job should create pods ",
    "[sig-apps] Job should delete a job",
    "[sig-apps] Job should execute all indexes ",
    "[sig-apps] Job should mark indexes ",
    "[sig-apps] Job should run a job to completion ",
    "[sig-apps] Job should terminate job execution ",
    "[sig-apps] Job with successPolicy ",
    "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Burst scaling ",
    "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Scaling should happen ",
    "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Should recreate ",
    "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should perform ",
];

/// Of pods: `ephemeralcontainers`, `proxy`, `resize`; and `proxy` of services.
const CONTAINERS: &[&str] = &[
    "[sig-node] Ephemeral Containers ",
    "[sig-node] Pod InPlace Resize Container ",
    "[sig-apps] ReplicaSet should serve a basic image ",
    "[sig-apps] ReplicationController should serve ",
    "[sig-node] ConfigMap should be consumable ",
    "[sig-node] Container Lifecycle Hook ",
    "[sig-node] Container Runtime ",
    "[sig-node] Containers ",
    "[sig-node] Downward API ",
    "[sig-node] ImageVolume ",
    "[sig-node] InitContainer ",
    "[sig-node] Kubelet ",
    "[sig-node] KubeletManagedEtcHosts ",
    "[sig-node] Pods should contain environment variables for services",
    "[sig-node] Pods should get a host IP",
    "[sig-node] Pods should support remote command execution over websockets",
    "[sig-node] Pods should support retrieving logs from the container over websockets",
    "[sig-node] PreStop ",
    "[sig-node] Probing container ",
    "[sig-node] Secrets should be consumable ",
    "[sig-node] Security Context ",
    "[sig-node] Sysctls [LinuxOnly] [NodeConformance] should support sysctls",
    "[sig-node] Variable Expansion ",
];

const VOLUMES: &[&str] = &[
    "[sig-storage] ConfigMap binary data ",
    "[sig-storage] ConfigMap optional updates ",
    "[sig-storage] ConfigMap should be consumable ",
    "[sig-storage] ConfigMap updates ",
    "[sig-storage] Downward API volume ",
    "[sig-storage] EmptyDir ",
    "[sig-storage] Projected ",
    "[sig-storage] Secrets optional updates ",
    "[sig-storage] Secrets should be able to mount ",
    "[sig-storage] Secrets should be consumable ",
    "[sig-storage] Subpath ",
];

const TRAFFIC: &[&str] = &[
    "[sig-network] Proxy version v1 ",
    "[sig-network] DNS ",
    "[sig-network] EndpointSlice should support a Service ",
    "[sig-network] Networking Granular Checks: ",
    "[sig-network] Services should be able to create a functioning NodePort service",
    "[sig-network] Services should have session affinity work ",
];
