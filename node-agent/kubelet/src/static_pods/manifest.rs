//! From a file to a pod of this node: pure.
//!
//! Defaults, names and annotations are upstream's (`pkg/kubelet/config/common.go`). The uid follows from the pod, the
//! node and the file: a file that says something else makes another pod, one that is merely written anew does not.

use std::collections::BTreeSet;
use std::path::Path;

use hawser_api::schema::{FieldValidation, Format, decode, type_of};
use hawser_api::validation::{dns_1123_label, dns_1123_subdomain};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, Toleration, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};

use super::{CONFIG_FILE, CONFIG_HASH, CONFIG_SOURCE};

/// Upstream's length of a uid: an MD5 sum's.
const UID_DIGITS: usize = 32;

/// The pod that a manifest describes, in JSON or YAML. Errors name the field.
pub(super) fn parse(content: &[u8], file: &Path, node_name: &str) -> Result<Pod, String> {
    let schema = type_of("", "v1", "Pod").ok_or("the type of pods is not known")?;
    // JSON is YAML too.
    let decoded =
        decode(schema, content, Format::Yaml, FieldValidation::Strict).map_err(|error| error.to_string())?;
    let pod: Pod = serde_json::from_value(decoded.object).map_err(|error| error.to_string())?;
    let metadata = ObjectMeta {
        name: pod.metadata.name,
        namespace: pod.metadata.namespace.filter(|namespace| !namespace.is_empty()),
        labels: pod.metadata.labels,
        annotations: pod.metadata.annotations,
        ..ObjectMeta::default()
    };
    let mut pod = Pod { metadata, spec: pod.spec, status: None };
    validate(&pod)?;
    let uid = uid(&pod, file, node_name);
    apply_defaults(&mut pod, uid, file, node_name);
    Ok(pod)
}

fn uid(pod: &Pod, file: &Path, node_name: &str) -> String {
    let text = serde_json::to_vec(pod).unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(format!("host:{node_name}\nfile:{}\n", file.display()));
    hash.update(text);
    let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..UID_DIGITS].to_owned()
}

fn apply_defaults(pod: &mut Pod, uid: String, file: &Path, node_name: &str) {
    let meta = &mut pod.metadata;
    let name = meta.name.take().unwrap_or_default();
    meta.name = Some(format!("{name}-{}", node_name.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".to_owned());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.to_owned(), uid.clone());
    annotations.insert(CONFIG_SOURCE.to_owned(), "file".to_owned());
    annotations.insert(CONFIG_FILE.to_owned(), file.display().to_string());
    meta.uid = Some(uid);
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node_name.to_owned());
    default_spec(spec);
    // Troubles of the node are no reason to leave it: there is no other.
    let anything = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&anything) {
        tolerations.push(anything);
    }
    pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
}

/// What the API server would have filled in, as far as it is more than what an absent field means anyway.
fn default_spec(spec: &mut PodSpec) {
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.enable_service_links.get_or_insert(true);
    for volume in spec.volumes.iter_mut().flatten() {
        if *volume == (Volume { name: volume.name.clone(), ..Volume::default() }) {
            volume.empty_dir = Some(Default::default());
        }
    }
    let host_network = spec.host_network == Some(true);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        for port in container.ports.iter_mut().flatten() {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
            if host_network {
                port.host_port.get_or_insert(port.container_port);
            }
        }
        if let Some(resources) = &mut container.resources {
            for (name, limit) in resources.limits.clone().unwrap_or_default() {
                resources.requests.get_or_insert_default().entry(name).or_insert(limit);
            }
        }
    }
}

