//! The rows. Groups stand in upstream's order of discovery, kinds in the order of their plurals.

use super::{Kind, Storage, Subresource, Version};

const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const STREAM: &[&str] = &["create", "get"];
/// Each HTTP method is another verb.
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];

const V1: &[Version] = &[Version { name: "v1", storage: true, served: true }];
const V1ALPHA2: &[Version] = &[Version { name: "v1alpha2", storage: true, served: true }];
const V1BETA1: &[Version] = &[Version { name: "v1beta1", storage: true, served: true }];
const V2_V1: &[Version] = &[
    Version { name: "v2", storage: true, served: true },
    Version { name: "v1", storage: false, served: true },
];

const READ: &[&str] = &["get", "list"];

const ALL: &[&str] = &["all"];
const API_EXTENSIONS: &[&str] = &["api-extensions"];

/// A subresource in the parent's group and version.
const fn part(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, kind, group_version: None, verbs }
}

/// A subresource whose kind is of another group.
const fn foreign(
    name: &'static str,
    kind: &'static str,
    group_version: (&'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, kind, group_version: Some(group_version), verbs }
}

const fn status(kind: &'static str) -> Subresource {
    part("status", kind, GET_PATCH_UPDATE)
}

const SCALE: Subresource = foreign("scale", "Scale", ("autoscaling", "v1"), GET_PATCH_UPDATE);

/// A stored kind of one version, cluster-wide, with all verbs and no subresources.
const fn cluster(
    group: &'static str,
    kind: &'static str,
    list_kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Kind {
    Kind {
        group,
        versions: V1,
        kind,
        list_kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: false,
        verbs: ALL_VERBS,
        subresources: &[],
        storage: Some(Storage { group, version: "v1", kind, plural }),
        has_generation: false,
    }
}

const fn namespaced(
    group: &'static str,
    kind: &'static str,
    list_kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Kind {
    Kind { namespaced: true, ..cluster(group, kind, list_kind, plural, singular) }
}

/// A kind that is answered, never stored.
const fn review(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Kind {
    Kind { verbs: CREATE, storage: None, ..cluster(group, kind, "", plural, singular) }
}

/// A kind of `admissionregistration.k8s.io`.
const fn admission(
    kind: &'static str,
    list_kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Kind {
    Kind {
        categories: API_EXTENSIONS,
        has_generation: true,
        ..cluster("admissionregistration.k8s.io", kind, list_kind, plural, singular)
    }
}

const APPS: &str = "apps";
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const FLOW_CONTROL: &str = "flowcontrol.apiserver.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const USAGE: &str = "metrics.k8s.io";

/// Every kind served.
pub static KINDS: &[Kind] = &[
    Kind { namespaced: true, ..review("", "Binding", "bindings", "binding") },
    // Deprecated upstream, and about components that are one process here: never stored, always an empty list.
    Kind {
        short_names: &["cs"],
        verbs: &["get", "list"],
        storage: None,
        ..cluster("", "ComponentStatus", "ComponentStatusList", "componentstatuses", "componentstatus")
    },
    Kind { short_names: &["cm"], ..namespaced("", "ConfigMap", "ConfigMapList", "configmaps", "configmap") },
    Kind { short_names: &["ep"], ..namespaced("", "Endpoints", "EndpointsList", "endpoints", "endpoints") },
    Kind { short_names: &["ev"], ..namespaced("", "Event", "EventList", "events", "event") },
    Kind {
        short_names: &["limits"],
        ..namespaced("", "LimitRange", "LimitRangeList", "limitranges", "limitrange")
    },
    Kind {
        short_names: &["ns"],
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &[part("finalize", "Namespace", &["update"]), status("Namespace")],
        ..cluster("", "Namespace", "NamespaceList", "namespaces", "namespace")
    },
    Kind {
        short_names: &["no"],
        subresources: &[part("proxy", "NodeProxyOptions", PROXY), status("Node")],
        ..cluster("", "Node", "NodeList", "nodes", "node")
    },
    Kind {
        short_names: &["pvc"],
        subresources: &[status("PersistentVolumeClaim")],
        ..namespaced(
            "",
            "PersistentVolumeClaim",
            "PersistentVolumeClaimList",
            "persistentvolumeclaims",
            "persistentvolumeclaim",
        )
    },
    Kind {
        short_names: &["pv"],
        subresources: &[status("PersistentVolume")],
        ..cluster("", "PersistentVolume", "PersistentVolumeList", "persistentvolumes", "persistentvolume")
    },
    Kind {
        short_names: &["po"],
        categories: ALL,
        subresources: &[
            part("attach", "PodAttachOptions", STREAM),
            part("binding", "Binding", CREATE),
            part("ephemeralcontainers", "Pod", GET_PATCH_UPDATE),
            foreign("eviction", "Eviction", ("policy", "v1"), CREATE),
            part("exec", "PodExecOptions", STREAM),
            part("log", "Pod", GET),
            part("portforward", "PodPortForwardOptions", STREAM),
            part("proxy", "PodProxyOptions", PROXY),
            part("resize", "Pod", GET_PATCH_UPDATE),
            status("Pod"),
        ],
        has_generation: true,
        ..namespaced("", "Pod", "PodList", "pods", "pod")
    },
    namespaced("", "PodTemplate", "PodTemplateList", "podtemplates", "podtemplate"),
    Kind {
        short_names: &["rc"],
        categories: ALL,
        subresources: &[SCALE, status("ReplicationController")],
        has_generation: true,
        ..namespaced(
            "",
            "ReplicationController",
            "ReplicationControllerList",
            "replicationcontrollers",
            "replicationcontroller",
        )
    },
    Kind {
        short_names: &["quota"],
        subresources: &[status("ResourceQuota")],
        ..namespaced("", "ResourceQuota", "ResourceQuotaList", "resourcequotas", "resourcequota")
    },
    namespaced("", "Secret", "SecretList", "secrets", "secret"),
    Kind {
        short_names: &["sa"],
        subresources: &[foreign("token", "TokenRequest", (AUTHENTICATION, "v1"), CREATE)],
        ..namespaced("", "ServiceAccount", "ServiceAccountList", "serviceaccounts", "serviceaccount")
    },
    Kind {
        short_names: &["svc"],
        categories: ALL,
        subresources: &[part("proxy", "ServiceProxyOptions", PROXY), status("Service")],
        ..namespaced("", "Service", "ServiceList", "services", "service")
    },
    Kind {
        categories: API_EXTENSIONS,
        subresources: &[status("APIService")],
        ..cluster("apiregistration.k8s.io", "APIService", "APIServiceList", "apiservices", "apiservice")
    },
    namespaced(
        APPS,
        "ControllerRevision",
        "ControllerRevisionList",
        "controllerrevisions",
        "controllerrevision",
    ),
    Kind {
        short_names: &["ds"],
        categories: ALL,
        subresources: &[status("DaemonSet")],
        has_generation: true,
        ..namespaced(APPS, "DaemonSet", "DaemonSetList", "daemonsets", "daemonset")
    },
    Kind {
        short_names: &["deploy"],
        categories: ALL,
        subresources: &[SCALE, status("Deployment")],
        has_generation: true,
        ..namespaced(APPS, "Deployment", "DeploymentList", "deployments", "deployment")
    },
    Kind {
        short_names: &["rs"],
        categories: ALL,
        subresources: &[SCALE, status("ReplicaSet")],
        has_generation: true,
        ..namespaced(APPS, "ReplicaSet", "ReplicaSetList", "replicasets", "replicaset")
    },
    Kind {
        short_names: &["sts"],
        categories: ALL,
        subresources: &[SCALE, status("StatefulSet")],
        has_generation: true,
        ..namespaced(APPS, "StatefulSet", "StatefulSetList", "statefulsets", "statefulset")
    },
    Kind {
        short_names: &["ev"],
        // The same objects as the core group's events, in other words; the hooks translate.
        storage: Some(Storage { group: "", version: "v1", kind: "Event", plural: "events" }),
        ..namespaced("events.k8s.io", "Event", "EventList", "events", "event")
    },
    review(AUTHENTICATION, "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview"),
    review(AUTHENTICATION, "TokenReview", "tokenreviews", "tokenreview"),
    Kind {
        namespaced: true,
        ..review(
            AUTHORIZATION,
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
        )
    },
    review(AUTHORIZATION, "SelfSubjectAccessReview", "selfsubjectaccessreviews", "selfsubjectaccessreview"),
    review(AUTHORIZATION, "SelfSubjectRulesReview", "selfsubjectrulesreviews", "selfsubjectrulesreview"),
    review(AUTHORIZATION, "SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview"),
    Kind {
        versions: V2_V1,
        short_names: &["hpa"],
        categories: ALL,
        subresources: &[status("HorizontalPodAutoscaler")],
        storage: Some(Storage {
            group: "autoscaling",
            version: "v2",
            kind: "HorizontalPodAutoscaler",
            plural: "horizontalpodautoscalers",
        }),
        ..namespaced(
            "autoscaling",
            "HorizontalPodAutoscaler",
            "HorizontalPodAutoscalerList",
            "horizontalpodautoscalers",
            "horizontalpodautoscaler",
        )
    },
    Kind {
        short_names: &["cj"],
        categories: ALL,
        subresources: &[status("CronJob")],
        has_generation: true,
        ..namespaced("batch", "CronJob", "CronJobList", "cronjobs", "cronjob")
    },
    Kind {
        categories: ALL,
        subresources: &[status("Job")],
        has_generation: true,
        ..namespaced("batch", "Job", "JobList", "jobs", "job")
    },
    Kind {
        short_names: &["csr"],
        subresources: &[
            part("approval", "CertificateSigningRequest", GET_PATCH_UPDATE),
            status("CertificateSigningRequest"),
        ],
        ..cluster(
            "certificates.k8s.io",
            "CertificateSigningRequest",
            "CertificateSigningRequestList",
            "certificatesigningrequests",
            "certificatesigningrequest",
        )
    },
    // After the other of its group, whose version is the preferred one.
    Kind {
        versions: V1BETA1,
        storage: Some(Storage {
            group: "certificates.k8s.io",
            version: "v1beta1",
            kind: "PodCertificateRequest",
            plural: "podcertificaterequests",
        }),
        subresources: &[status("PodCertificateRequest")],
        ..namespaced(
            "certificates.k8s.io",
            "PodCertificateRequest",
            "PodCertificateRequestList",
            "podcertificaterequests",
            "podcertificaterequest",
        )
    },
    Kind {
        has_generation: true,
        ..cluster(NETWORKING, "IngressClass", "IngressClassList", "ingressclasses", "ingressclass")
    },
    Kind {
        short_names: &["ing"],
        subresources: &[status("Ingress")],
        has_generation: true,
        ..namespaced(NETWORKING, "Ingress", "IngressList", "ingresses", "ingress")
    },
    Kind {
        short_names: &["ip"],
        ..cluster(NETWORKING, "IPAddress", "IPAddressList", "ipaddresses", "ipaddress")
    },
    Kind {
        short_names: &["netpol"],
        has_generation: true,
        ..namespaced(NETWORKING, "NetworkPolicy", "NetworkPolicyList", "networkpolicies", "networkpolicy")
    },
    Kind {
        subresources: &[status("ServiceCIDR")],
        ..cluster(NETWORKING, "ServiceCIDR", "ServiceCIDRList", "servicecidrs", "servicecidr")
    },
    Kind {
        short_names: &["pdb"],
        subresources: &[status("PodDisruptionBudget")],
        has_generation: true,
        ..namespaced(
            "policy",
            "PodDisruptionBudget",
            "PodDisruptionBudgetList",
            "poddisruptionbudgets",
            "poddisruptionbudget",
        )
    },
    cluster(
        RBAC,
        "ClusterRoleBinding",
        "ClusterRoleBindingList",
        "clusterrolebindings",
        "clusterrolebinding",
    ),
    cluster(RBAC, "ClusterRole", "ClusterRoleList", "clusterroles", "clusterrole"),
    namespaced(RBAC, "RoleBinding", "RoleBindingList", "rolebindings", "rolebinding"),
    namespaced(RBAC, "Role", "RoleList", "roles", "role"),
    Kind {
        has_generation: true,
        ..cluster(STORAGE, "CSIDriver", "CSIDriverList", "csidrivers", "csidriver")
    },
    cluster(STORAGE, "CSINode", "CSINodeList", "csinodes", "csinode"),
    namespaced(
        STORAGE,
        "CSIStorageCapacity",
        "CSIStorageCapacityList",
        "csistoragecapacities",
        "csistoragecapacity",
    ),
    Kind {
        short_names: &["sc"],
        ..cluster(STORAGE, "StorageClass", "StorageClassList", "storageclasses", "storageclass")
    },
    Kind {
        subresources: &[status("VolumeAttachment")],
        ..cluster(
            STORAGE,
            "VolumeAttachment",
            "VolumeAttachmentList",
            "volumeattachments",
            "volumeattachment",
        )
    },
    Kind {
        short_names: &["vac"],
        ..cluster(
            STORAGE,
            "VolumeAttributesClass",
            "VolumeAttributesClassList",
            "volumeattributesclasses",
            "volumeattributesclass",
        )
    },
    admission(
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyList",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicy",
    ),
    admission(
        "MutatingAdmissionPolicyBinding",
        "MutatingAdmissionPolicyBindingList",
        "mutatingadmissionpolicybindings",
        "mutatingadmissionpolicybinding",
    ),
    admission(
        "MutatingWebhookConfiguration",
        "MutatingWebhookConfigurationList",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
    ),
    Kind {
        subresources: &[status("ValidatingAdmissionPolicy")],
        ..admission(
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyList",
            "validatingadmissionpolicies",
            "validatingadmissionpolicy",
        )
    },
    admission(
        "ValidatingAdmissionPolicyBinding",
        "ValidatingAdmissionPolicyBindingList",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
    ),
    admission(
        "ValidatingWebhookConfiguration",
        "ValidatingWebhookConfigurationList",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration",
    ),
    Kind {
        short_names: &["crd", "crds"],
        categories: API_EXTENSIONS,
        subresources: &[status("CustomResourceDefinition")],
        has_generation: true,
        ..cluster(
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            "CustomResourceDefinitionList",
            "customresourcedefinitions",
            "customresourcedefinition",
        )
    },
    Kind {
        short_names: &["pc"],
        has_generation: true,
        ..cluster(
            "scheduling.k8s.io",
            "PriorityClass",
            "PriorityClassList",
            "priorityclasses",
            "priorityclass",
        )
    },
    // After the others of its group, whose version is the preferred one.
    Kind {
        versions: V1ALPHA2,
        storage: Some(Storage {
            group: "scheduling.k8s.io",
            version: "v1alpha2",
            kind: "PodGroup",
            plural: "podgroups",
        }),
        subresources: &[status("PodGroup")],
        ..namespaced("scheduling.k8s.io", "PodGroup", "PodGroupList", "podgroups", "podgroup")
    },
    namespaced("coordination.k8s.io", "Lease", "LeaseList", "leases", "lease"),
    cluster("node.k8s.io", "RuntimeClass", "RuntimeClassList", "runtimeclasses", "runtimeclass"),
    Kind {
        has_generation: true,
        ..namespaced(
            "discovery.k8s.io",
            "EndpointSlice",
            "EndpointSliceList",
            "endpointslices",
            "endpointslice",
        )
    },
    Kind {
        has_generation: true,
        ..cluster(RESOURCE, "DeviceClass", "DeviceClassList", "deviceclasses", "deviceclass")
    },
    Kind {
        subresources: &[status("ResourceClaim")],
        ..namespaced(RESOURCE, "ResourceClaim", "ResourceClaimList", "resourceclaims", "resourceclaim")
    },
    namespaced(
        RESOURCE,
        "ResourceClaimTemplate",
        "ResourceClaimTemplateList",
        "resourceclaimtemplates",
        "resourceclaimtemplate",
    ),
    Kind {
        has_generation: true,
        ..cluster(RESOURCE, "ResourceSlice", "ResourceSliceList", "resourceslices", "resourceslice")
    },
    Kind {
        subresources: &[status("FlowSchema")],
        has_generation: true,
        ..cluster(FLOW_CONTROL, "FlowSchema", "FlowSchemaList", "flowschemas", "flowschema")
    },
    Kind {
        subresources: &[status("PriorityLevelConfiguration")],
        has_generation: true,
        ..cluster(
            FLOW_CONTROL,
            "PriorityLevelConfiguration",
            "PriorityLevelConfigurationList",
            "prioritylevelconfigurations",
            "prioritylevelconfiguration",
        )
    },
    // Last, and served by an add-on elsewhere: made for each answer of what nodes report.
    Kind {
        versions: V1BETA1,
        verbs: READ,
        storage: None,
        ..cluster(USAGE, "NodeMetrics", "NodeMetricsList", "nodes", "")
    },
    Kind {
        versions: V1BETA1,
        verbs: READ,
        storage: None,
        ..namespaced(USAGE, "PodMetrics", "PodMetricsList", "pods", "")
    },
];
