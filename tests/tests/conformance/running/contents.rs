//! Volumes of ConfigMaps and Secrets, alone and projected: what their files hold, whose they are, and that they follow.

use k8s_openapi::api::core::v1 as core;
use kube::Api;
use serde_json::{Value, json};

use super::{Pod, script, sleeper, test};
use crate::{
    coverage::{cases, texts},
    steps::{create, delete, patch},
    support::{Bed, unique},
};

/// What a volume holds.
#[derive(Clone, Copy)]
enum Source {
    ConfigMap,
    Secret,
    ProjectedConfigMap,
    ProjectedSecret,
}
use Source::*;

/// How it is shown.
#[derive(Clone, Copy, Default)]
struct Shown {
    default_mode: Option<u32>,
    /// One of the keys at another path, with a mode of its own perhaps.
    mapped: Option<Option<u32>>,
    user: Option<u32>,
    group: Option<u32>,
}

const PLAIN: Shown = Shown { default_mode: None, mapped: None, user: None, group: None };
const MAPPED: Shown = Shown { mapped: Some(None), ..PLAIN };
const MAPPED_0400: Shown = Shown { mapped: Some(Some(0o400)), ..PLAIN };
const DEFAULT_0400: Shown = Shown { default_mode: Some(0o400), ..PLAIN };
const AS_USER: Shown = Shown { user: Some(1000), ..PLAIN };
const MAPPED_AS_USER: Shown = Shown { user: Some(1000), ..MAPPED };
const OF_GROUP: Shown =
    Shown { default_mode: Some(0o440), user: Some(1000), group: Some(1001), mapped: None };

impl Source {
    fn is_secret(self) -> bool {
        matches!(self, Secret | ProjectedSecret)
    }

    async fn create(self, bed: &Bed, name: &str) {
        let data = json!({ "data-1": "value-1", "data-2": "value-2", "data-3": "value-3" });
        let metadata = json!({ "name": name });
        if self.is_secret() {
            create(&bed.api::<core::Secret>(), json!({ "metadata": metadata, "stringData": data })).await;
        } else {
            create(&bed.api::<core::ConfigMap>(), json!({ "metadata": metadata, "data": data })).await;
        }
    }

    /// Sets a key, and takes another away.
    async fn change(self, bed: &Bed, name: &str, value: &str) {
        if self.is_secret() {
            let change = json!({ "stringData": { "data-3": value }, "data": { "data-1": null } });
            patch(&bed.api::<core::Secret>(), name, change).await;
        } else {
            let change = json!({ "data": { "data-3": value, "data-1": null } });
            patch(&bed.api::<core::ConfigMap>(), name, change).await;
        }
    }

    async fn delete(self, bed: &Bed, name: &str) {
        if self.is_secret() {
            delete(&bed.api::<core::Secret>(), name).await;
        } else {
            delete(&bed.api::<core::ConfigMap>(), name).await;
        }
    }

    /// A volume of this name, with these fields beside the object's name.
    fn volume(self, volume: &str, object: &str, fields: Value) -> Value {
        let mut source = fields;
        let key = if matches!(self, Secret) { "secretName" } else { "name" };
        source[key] = json!(object);
        let kind = if self.is_secret() { "secret" } else { "configMap" };
        if matches!(self, ConfigMap | Secret) {
            return json!({ "name": volume, kind: source });
        }
        // The mode is the projection's, not the source's.
        let mode = source.as_object_mut().and_then(|fields| fields.remove("defaultMode"));
        let mut projected = json!({ "sources": [{ kind: source }] });
        if let Some(mode) = mode {
            projected["defaultMode"] = mode;
        }
        json!({ "name": volume, "projected": projected })
    }
}

