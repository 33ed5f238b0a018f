//! The parts of a pod that have writers of their own: containers for debugging (KEP-277), and resources while it runs
//! (KEP-1287).

use std::collections::HashSet;

use hawser_api::{
    FieldError,
    apply::{ANY, Reach},
    usage::qos_class,
};
use serde_json::{Value, json};

use super::{
    annotations::{self, MIRROR},
    containers::{self, Around},
};
use crate::kinds::value::{Fields, Path};

const SPEC: Path<'static> = Path::Root("spec");

/// What an ephemeral container has none of: it is not served, not probed, not restarted, and not counted.
const NOT_EPHEMERAL: [&str; 9] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

/// The old pod with the new one's ephemeral containers.
pub(crate) fn prepare_ephemeral(new: &mut Value, old: &Value) {
    let mut kept = keep(new, old);
    kept.ensure("spec").copy_field("ephemeralContainers", new.at("spec"));
    *new = kept;
}

/// The fields that a write of `resize` reaches.
pub(crate) const REACH_OF_RESIZE: Reach<'static> = Reach::Only(&[
    &["spec", "containers", ANY, "resources"],
    &["spec", "containers", ANY, "resizePolicy"],
    &["spec", "initContainers", ANY, "resources"],
    &["spec", "initContainers", ANY, "resizePolicy"],
]);

/// The old pod with the new one's resources; validation tells where the containers are not the same ones.
pub(crate) fn prepare_resize(new: &mut Value, old: &Value) {
    let mut kept = keep(new, old);
    for list in ["containers", "initContainers"] {
        let (wanted, known) = (new.at("spec").list(list), kept.ensure("spec"));
        if same_names(wanted, known.list(list)) {
            for (container, wanted) in known.list_mut(list).iter_mut().zip(wanted) {
                container.copy_field("resources", wanted);
                container.copy_field("resizePolicy", wanted);
            }
        } else {
            known.copy_field(list, new.at("spec"));
        }
    }
    *new = kept;
}

/// The old pod under the new one's name, which validation compares.
fn keep(new: &Value, old: &Value) -> Value {
    let mut kept = old.clone();
    for field in ["name", "namespace", "uid"] {
        if new.at("metadata").has(field) {
            kept.ensure("metadata").copy_field(field, new.at("metadata"));
        }
    }
    kept
}

fn same_names(new: &[Value], old: &[Value]) -> bool {
    new.len() == old.len() && new.iter().zip(old).all(|(new, old)| new.text("name") == old.text("name"))
}

/// What a pod cannot have from the beginning: ephemeral containers, a node before its gates are open.
pub(super) fn validate_new(pod: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = pod.at("spec");
    if !spec.list("ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden(SPEC.field("ephemeralContainers"), "cannot be set on create"));
    }
    if !spec.text("nodeName").is_empty() && !spec.list("schedulingGates").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(SPEC.field("nodeName"), detail));
    }
    annotations::agree(&mut errors, &SPEC, pod.at("metadata.annotations"), spec);
    errors
}

/// Rules for the ephemeral containers of a pod.
pub(super) fn validate_containers(errors: &mut Vec<FieldError>, path: &Path<'_>, around: &Around<'_>) {
    let spec = around.spec;
    let names = |list: &str| -> HashSet<&str> {
        spec.list(list).iter().map(|container| container.text("name")).collect()
    };
    let mut others = names("containers");
    others.extend(names("initContainers"));
    let mut taken = others.clone();
    let list_path = path.field("ephemeralContainers");
    for (index, container) in spec.list("ephemeralContainers").iter().enumerate() {
        let path = list_path.index(index);
        containers::common(errors, &path, container, around);
        containers::image_of_pod(errors, &path, container);
        let name = container.text("name");
        if !taken.insert(name) {
            errors.push(FieldError::duplicate(path.field("name"), name));
        }
        let target = container.text("targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.push(FieldError::not_found(path.field("targetContainerName"), target));
        }
        for field in NOT_EPHEMERAL {
            let value = container.at(field);
            if !value.is_null() && *value != json!({}) && *value != json!([]) {
                let detail = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(path.field(field), detail));
            }
        }
        let mounts = path.field("volumeMounts");
        for (index, mount) in container.list("volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.text(field).is_empty() {
                    let path = mounts.index(index);
                    let detail = "cannot be set for an Ephemeral Container";
                    errors.push(FieldError::forbidden(path.field(field), detail));
                }
            }
        }
    }
}

