//! Conformance texts without a test here, by reason.

/// A reason, and the starts of the code names of the texts that it concerns.
type Reason = (&'static str, &'static [&'static str]);

/// In the order in which they are looked for; what has a test is not looked for.
pub(crate) const EXCLUDED: &[Reason] = &[
    ("webhooks are not called yet", WEBHOOKS),
    ("custom resources are not served yet", CUSTOM_RESOURCES),
    ("admission policies are not evaluated yet", POLICIES),
    ("other API servers are not asked yet", &["[sig-api-machinery] Aggregator "]),
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