/// A file of the volume holds what the key does, and has the mode and owners that were asked for.
fn consumed(source: Source, shown: Shown) {
    test(async |bed| {
        let name = unique("source");
        source.create(bed, &name).await;
        let mut fields = json!({});
        if let Some(mode) = shown.default_mode {
            fields["defaultMode"] = json!(mode);
        }
        let (key, path) =
            if shown.mapped.is_some() { ("data-2", "path/to/data-2") } else { ("data-1", "data-1") };
        if let Some(mode) = shown.mapped {
            fields["items"] = json!([{ "key": key, "path": path }]);
            if let Some(mode) = mode {
                fields["items"][0]["mode"] = json!(mode);
            }
        }
        let mut pod =
            script(&format!("cat /volume/{path}; echo; stat -Lc '%a %g' /volume/{path}; ls /volume"));
        pod["spec"]["volumes"] = json!([source.volume("volume", &name, fields)]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "volume", "mountPath": "/volume" }]);
        if let Some(user) = shown.user {
            pod["spec"]["securityContext"]["runAsUser"] = json!(user);
        }
        if let Some(group) = shown.group {
            pod["spec"]["securityContext"]["fsGroup"] = json!(group);
        }
        let value = key.replace("data", "value");
        let mode = shown.mapped.flatten().or(shown.default_mode).unwrap_or(0o644);
        let group = shown.group.unwrap_or(0);
        // Other keys are there where none is named.
        let listed = if shown.mapped.is_some() { "path" } else { "data-1\ndata-2\ndata-3" };
        assert_eq!(Pod::output(bed, pod).await, format!("{value}\n{mode:o} {group}\n{listed}\n"));
    });
}

/// Two volumes of the same object.
fn twice(source: Source) {
    test(async |bed| {
        let name = unique("source");
        source.create(bed, &name).await;
        let mut pod = script("cat /volume-1/data-1 /volume-2/data-1");
        pod["spec"]["volumes"] = json!(["first", "second"].map(|volume| source.volume(
            volume,
            &name,
            json!({ "defaultMode": 0o400 })
        )));
        pod["spec"]["containers"][0]["volumeMounts"] = json!([
            { "name": "first", "mountPath": "/volume-1" },
            { "name": "second", "mountPath": "/volume-2", "readOnly": true },
        ]);
        assert_eq!(Pod::output(bed, pod).await, "value-1value-1");
    });
}

/// A running pod sees a change of the object.
fn updated(source: Source) {
    test(async |bed| {
        let name = unique("source");
        source.create(bed, &name).await;
        let mut pod = sleeper();
        pod["spec"]["volumes"] = json!([source.volume("volume", &name, json!({}))]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "volume", "mountPath": "/volume" }]);
        let pod = Pod::start(bed, pod).await;
        assert_eq!(pod.run("cat /volume/data-3").await, "value-3");
        source.change(bed, &name, "changed").await;
        pod.sees("main", "cat /volume/data-3", |said| said == "changed").await;
    });
}

/// A running pod sees optional objects come, change and go.
fn optional(source: Source) {
    test(async |bed| {
        let [comes, changes, goes] = ["comes", "changes", "goes"].map(unique);
        source.create(bed, &changes).await;
        source.create(bed, &goes).await;
        let mut pod = sleeper();
        let volumes = [("comes", &comes), ("changes", &changes), ("goes", &goes)];
        pod["spec"]["volumes"] =
            json!(volumes.map(|(volume, name)| source.volume(volume, name, json!({ "optional": true }))));
        pod["spec"]["containers"][0]["volumeMounts"] = json!(volumes.map(
            |(volume, _)| json!({ "name": volume, "mountPath": format!("/{volume}"), "readOnly": true })
        ));
        let pod = Pod::start(bed, pod).await;
        assert_eq!(pod.run("ls /comes; cat /changes/data-3 /goes/data-1").await, "value-3value-1");
        source.delete(bed, &goes).await;
        source.change(bed, &changes, "changed").await;
        source.create(bed, &comes).await;
        pod.sees("main", "cat /comes/data-1", |said| said == "value-1").await;
        pod.sees("main", "cat /changes/data-3; ls /changes", |said| said == "changeddata-2\ndata-3\n").await;
        pod.sees("main", "ls /goes", str::is_empty).await;
    });
}

mod files {
    use super::*;