/// Rules about a change of the ephemeral containers: those that are there stay as they are.
pub(crate) fn validate_ephemeral(new: &Value, old: &Value) -> Vec<FieldError> {
    if old.at("metadata.annotations").get(MIRROR).is_some() {
        return vec![FieldError::forbidden("", "static pods do not support ephemeral containers")];
    }
    let wanted = new.list("spec.ephemeralContainers");
    let mut errors = Vec::new();
    for known in old.list("spec.ephemeralContainers") {
        let name = known.text("name");
        let what = match wanted.iter().find(|container| container.text("name") == name) {
            Some(same) if same == known => continue,
            Some(_) => "changed",
            None => "removed",
        };
        let detail = format!("existing ephemeral containers {name:?} may not be {what}\n");
        errors.push(FieldError::forbidden(SPEC.field("ephemeralContainers"), detail));
    }
    errors
}

/// Rules about a change of the resources.
pub(crate) fn validate_resize(new: &Value, old: &Value) -> Vec<FieldError> {
    if old.at("metadata.annotations").get(MIRROR).is_some() {
        return vec![FieldError::forbidden("", "static pods cannot be resized")];
    }
    if old.text("spec.os.name") == "windows" {
        return vec![FieldError::forbidden("", "windows pods cannot be resized")];
    }
    let mut errors = Vec::new();
    let class = old.text("status.qosClass");
    if class != qos_class(new.at("spec")) {
        errors.push(FieldError::invalid(SPEC, class, "Pod QOS Class may not change as a result of resizing"));
    }
    if !is_supported(old) {
        errors.push(FieldError::forbidden(SPEC, "Pod running on node without support for resize"));
    }
    for list in ["containers", "initContainers"] {
        resized(&mut errors, new.at("spec"), old.at("spec"), list);
    }
    if errors.is_empty() && without_amounts(new.at("spec")) != without_amounts(old.at("spec")) {
        errors.push(FieldError::forbidden(SPEC, "only cpu and memory resources are mutable"));
    }
    errors
}

/// A node agent that can resize says what running containers have.
fn is_supported(pod: &Value) -> bool {
    let running = || pod.list("status.containerStatuses").iter().find(|status| status.has("state.running"));
    pod.text("status.phase") != "Running" || running().is_none_or(|status| status.has("resources"))
}

fn resized(errors: &mut Vec<FieldError>, new: &Value, old: &Value, list: &str) {
    let path = SPEC.field(list);
    let (new, old) = (new.list(list), old.list(list));
    if new.len() != old.len() {
        let detail = format!("{list} may not be added or removed on resize");
        errors.push(FieldError::forbidden(path, detail));
        return;
    }
    for (index, (new, old)) in new.iter().zip(old).enumerate() {
        let path = path.index(index);
        if new.text("name") != old.text("name") {
            let detail = format!("{list} may not be renamed or reordered on resize");
            errors.push(FieldError::forbidden(path.field("name"), detail));
            continue;
        }
        let path = path.field("resources");
        if list == "initContainers" && old.text("restartPolicy") != "Always" {
            if new.at("resources") != old.at("resources") {
                let detail = "resources for non-sidecar init containers are immutable";
                errors.push(FieldError::forbidden(path, detail));
            }
            continue;
        }
        for amounts in ["requests", "limits"] {
            let kept = |name: &String| new.at("resources").map(amounts).contains_key(name);
            if !old.at("resources").map(amounts).keys().all(kept) {
                let detail = format!("resource {amounts} cannot be removed");
                errors.push(FieldError::forbidden(path.field(amounts), detail));
            }
        }
    }
}

