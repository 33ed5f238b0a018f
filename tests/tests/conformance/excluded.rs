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
    ("ReplicationControllers have no controller yet", REPLICATION_CONTROLLERS),
    (
        "no node joins the server",
        &["[sig-architecture] Conformance Tests should have at least two untainted nodes"],
    ),
    (
        "not looked at yet",
        &["[sig-apps]", "[sig-network]", "[sig-node]", "[sig-scheduling]", "[sig-storage]"],
    ),
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
    "[sig-cli] Kubectl logs ",
];

const REPLICATION_CONTROLLERS: &[&str] = &["[sig-cli] Kubectl client Update Demo "];
