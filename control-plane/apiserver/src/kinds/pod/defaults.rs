//! Defaults of pods and pod templates.

use hawser_api::usage::{Overhead, requests};
use serde_json::{Value, json};

use crate::kinds::value::Fields;

/// Mode bits of files that volumes make: 0644.
const DEFAULT_MODE: i32 = 0o644;

pub(crate) fn default_pod(pod: &mut Value) {
    let spec = pod.ensure("spec");
    default_spec(spec);
    spec.set_default("enableServiceLinks", true);
    let host_network = spec.flag("hostNetwork");
    for list in ["initContainers", "containers"] {
        for container in spec.list_mut(list) {
            requests_from_limits(container);
            if host_network {
                host_ports(container);
            }
        }
    }
    requests_of_pod(pod);
    if let Some(status) = pod.part_mut("status") {
        addresses(status);
    }
}

/// `podIP` is the first of `podIPs`; where they differ it is the one that counts.
fn addresses(status: &mut Value) {
    let first = status.list("podIPs").first().map_or("", |address| address.text("ip")).to_owned();
    match status.text("podIP") {
        "" if first.is_empty() => {}
        "" => status.set("podIP", first),
        one if one != first => {
            let all = json!([{ "ip": one }]);
            status.set("podIPs", all);
        }
        _ => {}
    }
}

/// Defaults of the template in a workload. A pod's own defaults are added when it is made of it.
pub(crate) fn default_template(template: &mut Value) {
    template.ensure("metadata");
    default_spec(template.ensure("spec"));
}

fn default_spec(spec: &mut Value) {
    spec.set_default("dnsPolicy", "ClusterFirst");
    spec.set_default("restartPolicy", "Always");
    spec.set_default("schedulerName", "default-scheduler");
    spec.set_default("terminationGracePeriodSeconds", 30);
    spec.ensure("securityContext");
    // Two names of one field: the older one follows.
    let account = match spec.text("serviceAccountName") {
        "" => spec.text("serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        spec.set("serviceAccountName", account.clone());
        spec.set("serviceAccount", account);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.list_mut(list) {
            default_container(container);
        }
    }
    for volume in spec.list_mut("volumes") {
        default_volume(volume);
    }
}

fn default_container(container: &mut Value) {
    container.set_default("imagePullPolicy", pull_policy(container.text("image")));
    container.set_default("terminationMessagePath", "/dev/termination-log");
    container.set_default("terminationMessagePolicy", "File");
    if !container.has("resources") {
        container.set("resources", json!({}));
    }
    for port in container.list_mut("ports") {
        port.set_default("protocol", "TCP");
    }
    for env in container.list_mut("env") {
        if let Some(field) = env.part_mut("valueFrom.fieldRef") {
            field.set_default("apiVersion", "v1");
        }
        if let Some(field) = env.part_mut("valueFrom.resourceFieldRef") {
            field.set_default("divisor", "0");
        }
        if let Some(field) = env.part_mut("valueFrom.fileKeyRef") {
            field.set_default("optional", false);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.part_mut(name) {
            default_probe(probe);
        }
    }
    for name in ["lifecycle.postStart.httpGet", "lifecycle.preStop.httpGet"] {
        if let Some(get) = container.part_mut(name) {
            default_http_get(get);
        }
    }
}

/// `Always` for images that can change under their name.
fn pull_policy(image: &str) -> &'static str {
    let digest = image.contains('@');
    let last = image.rsplit('/').next().unwrap_or_default();
    let tag = last.split('@').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    match tag {
        Some("latest") if !digest => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn default_probe(probe: &mut Value) {
    // Zero means unset: upstream's own rule.
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe.int(field).unwrap_or_default() == 0 {
            probe.set(field, value);
        }
    }
    if let Some(get) = probe.part_mut("httpGet") {
        default_http_get(get);
    }
    if let Some(grpc) = probe.part_mut("grpc")
        && !grpc.has("service")
    {
        grpc.set("service", "");
    }
}

fn default_http_get(get: &mut Value) {
    get.set_default("path", "/");
    get.set_default("scheme", "HTTP");
}

fn default_volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|fields| fields.keys().all(|name| name == "name")) {
        volume.set("emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(part) = volume.part_mut(source) {
            part.set_default("defaultMode", DEFAULT_MODE);
        }
    }
    default_downward_items(volume, "downwardAPI.items");
    for source in volume.list_mut("projected.sources") {
        default_downward_items(source, "downwardAPI.items");
        if let Some(token) = source.part_mut("serviceAccountToken") {
            token.set_default("expirationSeconds", 3600);
        }
    }
    if let Some(path) = volume.part_mut("hostPath")
        && !path.has("type")
    {
        path.set("type", "");
    }
    if let Some(iscsi) = volume.part_mut("iscsi") {
        iscsi.set_default("iscsiInterface", "default");
    }
    if let Some(claim) = volume.part_mut("ephemeral.volumeClaimTemplate.spec") {
        claim.set_default("volumeMode", "Filesystem");
    }
    if let Some(image) = volume.part_mut("image") {
        let policy = pull_policy(image.text("reference"));
        image.set_default("pullPolicy", policy);
    }
}

fn default_downward_items(volume: &mut Value, path: &str) {
    for item in volume.list_mut(path) {
        if let Some(field) = item.part_mut("fieldRef") {
            field.set_default("apiVersion", "v1");
        }
        if let Some(field) = item.part_mut("resourceFieldRef") {
            field.set_default("divisor", "0");
        }
    }
}

/// What is limited and not asked for is asked for up to its limit.
fn requests_from_limits(container: &mut Value) {
    let asked = container.at("resources.requests");
    let limits = container.map("resources.limits").iter().filter(|(name, _)| asked.get(name).is_none());
    let limits: Vec<(String, Value)> = limits.map(|(name, limit)| (name.clone(), limit.clone())).collect();
    for (name, limit) in limits {
        container.ensure("resources.requests").set(&name, limit);
    }
}

/// A pod that is limited as a whole asks for what its containers ask for together, and for its limits where none of them
/// asks (KEP-2837).
fn requests_of_pod(pod: &mut Value) {
    if pod.map("spec.resources.limits").is_empty() {
        return;
    }
    let together = requests(pod, Overhead::Excluded);
    let asked = pod.ensure("spec.resources.requests");
    for name in ["cpu", "memory"] {
        if let Some(amount) = together.get(name) {
            asked.set_default(name, amount.to_string());
        }
    }
    requests_from_limits(pod.ensure("spec"));
}

fn host_ports(container: &mut Value) {
    for port in container.list_mut("ports") {
        if port.int("hostPort").unwrap_or_default() == 0
            && let Some(number) = port.int("containerPort")
        {
            port.set("hostPort", number);
        }
    }
}