/// The spec without what a resize may change.
fn without_amounts(spec: &Value) -> Value {
    let mut spec = spec.clone();
    for list in ["containers", "initContainers"] {
        for container in spec.list_mut(list) {
            let Some(resources) = container.part_mut("resources") else { continue };
            for amounts in ["requests", "limits"] {
                let Some(left) = resources.part_mut(amounts) else { continue };
                left.drop_field("cpu");
                left.drop_field("memory");
                if *left == json!({}) {
                    resources.drop_field(amounts);
                }
            }
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({
            "metadata": { "name": "p", "namespace": "n", "labels": { "a": "b" } },
            "spec": {
                "containers": [
                    { "name": "main", "image": "i", "resources": {
                        "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "memory": "128Mi" } } },
                    { "name": "side", "image": "i", "resources": {} },
                ],
                "initContainers": [{ "name": "first", "image": "i", "resources": {} }],
            },
            "status": { "phase": "Pending", "qosClass": "Burstable" },
        })
    }

    fn texts(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn resize(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let (old, mut new) = (pod(), pod());
        change(&mut new);
        prepare_resize(&mut new, &old);
        texts(&validate_resize(&new, &old))
    }

    #[test]
    fn a_resize_changes_amounts_alone() {
        let (old, mut new) = (pod(), pod());
        new["metadata"]["labels"]["a"] = "c".into();
        new["spec"]["containers"][0]["image"] = "other".into();
        new["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "200m".into();
        new["spec"]["containers"][1]["resources"]["requests"] = json!({ "memory": "1Mi" });
        prepare_resize(&mut new, &old);
        assert!(validate_resize(&new, &old).is_empty());
        assert_eq!(new["metadata"], old["metadata"]);
        assert_eq!(new["spec"]["containers"][0]["image"], "i");
        assert_eq!(new["spec"]["containers"][0]["resources"]["requests"]["cpu"], "200m");
        assert_eq!(new["spec"]["containers"][1]["resources"]["requests"]["memory"], "1Mi");
    }

    #[test]
    fn resizes_are_refused() {
        let containers =
            |new: &mut Value| new["spec"]["containers"].as_array_mut().expect("a list").swap(0, 1);
        let detail = "Forbidden: containers may not be renamed or reordered on resize";
        let names = [0, 1].map(|index| format!("spec.containers[{index}].name: {detail}"));
        assert_eq!(resize(containers), names);

        let removed = resize(|new| drop(new["spec"]["containers"][0]["resources"].drop_field("limits")));
        assert_eq!(
            removed,
            ["spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"]
        );

        let class = resize(|new| {
            let all = json!({ "cpu": "1", "memory": "128Mi" });
            for container in [0, 1] {
                new["spec"]["containers"][container]["resources"] = json!({ "requests": all, "limits": all });
            }
            new["spec"]["initContainers"] = json!([]);
        });
        assert!(class[0].ends_with("Pod QOS Class may not change as a result of resizing"), "{class:?}");

        let init =
            resize(|new| new["spec"]["initContainers"][0]["resources"] = json!({ "limits": { "cpu": "1" } }));
        let detail = "Forbidden: resources for non-sidecar init containers are immutable";
        assert_eq!(init, [format!("spec.initContainers[0].resources: {detail}")]);

        let storage = resize(|new| {
            new["spec"]["containers"][0]["resources"]["limits"]["ephemeral-storage"] = "1Gi".into();
        });
        assert_eq!(storage, ["spec: Forbidden: only cpu and memory resources are mutable"]);
    }

    #[test]
    fn a_running_pod_is_resized_where_its_node_can() {
        let mut old = pod();
        old["status"]["phase"] = "Running".into();
        old["status"]["containerStatuses"] = json!([{ "name": "main", "state": { "running": {} } }]);
        let refused = texts(&validate_resize(&old, &old));
        assert_eq!(refused, ["spec: Forbidden: Pod running on node without support for resize"]);
        old["status"]["containerStatuses"][0]["resources"] = json!({});
        assert!(validate_resize(&old, &old).is_empty());
    }

    #[test]
    fn ephemeral_containers_are_added_alone() {
        let (mut old, mut new) = (pod(), pod());
        let debugger = json!({ "name": "debugger", "image": "busybox", "targetContainerName": "main" });
        new["spec"]["ephemeralContainers"] = json!([debugger]);
        new["spec"]["containers"][0]["image"] = "other".into();
        prepare_ephemeral(&mut new, &old);
        assert_eq!(new["spec"]["containers"], old["spec"]["containers"]);
        assert!(validate_ephemeral(&new, &old).is_empty());

        old["spec"]["ephemeralContainers"] = json!([debugger, { "name": "gone" }]);
        new["spec"]["ephemeralContainers"][0]["image"] = "another".into();
        let said = texts(&validate_ephemeral(&new, &old));
        assert!(said[0].contains("\"debugger\" may not be changed"), "{said:?}");
        assert!(said[1].contains("\"gone\" may not be removed"), "{said:?}");
    }

    #[test]
    fn rules_for_ephemeral_containers() {
        let spec = json!({
            "containers": [{ "name": "main" }],
            "ephemeralContainers": [
                { "name": "main", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File",
                  "targetContainerName": "none", "ports": [{ "containerPort": 1, "protocol": "TCP" }],
                  "volumeMounts": [{ "name": "v", "mountPath": "/v", "subPath": "s" }] },
            ],
        });
        let mut errors = Vec::new();
        let volume = json!({ "name": "v", "emptyDir": {} });
        let volumes = std::collections::HashMap::from([("v", &volume)]);
        validate_containers(&mut errors, &SPEC, &Around { spec: &spec, volumes });
        let path = "spec.ephemeralContainers[0]";
        let detail = "Forbidden: cannot be set for an Ephemeral Container";
        assert_eq!(
            texts(&errors),
            [
                format!("{path}.name: Duplicate value: \"main\""),
                format!("{path}.targetContainerName: Not found: \"none\""),
                format!("{path}.ports: {detail}"),
                format!("{path}.volumeMounts[0].subPath: {detail}"),
            ]
        );
        assert_eq!(texts(&validate_new(&json!({ "spec": spec }))).len(), 1);
    }
}
