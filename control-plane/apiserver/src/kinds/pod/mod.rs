//! Pods, and the pod templates inside other kinds.

mod annotations;
mod containers;
mod defaults;
mod env;
mod handlers;
mod mounts;
mod older_volumes;
mod print;
mod resources;
mod scheduling;
mod security;
mod spec;
mod subresources;
mod update;
mod volumes;

pub(crate) use defaults::default_template;
pub(crate) use handlers::port;
pub(crate) use resources::overhead;
pub(crate) use scheduling::{Values, node_term, toleration};
pub(crate) use spec::validate_template;
pub(crate) use subresources::{
    REACH_OF_RESIZE, prepare_ephemeral, prepare_resize, validate_ephemeral, validate_resize,
};
pub(crate) use update::keep_node_affinity;
pub(crate) use volumes::details as volume_source;

use hawser_api::usage::qos_class;
use serde_json::{Value, json};

use super::{
    AGE, Hooks, NAME, PLAIN, text,
    value::{self, Fields},
    wide,
};

pub(crate) static POD: Hooks = Hooks {
    default: defaults::default_pod,
    prepare_create,
    validate_new: subresources::validate_new,
    validate_create: spec::validate_pod,
    validate_update: update::validate,
    validate_status: update::validate_status,
    columns: &[
        NAME,
        text("Ready"),
        text("Status"),
        text("Restarts"),
        AGE,
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    cells: print::cells,
    selectable: &[
        ("spec.nodeName", |pod| pod.text("spec.nodeName").to_owned()),
        ("spec.restartPolicy", |pod| pod.text("spec.restartPolicy").to_owned()),
        ("spec.schedulerName", |pod| pod.text("spec.schedulerName").to_owned()),
        ("spec.serviceAccountName", |pod| pod.text("spec.serviceAccountName").to_owned()),
        ("spec.hostNetwork", |pod| pod.flag("spec.hostNetwork").to_string()),
        ("status.phase", |pod| pod.text("status.phase").to_owned()),
        ("status.podIP", |pod| first_ip(pod).to_owned()),
        ("status.nominatedNodeName", |pod| pod.text("status.nominatedNodeName").to_owned()),
    ],
    deletion_grace: Some(deletion_grace),
    ..PLAIN
};

pub(crate) static POD_TEMPLATE: Hooks = Hooks {
    default: |object| {
        if let Some(template) = object.part_mut("template") {
            default_template(template);
        }
    },
    validate_create: |object| {
        let mut errors = Vec::new();
        validate_template(&mut errors, &value::Path::Root("template"), object.at("template"));
        errors
    },
    columns: &[NAME, text("Containers"), text("Images"), text("Pod Labels")],
    cells: |object, _| {
        let (names, images) = container_cells(object.at("template.spec"));
        let labels = super::selector::map_to_text(object.at("template.metadata.labels"));
        vec![object.at("metadata.name").clone(), names.into(), images.into(), or_none(labels).into()]
    },
    ..PLAIN
};

fn first_ip(pod: &Value) -> &str {
    pod.list("status.podIPs").first().map_or(pod.text("status.podIP"), |ip| ip.text("ip"))
}

/// Names and images of a template's containers, as workloads' tables show them.
pub(crate) fn container_cells(spec: &Value) -> (String, String) {
    let join = |field: &str| {
        let all: Vec<&str> = spec.list("containers").iter().map(|container| container.text(field)).collect();
        all.join(",")
    };
    (join("name"), join("image"))
}

pub(crate) fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

/// Calls `visit` with each container and its path, in upstream's order: those that run first come first.
pub(crate) fn each_container(
    spec: &Value,
    path: &value::Path<'_>,
    mut visit: impl FnMut(&value::Path<'_>, &Value),
) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let path = path.field(list);
        for (index, container) in spec.list(list).iter().enumerate() {
            visit(&path.index(index), container);
        }
    }
}

fn prepare_create(pod: &mut Value) {
    let mut status = json!({ "phase": "Pending", "qosClass": qos_class(pod.at("spec")) });
    if !pod.list("spec.schedulingGates").is_empty() {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    pod.set("status", status);
}

/// A pod that no node runs, or that ended, goes at once.
fn deletion_grace(pod: &Value, requested: Option<i64>) -> i64 {
    let own = || pod.int("spec.terminationGracePeriodSeconds").unwrap_or_default();
    let ended = matches!(pod.text("status.phase"), "Succeeded" | "Failed");
    if pod.text("spec.nodeName").is_empty() || ended {
        return 0;
    }
    match requested.unwrap_or_else(own) {
        seconds if seconds < 0 => 1,
        seconds => seconds,
    }
}

#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod tests;
