//! The typed layer over [`Client`]: `Api<Pod>` reads and writes `k8s-openapi` structs.

use std::{marker::PhantomData, sync::Arc};

use bytes::Bytes;
use k8s_openapi::{Metadata, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Error,
    client::{Client, DeleteOptions, ListOptions, Patch, WriteOptions},
    resource::{GroupVersionResource, Target},
};

/// A built-in kind that components work with.
pub trait Kind:
    Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}

/// Reads and writes objects of one kind, in one namespace or in all.
pub struct Api<K> {
    client: Arc<dyn Client>,
    namespace: Option<String>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), namespace: self.namespace.clone(), kind: PhantomData }
    }
}

impl<K: Kind> Api<K> {
    /// Cluster-wide kinds, and reads over all namespaces.
    pub fn all(client: Arc<dyn Client>) -> Self {
        Self { client, namespace: None, kind: PhantomData }
    }

    pub fn namespaced(client: Arc<dyn Client>, namespace: &str) -> Self {
        Self { client, namespace: Some(namespace.to_owned()), kind: PhantomData }
    }

    fn collection(&self) -> Target {
        Target::collection(GroupVersionResource::of::<K>(), self.namespace.as_deref())
    }

    fn object(&self, name: &str) -> Target {
        Target::object(GroupVersionResource::of::<K>(), self.namespace.as_deref(), name)
    }

    pub async fn get(&self, name: &str) -> Result<K, Error> {
        decode(&self.client.get(&self.object(name)).await?)
    }

    /// `None` where there is no such object.
    pub async fn find(&self, name: &str) -> Result<Option<K>, Error> {
        match self.get(name).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The objects, and the version to watch from.
    pub async fn list(&self, options: &ListOptions) -> Result<(Vec<K>, String), Error> {
        let list = self.client.list(&self.collection(), options).await?;
        let objects = list.items.iter().map(decode).collect::<Result<_, _>>()?;
        Ok((objects, list.resource_version))
    }

    pub async fn create(&self, object: &K) -> Result<K, Error> {
        decode(&self.client.create(&self.collection(), encode(object)?, &WriteOptions::default()).await?)
    }

    /// Replaces the object; its resource version guards against lost updates.
    pub async fn update(&self, object: &K) -> Result<K, Error> {
        let target = self.object(name_of(object));
        decode(&self.client.update(&target, encode(object)?, &WriteOptions::default()).await?)
    }

    pub async fn update_status(&self, object: &K) -> Result<K, Error> {
        self.update_subresource(object, "status").await
    }

    pub async fn update_subresource(&self, object: &K, subresource: &'static str) -> Result<K, Error> {
        let target = self.object(name_of(object)).with_subresource(subresource);
        decode(&self.client.update(&target, encode(object)?, &WriteOptions::default()).await?)
    }

    /// RFC 7386.
    pub async fn merge_patch(&self, name: &str, patch: &Value) -> Result<K, Error> {
        self.patch(self.object(name), patch).await
    }

    pub async fn merge_patch_status(&self, name: &str, patch: &Value) -> Result<K, Error> {
        self.patch(self.object(name).with_subresource("status"), patch).await
    }

    async fn patch(&self, target: Target, patch: &Value) -> Result<K, Error> {
        let patch = Patch::Merge(patch.to_string().into());
        decode(&self.client.patch(&target, patch, &WriteOptions::default()).await?)
    }

    /// Succeeds where the object is gone already.
    pub async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<(), Error> {
        self.delete_if_there(name, options).await.map(drop)
    }

    /// Like [`Api::delete`]; false where the object was gone already, and so no event is to be expected.
    pub async fn delete_if_there(&self, name: &str, options: &DeleteOptions) -> Result<bool, Error> {
        match self.client.delete(&self.object(name), options).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn name_of<K: Kind>(object: &K) -> &str {
    object.metadata().name.as_deref().unwrap_or_default()
}

/// Reads a typed object out of the server's bytes.
pub fn decode<K: DeserializeOwned>(bytes: &Bytes) -> Result<K, Error> {
    serde_json::from_slice(bytes).map_err(Error::internal)
}

/// Writes a typed object with its `apiVersion` and `kind`.
pub fn encode<K: Serialize>(object: &K) -> Result<Bytes, Error> {
    serde_json::to_vec(object).map(Bytes::from).map_err(Error::internal)
}