    cases! { consumed:
        "ConfigMap Volume, without mapping" => should_be_consumable_from_pods_in_volume(ConfigMap, PLAIN),
        "ConfigMap Volume, without mapping, volume mode set" =>
            should_be_consumable_from_pods_in_volume_with_defaultmode_set(ConfigMap, DEFAULT_0400),
        "ConfigMap Volume, without mapping, non-root user" =>
            should_be_consumable_from_pods_in_volume_as_non_root(ConfigMap, AS_USER),
        "ConfigMap Volume, with mapping" => should_be_consumable_from_pods_in_volume_with_mappings(ConfigMap, MAPPED),
        "ConfigMap Volume, with mapping, volume mode set" =>
            should_be_consumable_from_pods_in_volume_with_mappings_and_item_mode_set(ConfigMap, MAPPED_0400),
        "ConfigMap Volume, with mapping, non-root user" =>
            should_be_consumable_from_pods_in_volume_with_mappings_as_non_root(ConfigMap, MAPPED_AS_USER),
        "Projected Volume, ConfigMap, volume mode default" =>
            projected_configmap_should_be_consumable_from_pods_in_volume(ProjectedConfigMap, PLAIN),
        "Projected Volume, ConfigMap, volume mode 0400" =>
            projected_configmap_should_be_consumable_from_pods_in_volume_with_defaultmode_set(
                ProjectedConfigMap, DEFAULT_0400
            ),
        "Projected Volume, ConfigMap, non-root user" =>
            projected_configmap_should_be_consumable_from_pods_in_volume_as_non_root(ProjectedConfigMap, AS_USER),
        "Projected Volume, ConfigMap, mapped" =>
            projected_configmap_should_be_consumable_from_pods_in_volume_with_mappings(ProjectedConfigMap, MAPPED),
        "Projected Volume, ConfigMap, mapped, volume mode 0400" =>
            projected_configmap_should_be_consumable_from_pods_in_volume_with_mappings_and_item_mode_set(
                ProjectedConfigMap, MAPPED_0400
            ),
        "Projected Volume, ConfigMap, mapped, non-root user" =>
            projected_configmap_should_be_consumable_from_pods_in_volume_with_mappings_as_non_root(
                ProjectedConfigMap, MAPPED_AS_USER
            ),
        "Secrets Volume, default" => secrets_should_be_consumable_from_pods_in_volume(Secret, PLAIN),
        "Secrets Volume, volume mode 0400" =>
            secrets_should_be_consumable_from_pods_in_volume_with_defaultmode_set(Secret, DEFAULT_0400),
        "Secrets Volume, volume mode 0440, fsGroup 1001 and uid 1000" =>
            secrets_should_be_consumable_from_pods_in_volume_as_non_root_with_defaultmode_and_fsgroup_set(
                Secret, OF_GROUP
            ),
        "Secrets Volume, mapping" => secrets_should_be_consumable_from_pods_in_volume_with_mappings(Secret, MAPPED),
        "Secrets Volume, mapping, volume mode 0400" =>
            secrets_should_be_consumable_from_pods_in_volume_with_mappings_and_item_mode_set(Secret, MAPPED_0400),
        "Projected Volume, Secrets, volume mode default" =>
            projected_secret_should_be_consumable_from_pods_in_volume(ProjectedSecret, PLAIN),
        "Projected Volume, Secrets, volume mode 0400" =>
            projected_secret_should_be_consumable_from_pods_in_volume_with_defaultmode_set(
                ProjectedSecret, DEFAULT_0400
            ),
        "Project Volume, Secrets, non-root, custom fsGroup" =>
            projected_secret_should_be_consumable_from_pods_in_volume_as_non_root_with_defaultmode_and_fsgroup_set(
                ProjectedSecret, OF_GROUP
            ),
        "Projected Volume, Secrets, mapped" =>
            projected_secret_should_be_consumable_from_pods_in_volume_with_mappings(ProjectedSecret, MAPPED),
        "Projected Volume, Secrets, mapped, volume mode 0400" =>
            projected_secret_should_be_consumable_from_pods_in_volume_with_mappings_and_item_mode_set(
                ProjectedSecret, MAPPED_0400
            ),
    }
}
pub(crate) use files::TEXTS as FILES;

mod pairs {
    use super::*;

    cases! { twice:
        "ConfigMap Volume, multiple volume maps" =>
            should_be_consumable_in_multiple_volumes_in_the_same_pod(ConfigMap),
        "Projected Volume, ConfigMap, multiple volume paths" =>
            projected_configmap_should_be_consumable_in_multiple_volumes_in_the_same_pod(ProjectedConfigMap),
        "Secrets Volume, mapping multiple volume paths" =>
            secrets_should_be_consumable_in_multiple_volumes_in_a_pod(Secret),
        "Projected Volume, Secrets, mapped, multiple paths" =>
            projected_secret_should_be_consumable_in_multiple_volumes_in_a_pod(ProjectedSecret),
    }
}
pub(crate) use pairs::TEXTS as PAIRS;

