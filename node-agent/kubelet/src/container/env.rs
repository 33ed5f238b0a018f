//! A container's environment: service variables, envFrom, env, in that order; later entries win.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::resource::ObjectKey;
use hawser_services::Service;
use k8s_openapi::api::core::v1::{ConfigMap, EnvVar, EnvVarSource, FileKeySelector, Secret};

use super::ConfigError;
use super::downward::Fields;
use super::env_file;
use super::expand::expand;
use super::service_env::service_variables;
use crate::interfaces::Objects;
use crate::pod::DesiredContainer;
use crate::volumes::{MountedVolumes, sub_path};

/// Reads the objects that an environment names; the node's caches, or a test's maps.
pub trait Lookup {
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>>;
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>>;
    /// Services of the namespace, and the API server's own.
    fn services(&self, namespace: &str) -> Vec<Arc<Service>>;
}

impl Lookup for Objects {
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        self.config_maps.get(&ObjectKey::new(namespace, name))
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        self.secrets.get(&ObjectKey::new(namespace, name))
    }

    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.services.filter(|service| &*service.key.namespace == namespace || is_api_server(service))
    }
}

fn is_api_server(service: &Service) -> bool {
    &*service.key.namespace == "default" && &*service.key.name == "kubernetes"
}

/// The environment, in an order in which each name appears once.
pub fn environment(
    fields: &Fields<'_>,
    container: &DesiredContainer,
    lookup: &dyn Lookup,
    volumes: &MountedVolumes,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |values: &mut BTreeMap<String, String>, name: String, value: String| {
        if values.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    let service_values = services(fields, lookup);
    for (name, value) in from_objects(fields, container, lookup)? {
        set(&mut values, name, value);
    }
    for var in container.spec.env.iter().flatten() {
        let known = |name: &str| values.get(name).or_else(|| service_values.get(name)).cloned();
        let value = match var.value_from.as_ref().and_then(|source| source.file_key_ref.as_ref()) {
            Some(selector) => from_file(volumes, selector)?,
            None => variable(fields, container, lookup, var, known)?,
        };
        if let Some(value) = value {
            set(&mut values, var.name.clone(), value);
        }
    }
    let mut result: Vec<(String, String)> =
        service_values.into_iter().filter(|(name, _)| !values.contains_key(name)).collect();
    result.extend(order.into_iter().filter_map(|name| values.remove_entry(&name)));
    Ok(result)
}

fn services(fields: &Fields<'_>, lookup: &dyn Lookup) -> BTreeMap<String, String> {
    let links = fields.pod.spec().enable_service_links != Some(false);
    let namespace = fields.pod.namespace();
    let all = lookup.services(namespace);
    let is_own = |service: &&Service| &*service.key.namespace == namespace;
    let visible = all.iter().map(AsRef::as_ref);
    let mut visible: Vec<&Service> =
        visible.filter(|service| is_api_server(service) || links && is_own(service)).collect();
    // The pod's own namespace comes last, so that its `kubernetes` service wins.
    visible.sort_by_key(is_own);
    service_variables(visible).into_iter().collect()
}

fn from_objects(
    fields: &Fields<'_>,
    container: &DesiredContainer,
    lookup: &dyn Lookup,
) -> Result<Vec<(String, String)>, ConfigError> {
    let namespace = fields.pod.namespace();
    let mut out = Vec::new();
    for source in container.spec.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match lookup.config_map(namespace, &reference.name) {
                Some(object) => {
                    let data = object.data.iter().flatten();
                    out.extend(data.map(|(key, value)| (format!("{prefix}{key}"), value.clone())));
                }
                None if reference.optional == Some(true) => {}
                None => return Err(missing("configmap", &reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match lookup.secret(namespace, &reference.name) {
                Some(object) => {
                    let data = object.data.iter().flatten();
                    out.extend(data.map(|(key, value)| (format!("{prefix}{key}"), text(&value.0))));
                }
                None if reference.optional == Some(true) => {}
                None => return Err(missing("secret", &reference.name)),
            }
        }
    }
    Ok(out)
}

fn missing(kind: &'static str, name: &str) -> ConfigError {
    ConfigError::ObjectMissing { kind, name: name.to_owned() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn variable(
    fields: &Fields<'_>,
    container: &DesiredContainer,
    lookup: &dyn Lookup,
    var: &EnvVar,
    known: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, ConfigError> {
    match &var.value_from {
        Some(source) => from_source(fields, container, lookup, source),
        None => Ok(Some(expand(var.value.as_deref().unwrap_or_default(), known))),
    }
}

/// `None` for an optional reference that leads nowhere: the variable is left out.
fn from_source(
    fields: &Fields<'_>,
    container: &DesiredContainer,
    lookup: &dyn Lookup,
    source: &EnvVarSource,
) -> Result<Option<String>, ConfigError> {
    let namespace = fields.pod.namespace();
    if let Some(selector) = &source.field_ref {
        return fields.field(&selector.field_path).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return fields.resource(&container.spec, selector).map(Some);
    }
    let (kind, name, key, optional, object_found, value) = if let Some(selector) = &source.config_map_key_ref
    {
        let object = lookup.config_map(namespace, &selector.name);
        let value = object.as_ref().and_then(|o| o.data.as_ref()?.get(&selector.key).cloned());
        ("configmap", &selector.name, &selector.key, selector.optional, object.is_some(), value)
    } else if let Some(selector) = &source.secret_key_ref {
        let object = lookup.secret(namespace, &selector.name);
        let value = object.as_ref().and_then(|o| o.data.as_ref()?.get(&selector.key).map(|v| text(&v.0)));
        ("secret", &selector.name, &selector.key, selector.optional, object.is_some(), value)
    } else {
        return Err(ConfigError::Unsupported { what: "environment source", value: "none".into() });
    };
    match value {
        Some(value) => Ok(Some(value)),
        None if optional == Some(true) => Ok(None),
        None if !object_found => Err(missing(kind, name)),
        None => Err(ConfigError::KeyMissing {
            kind: if kind == "secret" { "Secret" } else { "ConfigMap" },
            namespace: namespace.to_owned(),
            name: name.clone(),
            key: key.clone(),
        }),
    }
}

/// `None` for an optional variable whose file or key is not there.
fn from_file(volumes: &MountedVolumes, selector: &FileKeySelector) -> Result<Option<String>, ConfigError> {
    let FileKeySelector { key, path, volume_name, optional } = selector;
    let failed = |why: String| ConfigError::EnvFile { volume: volume_name.clone(), path: path.clone(), why };
    let volume = volumes.get(volume_name);
    let volume =
        volume.ok_or_else(|| ConfigError::ObjectMissing { kind: "volume", name: volume_name.clone() })?;
    let bytes = sub_path::read(&volume.path, path, env_file::MAX_BYTES + 1);
    let value = match bytes.map_err(|error| failed(error.to_string()))? {
        Some(bytes) if bytes.len() as u64 > env_file::MAX_BYTES => {
            return Err(failed(format!("it has more than {} bytes", env_file::MAX_BYTES)));
        }
        Some(bytes) => env_file::value(&text(&bytes), key).map_err(failed)?,
        None if *optional == Some(true) => None,
        None => return Err(failed("it is not there".into())),
    };
    match value {
        None if *optional != Some(true) => Err(failed(format!("it has no key {key:?}"))),
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::resources::NodeCapacity;
    use crate::pod::testing::{container, pod, spec};
    use crate::volumes::Mounted;
    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::{
        ConfigMapEnvSource, ConfigMapKeySelector, Container, EnvFromSource, ObjectFieldSelector,
        SecretKeySelector,
    };

    struct Fixed;

    impl Lookup for Fixed {
        fn config_map(&self, _: &str, name: &str) -> Option<Arc<ConfigMap>> {
            let data = [("color".into(), "blue".into()), ("size".into(), "9".into())].into();
            (name == "settings").then(|| Arc::new(ConfigMap { data: Some(data), ..ConfigMap::default() }))
        }

        fn secret(&self, _: &str, name: &str) -> Option<Arc<Secret>> {
            let data = [("password".into(), ByteString(b"hunter2".to_vec()))].into();
            (name == "login").then(|| Arc::new(Secret { data: Some(data), ..Secret::default() }))
        }

        fn services(&self, _: &str) -> Vec<Arc<Service>> {
            Vec::new()
        }
    }

    fn env(container: Container) -> Result<BTreeMap<String, String>, String> {
        env_with(container, &MountedVolumes::new())
    }

    fn env_with(container: Container, volumes: &MountedVolumes) -> Result<BTreeMap<String, String>, String> {
        let pod = pod(spec("Always", vec![], vec![container]));
        let fields = Fields {
            pod: &pod,
            pod_ips: &[],
            node_name: "n1",
            node_ips: &[],
            capacity: NodeCapacity::default(),
        };
        let list = environment(&fields, &pod.containers[0], &Fixed, volumes).map_err(|e| e.to_string())?;
        Ok(list.into_iter().collect())
    }

    fn var(name: &str, value: &str) -> EnvVar {
        EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
    }

    fn var_from(name: &str, source: EnvVarSource) -> EnvVar {
        EnvVar { name: name.into(), value: None, value_from: Some(source) }
    }

    fn from_map(name: &str, key: &str, optional: Option<bool>) -> EnvVarSource {
        let selector = ConfigMapKeySelector { name: name.into(), key: key.into(), optional };
        EnvVarSource { config_map_key_ref: Some(selector), ..EnvVarSource::default() }
    }

    #[test]
    fn sources_combine_and_later_ones_win() {
        let reference = ConfigMapEnvSource { name: "settings".into(), optional: None };
        let env_from = EnvFromSource {
            prefix: Some("P_".into()),
            config_map_ref: Some(reference),
            ..EnvFromSource::default()
        };
        let secret = SecretKeySelector { name: "login".into(), key: "password".into(), optional: None };
        let field = ObjectFieldSelector { field_path: "metadata.name".into(), api_version: None };
        let mut c = container("c");
        c.env_from = Some(vec![env_from]);
        c.env = Some(vec![
            var("P_size", "10"),
            var("A", "$(P_color)-$(P_size)-$(NONE)"),
            var_from("PASSWORD", EnvVarSource { secret_key_ref: Some(secret), ..EnvVarSource::default() }),
            var_from("NAME", EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
            var_from("GONE", from_map("none", "k", Some(true))),
        ]);
        let values = env(c).expect("complete");
        let expected = [
            ("A", "blue-10-$(NONE)"),
            ("NAME", "web"),
            ("PASSWORD", "hunter2"),
            ("P_color", "blue"),
            ("P_size", "10"),
        ];
        let shown: Vec<(&str, &str)> = values.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn values_come_from_files_that_containers_wrote() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("app.env"), "TOKEN='x y'\n").expect("written");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link.env")).expect("linked");
        let mounted =
            Mounted { path: dir.path().to_owned(), read_only: false, no_exec: false, is_block: false };
        let volumes = MountedVolumes::from([("config".to_owned(), mounted)]);
        let with = |volume_name: &str, path: &str, key: &str, optional: Option<bool>| {
            let (volume_name, path, key) = (volume_name.into(), path.into(), key.into());
            let selector = FileKeySelector { volume_name, path, key, optional };
            let mut c = container("c");
            let source = EnvVarSource { file_key_ref: Some(selector), ..EnvVarSource::default() };
            c.env = Some(vec![var_from("A", source)]);
            env_with(c, &volumes).map(|env| env.get("A").cloned())
        };
        assert_eq!(with("config", "app.env", "TOKEN", None), Ok(Some("x y".into())));
        assert_eq!(with("config", "app.env", "NONE", Some(true)), Ok(None));
        assert_eq!(with("config", "none.env", "TOKEN", Some(true)), Ok(None));
        let told = |path: &str, key: &str| with("config", path, key, None).unwrap_err();
        let place = |path: &str| format!("environment file {path:?} of volume \"config\": ");
        assert_eq!(told("app.env", "NONE"), place("app.env") + "it has no key \"NONE\"");
        assert_eq!(told("none.env", "TOKEN"), place("none.env") + "it is not there");
        assert!(told("link.env", "root").starts_with(&place("link.env")), "links do not lead out");
        assert_eq!(with("other", "app.env", "A", None), Err("volume \"other\" not found".into()));
    }

    #[test]
    fn missing_references_say_what_is_missing() {
        let mut c = container("c");
        c.env = Some(vec![var_from("X", from_map("none", "k", None))]);
        assert_eq!(env(c.clone()), Err("configmap \"none\" not found".into()));
        c.env = Some(vec![var_from("X", from_map("settings", "k", None))]);
        assert_eq!(env(c), Err("couldn't find key k in ConfigMap default/settings".into()));
    }
}
