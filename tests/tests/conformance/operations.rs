//! What the texts named "API operations" have in common: a kind that is in the discovery documents, and whose objects
//! are created, read, listed, watched, patched, updated and deleted, alone and together.

use kube::{
    Api, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchParams,
    },
    core::GroupVersionKind,
    discovery::Scope,
};
use serde_json::{Value, json};

use crate::support::{Bed, eventually, gone, object, refused, unique, watch};

/// A kind and an object of it.
pub(crate) struct Operations<'a> {
    /// Empty for the core group.
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) plural: &'a str,
    pub(crate) scope: Scope,
    /// What discovery lists below the resource: `status`, ...
    pub(crate) subresources: &'a [&'a str],
    /// A complete object but for `apiVersion`, `kind`, name and labels.
    pub(crate) object: Value,
}

impl Operations<'_> {
    /// Goes through all operations, with three objects of the same label.
    pub(crate) async fn check(&self, bed: &Bed) {
        self.is_discovered(bed).await;
        let label = unique("operations");
        let api = self.api(bed);
        let names = self.create_three(&api, &label).await;
        self.are_found(bed, &names, &label).await;
        self.are_changed(&api, &names[0], &label).await;
        self.are_deleted(&api, &names, &label).await;
    }

    /// The kind's objects: those of the test's namespace, where they have one.
    pub(crate) fn api(&self, bed: &Bed) -> Api<DynamicObject> {
        Api::dynamic(bed.client.clone(), &self.resource(), &self.scope).constrain(&bed.namespace)
    }

    fn resource(&self) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.kind);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }

    /// An object with this name and label.
    pub(crate) fn named(&self, name: &str, label: &str) -> DynamicObject {
        let mut value = self.object.clone();
        value["apiVersion"] = json!(self.resource().api_version);
        value["kind"] = json!(self.kind);
        value["metadata"] = json!({ "name": name, "labels": { "operations": label } });
        object(value)
    }

    /// The group, its version, and in that the resource with its subresources.
    pub(crate) async fn is_discovered(&self, bed: &Bed) {
        let version = self.resource().api_version;
        let path = if self.group.is_empty() { format!("/api/{version}") } else { format!("/apis/{version}") };
        if !self.group.is_empty() {
            let groups = bed.get("/apis").await;
            let group = bed.get(&format!("/apis/{}", self.group)).await;
            let listed = groups["groups"].as_array().expect("groups");
            let listed =
                listed.iter().find(|listed| listed["name"] == self.group).expect("the group is listed");
            for document in [listed, &group] {
                let versions = document["versions"].as_array().expect("versions");
                assert!(versions.iter().any(|found| found["groupVersion"] == *version), "{document}");
            }
        }
        let resources = bed.get(&path).await;
        let resources = resources["resources"].as_array().expect("resources");
        let below = self.subresources.iter().map(|sub| format!("{}/{sub}", self.plural));
        for name in std::iter::once(self.plural.to_owned()).chain(below) {
            let found = resources.iter().find(|resource| resource["name"] == *name);
            let found = found.unwrap_or_else(|| panic!("{version} lacks {name}"));
            assert_eq!(found["namespaced"], json!(self.scope == Scope::Namespaced), "{found}");
        }
    }

    async fn create_three(&self, api: &Api<DynamicObject>, label: &str) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..3 {
            let name = unique("operations");
            let made = api.create(&PostParams::default(), &self.named(&name, label)).await;
            let made = made.unwrap_or_else(|error| panic!("{} is not created: {error}", self.kind));
            assert_eq!(made.name_any(), name);
            assert!(made.uid().is_some_and(|uid| !uid.is_empty()), "{made:?}");
            names.push(name);
        }
        names
    }

    /// Alone, by label, and in all namespaces.
    async fn are_found(&self, bed: &Bed, names: &[String], label: &str) {
        let api = self.api(bed);
        let first = api.get(&names[0]).await.expect("the object is found");
        assert_eq!(first.labels()["operations"], label);
        let everywhere = Api::all_with(bed.client.clone(), &self.resource());
        for api in [api, everywhere] {
            let found = api.list(&labelled(label)).await.expect("the objects are listed");
            let mut found: Vec<_> = found.iter().map(ResourceExt::name_any).collect();
            let mut expected = names.to_vec();
            found.sort();
            expected.sort();
            assert_eq!(found, expected);
        }
    }

    /// By a patch and by an update, which a watch sees.
    async fn are_changed(&self, api: &Api<DynamicObject>, name: &str, label: &str) {
        let version =
            api.list(&labelled(label)).await.expect("the objects are listed").metadata.resource_version;
        let params = WatchParams::default().labels(&format!("operations={label}"));
        let mut events = watch(api, &params, &version.expect("a list has a version")).await;

        let patch = Patch::Merge(json!({ "metadata": { "annotations": { "patched": "true" } } }));
        let mut patched = api.patch(name, &PatchParams::default(), &patch).await.expect("patched");
        assert_eq!(patched.annotations()["patched"], "true");

        patched.annotations_mut().insert("updated".into(), "true".into());
        // Controllers may write as well: then the newer object is changed.
        let updated = eventually("the object is updated", async || {
            patched.metadata.resource_version = api.get(name).await?.resource_version();
            Ok(api.replace(name, &PostParams::default(), &patched).await?)
        })
        .await;
        assert_eq!(
            (&*updated.annotations()["patched"], &*updated.annotations()["updated"]),
            ("true", "true")
        );
        events
            .until("MODIFIED", |object| {
                object.name_any() == name && object.annotations().contains_key("updated")
            })
            .await;
    }

    /// One by its name, the others by their label.
    async fn are_deleted(&self, api: &Api<DynamicObject>, names: &[String], label: &str) {
        let now = DeleteParams::default().grace_period(0);
        api.delete(&names[0], &now).await.expect("deleted");
        gone(api, &names[0]).await;
        refused(api.get(&names[0]).await, 404, "NotFound");
        assert_eq!(api.list(&labelled(label)).await.expect("listed").items.len(), 2, "the others stay");

        api.delete_collection(&now, &labelled(label)).await.expect("deleted together");
        eventually("all are gone", async || {
            let left = api.list(&labelled(label)).await?.items;
            anyhow::ensure!(left.is_empty(), "{left:?} are left");
            Ok(())
        })
        .await;
    }

    /// Reads, patches and updates the status of an object that is made here, and deleted again.
    ///
    /// `patched` and `updated` are two statuses; a part of either must be read back as it is written.
    pub(crate) async fn check_status(&self, bed: &Bed, patched: Value, updated: Value) {
        let api = self.api(bed);
        let name = unique("operations");
        let made = api.create(&PostParams::default(), &self.named(&name, &name)).await.expect("created");
        let read = api.get_status(&name).await.expect("the status is read");
        assert_eq!(read.uid(), made.uid());

        let patch = Patch::Merge(json!({ "status": patched }));
        let found = api.patch_status(&name, &PatchParams::default(), &patch).await.expect("patched");
        assert_eq!(
            found.data["spec"], made.data["spec"],
            "a patch of the status leaves the specification alone"
        );
        assert_contains(&found.data["status"], &patched);

        let found = eventually("the status is updated", async || {
            let mut newest = api.get_status(&name).await?;
            newest.data["status"] = updated.clone();
            Ok(api.replace_status(&name, &PostParams::default(), &newest).await?)
        })
        .await;
        assert_contains(&found.data["status"], &updated);
        let read = api.get_status(&name).await.expect("the status is read");
        assert_contains(&read.data["status"], &updated);
        api.delete(&name, &DeleteParams::default().grace_period(0)).await.expect("deleted");
    }
}

fn labelled(label: &str) -> ListParams {
    ListParams::default().labels(&format!("operations={label}"))
}

/// Each member of `part` stands in `whole`; lists are equal in length, and contain each other's members in order.
#[track_caller]
pub(crate) fn assert_contains(whole: &Value, part: &Value) {
    assert!(contains(whole, part), "{part} is no part of {whole}");
}

fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(name, value)| whole.get(name).is_some_and(|found| contains(found, value)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        _ => whole == part,
    }
}