mod updates {
    use super::*;

    cases! { updated:
        "ConfigMap Volume, update" => updates_should_be_reflected_in_volume(ConfigMap),
        "Projected Volume, ConfigMap, update" =>
            projected_configmap_updates_should_be_reflected_in_volume(ProjectedConfigMap),
    }
}
pub(crate) use updates::TEXTS as UPDATES;

mod optionals {
    use super::*;

    cases! { optional:
        "ConfigMap Volume, create, update and delete" =>
            configmap_optional_updates_should_be_reflected_in_volume(ConfigMap),
        "Projected Volume, ConfigMap, create, update and delete" =>
            projected_configmap_optional_updates_should_be_reflected_in_volume(ProjectedConfigMap),
        "Secrets Volume, create, update and delete" => secrets_optional_updates_should_be_reflected_in_volume(Secret),
        "Projected Volume, Secrets, create, update delete" =>
            projected_secret_optional_updates_should_be_reflected_in_volume(ProjectedSecret),
    }
}
pub(crate) use optionals::TEXTS as OPTIONALS;

texts! {
    "ConfigMap Volume, text data, binary data" => binary_data_should_be_reflected_in_volume,
    "Secrets Volume, volume mode default, secret with same name in different namespace" =>
        should_be_able_to_mount_in_a_volume_regardless_of_a_different_secret_existing_with_same_name_in_different_namespace,
    "Projected Volume, multiple projections" => should_project_all_components_that_make_up_the_projection_api,
}

/// ConfigMap Volume, text data, binary data
#[test]
fn binary_data_should_be_reflected_in_volume() {
    test(async |bed| {
        let name = unique("binary");
        // de ca fe 00 ad 3e
        let map = json!({
            "metadata": { "name": name },
            "data": { "data-1": "value-1" },
            "binaryData": { "dump.bin": "3sr+AK0+" },
        });
        create(&bed.api::<core::ConfigMap>(), map).await;
        let mut pod = script("cat /volume/data-1; echo; hexdump -ve '1/1 \"%02x\"' /volume/dump.bin");
        pod["spec"]["volumes"] = json!([ConfigMap.volume("volume", &name, json!({}))]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "volume", "mountPath": "/volume" }]);
        assert_eq!(Pod::output(bed, pod).await, "value-1\ndecafe00ad3e");
    });
}

/// Secrets Volume, volume mode default, secret with same name in different namespace
#[test]
fn should_be_able_to_mount_in_a_volume_regardless_of_a_different_secret_existing_with_same_name_in_different_namespace()
 {
    test(async |bed| {
        let name = unique("same");
        let elsewhere = bed.another_namespace().await;
        let elsewhere: Api<core::Secret> = Api::namespaced(bed.client.clone(), &elsewhere);
        let other = json!({ "metadata": { "name": name }, "stringData": { "other": "another value" } });
        create(&elsewhere, other).await;
        Secret.create(bed, &name).await;
        let mut pod = script("ls /volume; cat /volume/data-1; echo; stat -Lc %a /volume/data-1");
        pod["spec"]["volumes"] = json!([Secret.volume("volume", &name, json!({}))]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "volume", "mountPath": "/volume" }]);
        assert_eq!(Pod::output(bed, pod).await, "data-1\ndata-2\ndata-3\nvalue-1\n644\n");
    });
}

/// Projected Volume, multiple projections
#[test]
fn should_project_all_components_that_make_up_the_projection_api() {
    test(async |bed| {
        let name = unique("all");
        ConfigMap.create(bed, &name).await;
        Secret.create(bed, &name).await;
        let mut pod = script("cat /all/podname; echo; cat /all/secret/data /all/map/data; ls /all");
        let field = json!({ "path": "podname", "fieldRef": { "fieldPath": "metadata.name" } });
        let sources = json!([
            { "secret": { "name": name, "items": [{ "key": "data-1", "path": "secret/data" }] } },
            { "configMap": { "name": name, "items": [{ "key": "data-2", "path": "map/data" }] } },
            { "downwardAPI": { "items": [field] } },
        ]);
        pod["spec"]["volumes"] = json!([{ "name": "all", "projected": { "sources": sources } }]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "all", "mountPath": "/all" }]);
        let own = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        assert_eq!(Pod::output(bed, pod).await, format!("{own}\nvalue-1value-2map\npodname\nsecret\n"));
    });
}
