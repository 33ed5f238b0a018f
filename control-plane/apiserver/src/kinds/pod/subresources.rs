//! The parts of a pod that have writers of their own: containers for debugging (KEP-277), and resources while it runs, of
//! its containers (KEP-1287) and of the pod as a whole (KEP-5419).

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

/// The lists of containers that a resize reaches, in upstream's order.
const RESIZED: [&str; 2] = ["initContainers", "containers"];

/// The parts of resources that a resize reaches.
const AMOUNTS: [&str; 2] = ["requests", "limits"];

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
    &["spec", "resources"],
]);

/// The old pod with the new one's resources; validation tells where the containers are not the same ones.
pub(crate) fn prepare_resize(new: &mut Value, old: &Value) {
    let mut kept = keep(new, old);
    kept.ensure("spec").copy_field("resources", new.at("spec"));
    for list in RESIZED {
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
    let (new, old) = (new.at("spec"), old.at("spec"));
    whole(&mut errors, new.at("resources"), old.at("resources"));
    let known = errors.len();
    RESIZED.iter().for_each(|list| same_containers(&mut errors, new, old, list));
    if errors.len() == known {
        RESIZED.iter().for_each(|list| resized(&mut errors, new, old, list));
    }
    errors
}

/// A node agent that can resize says what running containers have.
fn is_supported(pod: &Value) -> bool {
    let running = || pod.list("status.containerStatuses").iter().find(|status| status.has("state.running"));
    pod.text("status.phase") != "Running" || running().is_none_or(|status| status.has("resources"))
}

/// What the pod as a whole has may be added and changed, not taken away.
fn whole(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    let asks = |resources: &Value| AMOUNTS.iter().any(|amounts| !resources.map(amounts).is_empty());
    if !asks(new) && !asks(old) {
        return;
    }
    let path = SPEC.field("resources");
    if new.is_null() {
        errors.push(FieldError::forbidden(path, "pod-level resources cannot be removed"));
        return;
    }
    none_removed(errors, &path, (new, old), "pod-level resource");
    if without_amounts(new) != without_amounts(old) {
        errors.push(FieldError::forbidden(SPEC, "only cpu and memory resources are mutable at pod-level"));
    }
}

/// The containers of a list are the same ones, in the same order.
fn same_containers(errors: &mut Vec<FieldError>, new: &Value, old: &Value, list: &str) {
    let path = SPEC.field(list);
    let (new, old) = (new.list(list), old.list(list));
    if new.len() != old.len() {
        let detail = format!("{list} may not be added or removed on resize");
        errors.push(FieldError::forbidden(path, detail));
        return;
    }
    for (index, (new, old)) in new.iter().zip(old).enumerate() {
        if new.text("name") != old.text("name") {
            let detail = format!("{list} may not be renamed or reordered on resize");
            errors.push(FieldError::forbidden(path.index(index).field("name"), detail));
        }
    }
}

/// Of the containers of a list, which are the same ones, amounts of cpu and memory alone are changed.
fn resized(errors: &mut Vec<FieldError>, new: &Value, old: &Value, list: &str) {
    let list_path = SPEC.field(list);
    for (index, (new, old)) in new.list(list).iter().zip(old.list(list)).enumerate() {
        let path = list_path.index(index);
        let (resources, known) = (new.at("resources"), old.at("resources"));
        none_removed(errors, &path.field("resources"), (resources, known), "resource");
        let is_same = new.at("resizePolicy") == old.at("resizePolicy")
            && without_amounts(resources) == without_amounts(known);
        if list == "containers" {
            if !is_same {
                errors.push(FieldError::forbidden(SPEC, "only cpu and memory resources are mutable"));
            }
            continue;
        }
        if !is_same {
            let detail = "only cpu and memory resources for init or sidecar containers are mutable";
            errors.push(FieldError::forbidden(path, detail));
        }
        let restarts = |policy: &Value| policy.text("restartPolicy") == "RestartContainer";
        let is_sidecar = old.text("restartPolicy") == "Always";
        if !is_sidecar && new != old && new.list("resizePolicy").iter().any(restarts) {
            let detail =
                "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
            errors.push(FieldError::forbidden(path, detail));
        }
    }
}

fn none_removed(errors: &mut Vec<FieldError>, path: &Path<'_>, (new, old): (&Value, &Value), what: &str) {
    for amounts in AMOUNTS {
        let kept = |name: &String| new.map(amounts).contains_key(name);
        if !old.map(amounts).keys().all(kept) {
            let detail = format!("{what} {amounts} cannot be removed");
            errors.push(FieldError::forbidden(path.field(amounts), detail));
        }
    }
}

/// Resources without what a resize may change; null where nothing else is said.
fn without_amounts(resources: &Value) -> Value {
    let mut left = resources.clone();
    for amounts in AMOUNTS {
        let Some(part) = left.part_mut(amounts) else { continue };
        part.drop_field("cpu");
        part.drop_field("memory");
        if *part == json!({}) {
            left.drop_field(amounts);
        }
    }
    if left == json!({}) { Value::Null } else { left }
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

        let init = resize(|new| {
            let first = &mut new["spec"]["initContainers"][0];
            first["resources"] = json!({ "limits": { "cpu": "1", "example.com/gpu": "1" } });
            first["resizePolicy"] = json!([{ "resourceName": "cpu", "restartPolicy": "RestartContainer" }]);
        });
        let path = "spec.initContainers[0]: Forbidden:";
        assert_eq!(
            init,
            [
                format!("{path} only cpu and memory resources for init or sidecar containers are mutable"),
                format!(
                    "{path} non-sidecar init containers with a resize policy of RestartContainer cannot be resized"
                ),
            ]
        );

        let storage = resize(|new| {
            new["spec"]["containers"][0]["resources"]["limits"]["ephemeral-storage"] = "1Gi".into();
        });
        assert_eq!(storage, ["spec: Forbidden: only cpu and memory resources are mutable"]);
    }

    #[test]
    fn init_containers_are_resized_too() {
        let amounts = json!({ "requests": { "cpu": "1" } });
        assert!(resize(|new| new["spec"]["initContainers"][0]["resources"] = amounts).is_empty());
    }

    #[test]
    fn a_pod_as_a_whole_is_resized() {
        let whole = |resources: Value| {
            let mut pod = pod();
            pod["spec"]["resources"] = resources;
            pod
        };
        let check = |old: &Value, resources: Value, expected: &[&str]| {
            let mut new = old.clone();
            new["spec"]["resources"] = resources.clone();
            new["spec"]["nodeSelector"] = json!({ "a": "b" });
            prepare_resize(&mut new, old);
            assert_eq!(new["spec"]["resources"], resources);
            assert_eq!(new["spec"]["nodeSelector"], Value::Null, "nothing else changes");
            assert_eq!(texts(&validate_resize(&new, old)), expected, "{resources}");
        };
        let old = whole(json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "2" } }));
        check(&old, json!({ "requests": { "cpu": "2" }, "limits": { "cpu": "3" } }), &[]);
        check(
            &old,
            json!({ "requests": { "cpu": "1", "memory": "1Gi" }, "limits": { "cpu": "2", "memory": "2Gi" } }),
            &[],
        );
        check(&pod(), json!({ "requests": { "cpu": "1" } }), &[]);
        check(&old, Value::Null, &["spec.resources: Forbidden: pod-level resources cannot be removed"]);
        check(
            &old,
            json!({ "requests": { "cpu": "1" } }),
            &["spec.resources.limits: Forbidden: pod-level resource limits cannot be removed"],
        );
        check(
            &old,
            json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "2", "hugepages-2Mi": "2Mi" } }),
            &["spec: Forbidden: only cpu and memory resources are mutable at pod-level"],
        );
        let all = json!({ "cpu": "2", "memory": "1Gi" });
        check(
            &old,
            json!({ "requests": all, "limits": all }),
            &[r#"spec: Invalid value: "Burstable": Pod QOS Class may not change as a result of resizing"#],
        );
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
