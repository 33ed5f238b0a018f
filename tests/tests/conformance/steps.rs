//! Steps that many texts take: create, change, list, delete together.

use std::fmt::Debug;

use anyhow::ensure;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::support::{Watch, eventually, object, unique, watch};

/// A typed object that can be read and written.
pub(crate) trait Object:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + 'static
{
}

pub(crate) fn as_json<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).expect("an object is JSON")
}

/// Creates an object from JSON without `apiVersion` and `kind`.
pub(crate) async fn create<K: Object>(api: &Api<K>, value: Value) -> K {
    let made = try_create(api, value).await;
    made.unwrap_or_else(|error| panic!("{} is not created: {error}", K::kind(&())))
}

pub(crate) async fn try_create<K: Object>(api: &Api<K>, value: Value) -> kube::Result<K> {
    api.create(&PostParams::default(), &object(value)).await
}

/// A merge patch.
pub(crate) async fn patch<K: Object>(api: &Api<K>, name: &str, change: Value) -> K {
    let patched = try_patch(api, name, change).await;
    patched.unwrap_or_else(|error| panic!("{} {name} is not patched: {error}", K::kind(&())))
}

pub(crate) async fn try_patch<K: Object>(api: &Api<K>, name: &str, change: Value) -> kube::Result<K> {
    api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await
}

/// A merge patch of the status subresource.
pub(crate) async fn patch_status<K: Object>(api: &Api<K>, name: &str, change: Value) -> K {
    let patched = api.patch_status(name, &PatchParams::default(), &Patch::Merge(change)).await;
    patched.unwrap_or_else(|error| panic!("status of {} {name} is not patched: {error}", K::kind(&())))
}

/// Reads, changes and writes an object, again where another writer was faster.
pub(crate) async fn update<K: Object>(api: &Api<K>, name: &str, change: impl Fn(&mut K)) -> K {
    let updated = try_update(api, name, change).await;
    updated.unwrap_or_else(|error| panic!("{} {name} is not updated: {error}", K::kind(&())))
}

pub(crate) async fn try_update<K: Object>(
    api: &Api<K>,
    name: &str,
    change: impl Fn(&mut K),
) -> kube::Result<K> {
    loop {
        let mut newest = api.get(name).await?;
        change(&mut newest);
        let written = api.replace(name, &PostParams::default(), &newest).await;
        if !is_conflict(&written) {
            return written;
        }
    }
}

/// Reads, changes and writes a status, again where another writer was faster. It is given as JSON; null where there is none.
pub(crate) async fn update_status<K: Object>(api: &Api<K>, name: &str, change: impl Fn(&mut Value)) -> K {
    loop {
        let mut newest = as_json(&api.get_status(name).await.expect("the status is read"));
        change(&mut newest["status"]);
        let written = api.replace_status(name, &PostParams::default(), &object(newest)).await;
        if !is_conflict(&written) {
            let kind = K::kind(&());
            return written.unwrap_or_else(|error| panic!("status of {kind} {name} is not updated: {error}"));
        }
    }
}

fn is_conflict<K>(outcome: &kube::Result<K>) -> bool {
    matches!(outcome, Err(kube::Error::Api(status)) if status.code == 409)
}

pub(crate) fn labels(selector: &str) -> ListParams {
    ListParams::default().labels(selector)
}

/// The objects of a label selector.
pub(crate) async fn list<K: Object>(api: &Api<K>, selector: &str) -> Vec<K> {
    api.list(&labels(selector)).await.expect("objects are listed").items
}

/// Deletes an object, without a time for its end.
pub(crate) async fn delete<K: Object>(api: &Api<K>, name: &str) {
    let deleted = api.delete(name, &DeleteParams::default().grace_period(0)).await;
    deleted.unwrap_or_else(|error| panic!("{} {name} is not deleted: {error}", K::kind(&())));
}

/// Deletes the objects of a label selector, without a time for their end.
pub(crate) async fn delete_all<K: Object>(api: &Api<K>, selector: &str) {
    let deleted = api.delete_collection(&DeleteParams::default().grace_period(0), &labels(selector)).await;
    deleted.unwrap_or_else(|error| panic!("{} {selector} are not deleted: {error}", K::kind(&())));
}

/// Waits until the object is not found.
pub(crate) async fn gone<K: Object>(api: &Api<K>, name: &str) {
    eventually("the object is gone", async || {
        let left = api.get_opt(name).await?;
        ensure!(left.is_none(), "{left:?} is left");
        Ok(())
    })
    .await;
}

/// Waits until a label selector finds so many objects.
pub(crate) async fn counted<K: Object>(api: &Api<K>, selector: &str, number: usize) -> Vec<K> {
    eventually("as many objects are found as expected", async || {
        let found = api.list(&labels(selector)).await?.items;
        let names: Vec<_> = found.iter().map(ResourceExt::name_any).collect();
        ensure!(found.len() == number, "{} {names:?}", K::kind(&()));
        Ok(found)
    })
    .await
}

/// A watch of a label selector's objects, of what comes after this call.
pub(crate) async fn watch_labels<K: Object>(api: &Api<K>, selector: &str) -> Watch<K> {
    let listed = api.list(&labels(selector)).await.expect("objects are listed");
    let version = listed.metadata.resource_version.expect("a list has a version");
    watch(api, &WatchParams::default().labels(selector), &version).await
}

/// Objects of a label are listed in all namespaces and deleted together; one without the label stays.
pub(crate) async fn listed_and_deleted_together<K: Object>(
    (here, everywhere): (&Api<K>, &Api<K>),
    make: impl Fn(Value) -> Value,
) {
    let label = unique("together");
    let selector = format!("together={label}");
    for _ in 0..2 {
        create(here, make(json!({ "name": unique("together"), "labels": { "together": label } }))).await;
    }
    let other = create(here, make(json!({ "name": unique("apart") }))).await.name_any();
    assert_eq!(list(everywhere, &selector).await.len(), 2);

    delete_all(here, &selector).await;
    counted(everywhere, &selector, 0).await;
    assert_eq!(here.get(&other).await.expect("the other stays").name_any(), other);
}

/// A write of the status may come with annotations.
pub(crate) async fn status_is_annotated<K: Object>(api: &Api<K>, name: &str) {
    let change = json!({ "metadata": { "annotations": { "patchedstatus": "true" } } });
    let patched = patch_status(api, name, change).await;
    let note = patched.annotations().get("patchedstatus").map(String::as_str);
    assert_eq!(note, Some("true"), "the annotation that came with the status of {} {name}", K::kind(&()));
    let read = api.get(name).await.expect("the object is read");
    assert_eq!(read.annotations(), patched.annotations());
}