fn validate(pod: &Pod) -> Result<(), String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    check("metadata.name", dns_1123_subdomain(name))?;
    if let Some(namespace) = &pod.metadata.namespace {
        check("metadata.namespace", dns_1123_label(namespace))?;
    }
    let Some(spec) = &pod.spec else { return Err("spec: Required value".to_owned()) };
    if spec.containers.is_empty() {
        return Err("spec.containers: Required value".to_owned());
    }
    let volumes = names("spec.volumes", spec.volumes.iter().flatten().map(|volume| volume.name.as_str()))?;
    let mut seen = BTreeSet::new();
    let init = spec.init_containers.iter().flatten();
    let lists = init
        .map(|c| ("spec.initContainers", c))
        .chain(spec.containers.iter().map(|c| ("spec.containers", c)));
    for (list, container) in lists {
        let field = format!("{list}[{:?}]", container.name);
        check(&format!("{field}.name"), dns_1123_label(&container.name))?;
        if !seen.insert(container.name.as_str()) {
            return Err(format!("{field}.name: Duplicate value: {:?}", container.name));
        }
        if container.image.as_deref().is_none_or(str::is_empty) {
            return Err(format!("{field}.image: Required value"));
        }
        for mount in container.volume_mounts.iter().flatten() {
            if !volumes.contains(mount.name.as_str()) {
                return Err(format!(
                    "{field}.volumeMounts[{:?}].name: Not found: {:?}",
                    mount.mount_path, mount.name
                ));
            }
            if mount.mount_path.is_empty() {
                return Err(format!("{field}.volumeMounts[{:?}].mountPath: Required value", mount.name));
            }
        }
    }
    if let Some(policy) = spec.restart_policy.as_deref()
        && !["Always", "OnFailure", "Never"].contains(&policy)
    {
        return Err(format!(
            "spec.restartPolicy: Unsupported value: {policy:?}: supported values: \"Always\", \"OnFailure\", \"Never\""
        ));
    }
    match reference(spec) {
        Some((field, kind)) => Err(format!("{field}: static pods may not reference {kind}")),
        None => Ok(()),
    }
}

/// The first object of the API that the pod names: such a pod could not be mirrored, and would wait for the API.
fn reference(spec: &PodSpec) -> Option<(String, &'static str)> {
    if spec.service_account_name.as_deref().is_some_and(|name| !name.is_empty()) {
        return Some(("spec.serviceAccountName".into(), "serviceaccounts"));
    }
    if spec.image_pull_secrets.iter().flatten().next().is_some() {
        return Some(("spec.imagePullSecrets".into(), "secrets"));
    }
    if spec.resource_claims.iter().flatten().next().is_some() {
        return Some(("spec.resourceClaims".into(), "resourceclaims"));
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let of_containers = containers.filter_map(of_container).next();
    let of_volumes = || spec.volumes.iter().flatten().filter_map(of_volume).next();
    of_containers.or_else(of_volumes)
}

fn of_container(container: &Container) -> Option<(String, &'static str)> {
    let found = |field: &str, kind| Some((format!("spec.containers[{:?}].{field}", container.name), kind));
    for source in container.env_from.iter().flatten() {
        match source {
            _ if source.config_map_ref.is_some() => return found("envFrom", "configmaps"),
            _ if source.secret_ref.is_some() => return found("envFrom", "secrets"),
            _ => {}
        }
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        match source {
            _ if source.config_map_key_ref.is_some() => return found("env", "configmaps"),
            _ if source.secret_key_ref.is_some() => return found("env", "secrets"),
            _ => {}
        }
    }
    None
}

fn of_volume(volume: &Volume) -> Option<(String, &'static str)> {
    let sources = || volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let kind = match volume {
        Volume { config_map: Some(_), .. } => "configmaps",
        Volume { secret: Some(_), .. } => "secrets",
        Volume { persistent_volume_claim: Some(_), .. } | Volume { ephemeral: Some(_), .. } => {
            "persistentvolumeclaims"
        }
        Volume { csi: Some(source), .. } if source.node_publish_secret_ref.is_some() => "secrets",
        _ if sources().any(|source| source.config_map.is_some()) => "configmaps",
        _ if sources().any(|source| source.secret.is_some()) => "secrets",
        _ if sources().any(|source| source.service_account_token.is_some()) => "serviceaccounts",
        _ if sources().any(|source| source.cluster_trust_bundle.is_some()) => "clustertrustbundles",
        _ if sources().any(|source| source.pod_certificate.is_some()) => "podcertificates",
        _ => return None,
    };
    Some((format!("spec.volumes[{:?}]", volume.name), kind))
}

fn names<'a>(field: &str, names: impl Iterator<Item = &'a str>) -> Result<BTreeSet<&'a str>, String> {
    let mut seen = BTreeSet::new();
    for name in names {
        check(&format!("{field}[{name:?}].name"), dns_1123_label(name))?;
        if !seen.insert(name) {
            return Err(format!("{field}[{name:?}].name: Duplicate value: {name:?}"));
        }
    }
    Ok(seen)
}

