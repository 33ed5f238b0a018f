//! Names of kinds and of single objects, as paths, gRPC messages and watch caches use them.

use std::{borrow::Cow, fmt};

/// A kind by its group, version and plural: `apps/v1/deployments`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionResource {
    /// Empty for the core group.
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    /// Plural, in lower case.
    pub resource: Cow<'static, str>,
}

impl GroupVersionResource {
    /// Names a kind that is known when this is compiled.
    pub const fn fixed(group: &'static str, version: &'static str, resource: &'static str) -> Self {
        Self {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            resource: Cow::Borrowed(resource),
        }
    }

    /// The kind that a type of `k8s-openapi` stands for.
    pub const fn of<K: k8s_openapi::Resource>() -> Self {
        Self::fixed(K::GROUP, K::VERSION, K::URL_PATH_SEGMENT)
    }

    /// `v1`, or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods`, or `deployments.apps`: how messages name a kind.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.resource.to_string()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }
}

impl fmt::Display for GroupVersionResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.api_version(), self.resource)
    }
}

/// Where a request goes: a kind, and as much of namespace, name and subresource as it needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub resource: GroupVersionResource,
    /// `None` for cluster-wide kinds, and for collections over all namespaces.
    pub namespace: Option<String>,
    /// `None` for collections and for creates.
    pub name: Option<String>,
    /// `status`, `scale`, `binding`, ...
    pub subresource: Option<Cow<'static, str>>,
}

impl Target {
    /// All objects of a kind, in one namespace or in all.
    pub fn collection(resource: GroupVersionResource, namespace: Option<&str>) -> Self {
        Self { resource, namespace: namespace.map(str::to_owned), name: None, subresource: None }
    }

    /// One object.
    pub fn object(resource: GroupVersionResource, namespace: Option<&str>, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..Self::collection(resource, namespace) }
    }

    /// The same place, one of its subresources.
    pub fn with_subresource(mut self, subresource: &'static str) -> Self {
        self.subresource = Some(Cow::Borrowed(subresource));
        self
    }
}

/// Namespace and name; the namespace is empty for cluster-wide kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a typed object.
    pub fn of<K>(object: &K) -> Self
    where
        K: k8s_openapi::Metadata<Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>,
    {
        let meta = object.metadata();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}
