//! What an autoscaler scales: any kind with a `scale` subresource, read and written through that alone.

use hawser_api::{
    Client, Error,
    client::WriteOptions,
    kinds::{KINDS, Kind},
    resource::Target,
    typed::{decode, encode},
};
use k8s_openapi::api::autoscaling::{v1::Scale, v2::CrossVersionObjectReference};

/// The scale of one object.
pub(super) struct Scaled {
    target: Target,
    scale: Scale,
}

impl Scaled {
    /// Fails with what to tell where the reference leads nowhere.
    pub(super) async fn read(
        client: &dyn Client,
        namespace: &str,
        reference: &CrossVersionObjectReference,
    ) -> Result<Self, String> {
        let api_version = reference.api_version.as_deref().unwrap_or_default();
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        // Any version will do, as for upstream: the reference may be older than what is served.
        let is_it = |kind: &&Kind| kind.group == group && kind.kind == reference.kind && kind.namespaced;
        let kind = KINDS.iter().find(is_it).ok_or_else(|| {
            let mut place = format!("{}.{version}", reference.kind);
            if !group.is_empty() {
                place.push_str(&format!(".{group}"));
            }
            format!("unable to determine resource for scale target reference: no matches for kind {place:?}")
        })?;
        let resource = kind.resource(kind.versions[0].name);
        let target = Target::object(resource, Some(namespace), &reference.name).with_subresource("scale");
        let read = client.get(&target).await.and_then(|bytes| decode(&bytes));
        read.map(|scale| Self { target, scale }).map_err(|error| error.to_string())
    }

    /// The wanted replicas.
    pub(super) fn replicas(&self) -> i32 {
        self.scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default()
    }

    /// Of the pods; empty where the kind has none.
    pub(super) fn selector(&self) -> &str {
        self.scale.status.as_ref().and_then(|status| status.selector.as_deref()).unwrap_or_default()
    }

    /// Guarded by the version that was read.
    pub(super) async fn resize(&self, client: &dyn Client, replicas: i32) -> Result<(), Error> {
        let mut changed = self.scale.clone();
        changed.spec.get_or_insert_default().replicas = Some(replicas);
        client.update(&self.target, encode(&changed)?, &WriteOptions::default()).await.map(drop)
    }
}