fn check(field: &str, complaints: Vec<String>) -> Result<(), String> {
    match complaints.into_iter().next() {
        Some(complaint) => Err(format!("{field}: Invalid value: {complaint}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Pod, String> {
        parse(text.as_bytes(), Path::new("/manifests/web.yaml"), "Node1")
    }

    const WEB: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  uid: of-no-importance
  annotations: { team: a }
spec:
  hostNetwork: true
  containers:
  - name: main
    image: web:1
    ports: [{ containerPort: 80 }]
    resources: { limits: { cpu: 100m } }
    volumeMounts: [{ name: data, mountPath: /data }]
  volumes: [{ name: data }]
";

    #[test]
    fn pod_gets_its_nodes_name_and_what_the_api_would_fill_in() {
        let pod = parsed(WEB).expect("a pod");
        let meta = &pod.metadata;
        assert_eq!((meta.name.as_deref(), meta.namespace.as_deref()), (Some("web-node1"), Some("default")));
        let uid = meta.uid.clone().expect("a uid");
        assert_eq!(uid.len(), 32);
        let annotations = meta.annotations.as_ref().expect("annotations");
        let annotation = |key: &str| annotations.get(key).map(String::as_str);
        assert_eq!(annotation("kubernetes.io/config.hash"), Some(uid.as_str()));
        assert_eq!(annotation("kubernetes.io/config.source"), Some("file"));
        assert_eq!(annotation("team"), Some("a"));
        let spec = pod.spec.as_ref().expect("a spec");
        assert_eq!(spec.node_name.as_deref(), Some("Node1"));
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
        let main = &spec.containers[0];
        assert_eq!(main.ports.as_ref().expect("ports")[0].host_port, Some(80));
        let resources = main.resources.as_ref().expect("resources");
        assert_eq!(resources.requests, resources.limits);
        assert!(spec.volumes.as_ref().expect("volumes")[0].empty_dir.is_some());
        let toleration = &spec.tolerations.as_ref().expect("tolerations")[0];
        assert_eq!(toleration.effect.as_deref(), Some("NoExecute"));
    }

    #[test]
    fn uid_follows_from_what_the_file_says() {
        let uid = |text: &str| parsed(text).expect("a pod").metadata.uid;
        assert_eq!(uid(WEB), uid(&format!("# A comment.\n{WEB}")));
        assert_ne!(uid(WEB), uid(&WEB.replace("web:1", "web:2")));
        let elsewhere = parse(WEB.as_bytes(), Path::new("/manifests/other.yaml"), "Node1").expect("a pod");
        assert_ne!(uid(WEB), elsewhere.metadata.uid);
        let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#;
        assert_eq!(parsed(json).expect("a pod").metadata.name.as_deref(), Some("j-node1"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |name: &str, from: &str, to: &str, expected: &str| {
            let text = WEB.replace(from, to);
            assert_ne!(text, WEB, "{name}");
            let error = parsed(&text).expect_err(name);
            assert!(error.contains(expected), "{name}: {error}");
        };
        check("no yaml", "kind: Pod", "kind: [", "Pod.kind");
        check("another kind", "kind: Pod", "kind: Service", "Service");
        check("an unknown field", "hostNetwork", "hostNetworks", "spec.hostNetworks");
        check("a bad name", "name: web\n", "name: Web\n", "metadata.name: Invalid value");
        check("no image", "image: web:1", "image: ''", "spec.containers[\"main\"].image: Required value");
        check("an unknown volume", "name: data, m", "name: date, m", "Not found: \"date\"");
        check(
            "a policy that there is not",
            "hostNetwork: true",
            "restartPolicy: Sometimes",
            "spec.restartPolicy: Unsupported value: \"Sometimes\"",
        );
        check(
            "an object of the API",
            "[{ name: data }]",
            "[{ name: data, secret: { secretName: s } }]",
            "spec.volumes[\"data\"]: static pods may not reference secrets",
        );
        check(
            "an account",
            "hostNetwork: true",
            "serviceAccountName: a",
            "spec.serviceAccountName: static pods may not reference serviceaccounts",
        );
    }
}
