//! Workloads of `apps`: Deployments, ReplicaSets, StatefulSets, DaemonSets and their revisions.

use hawser_api::FieldError;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Column, Hooks, NAME, PLAIN, ScalePaths, column, human,
    pod::{container_cells, default_template, or_none, validate_template},
    rules, selector, text,
    value::{Fields, Path},
    wide,
};

const SPEC: Path<'static> = Path::Root("spec");

const SCALE: ScalePaths = ScalePaths {
    spec_replicas: "spec.replicas",
    status_replicas: "status.replicas",
    selector: |object| selector::to_text(object.at("spec.selector")),
};

const fn number(name: &'static str) -> Column {
    column(name, "integer")
}

pub(crate) static DEPLOYMENT: Hooks = Hooks {
    default: default_deployment,
    validate_create: validate_deployment,
    validate_update: immutable_selector,
    columns: &[
        NAME,
        text("Ready"),
        text("Up-to-date"),
        text("Available"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |object, now| {
        let (names, images) = container_cells(object.at("spec.template.spec"));
        vec![
            object.at("metadata.name").clone(),
            format!("{}/{}", count(object, "status.readyReplicas"), count(object, "spec.replicas")).into(),
            count(object, "status.updatedReplicas").into(),
            count(object, "status.availableReplicas").into(),
            age(object, now),
            names.into(),
            images.into(),
            selector_cell(object),
        ]
    },
    scale: Some(SCALE),
    ..PLAIN
};

pub(crate) static REPLICA_SET: Hooks = Hooks {
    default: |object| {
        let spec = object.ensure("spec");
        spec.set_default("replicas", 1);
        default_template(spec.ensure("template"));
    },
    validate_create: |object| {
        let mut errors = Vec::new();
        workload(&mut errors, object, "replica set");
        not_negative(&mut errors, object.at("spec"), &["replicas", "minReadySeconds"]);
        errors
    },
    validate_update: immutable_selector,
    columns: REPLICAS_COLUMNS,
    cells: |object, now| replicas_cells(object, now, selector_cell(object)),
    selectable: &[("status.replicas", |object| count(object, "status.replicas").to_string())],
    scale: Some(SCALE),
    ..PLAIN
};

pub(crate) static STATEFUL_SET: Hooks = Hooks {
    default: default_stateful_set,
    validate_create: |object| {
        let mut errors = Vec::new();
        workload(&mut errors, object, "statefulset");
        let spec = object.at("spec");
        not_negative(&mut errors, spec, &["replicas", "minReadySeconds", "ordinals.start"]);
        stateful_set_policies(&mut errors, spec);
        errors
    },
    validate_update: update_stateful_set,
    columns: &[NAME, text("Ready"), AGE, wide("Containers"), wide("Images")],
    cells: |object, now| {
        let (names, images) = container_cells(object.at("spec.template.spec"));
        vec![
            object.at("metadata.name").clone(),
            format!("{}/{}", count(object, "status.readyReplicas"), count(object, "spec.replicas")).into(),
            age(object, now),
            names.into(),
            images.into(),
        ]
    },
    scale: Some(SCALE),
    ..PLAIN
};

pub(crate) static DAEMON_SET: Hooks = Hooks {
    default: |object| {
        let spec = object.ensure("spec");
        spec.set_default("revisionHistoryLimit", 10);
        let strategy = spec.ensure("updateStrategy");
        strategy.set_default("type", "RollingUpdate");
        if strategy.text("type") == "RollingUpdate" {
            let rolling = strategy.ensure("rollingUpdate");
            rolling.set_default("maxUnavailable", 1);
            rolling.set_default("maxSurge", 0);
        }
        default_template(spec.ensure("template"));
    },
    validate_create: |object| {
        let mut errors = Vec::new();
        workload(&mut errors, object, "daemonset");
        let spec = object.at("spec");
        not_negative(&mut errors, spec, &["minReadySeconds", "revisionHistoryLimit"]);
        daemon_set_strategy(&mut errors, &SPEC.field("updateStrategy"), spec.at("updateStrategy"));
        errors
    },
    validate_update: immutable_selector,
    columns: &[
        NAME,
        number("Desired"),
        number("Current"),
        number("Ready"),
        number("Up-to-date"),
        number("Available"),
        text("Node Selector"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |object, now| {
        let (names, images) = container_cells(object.at("spec.template.spec"));
        vec![
            object.at("metadata.name").clone(),
            count(object, "status.desiredNumberScheduled").into(),
            count(object, "status.currentNumberScheduled").into(),
            count(object, "status.numberReady").into(),
            count(object, "status.updatedNumberScheduled").into(),
            count(object, "status.numberAvailable").into(),
            or_none(selector::map_to_text(object.at("spec.template.spec.nodeSelector"))).into(),
            age(object, now),
            names.into(),
            images.into(),
            selector_cell(object),
        ]
    },
    ..PLAIN
};

pub(crate) static CONTROLLER_REVISION: Hooks = Hooks {
    validate_create: |object| {
        let mut errors = Vec::new();
        if object.at("data").is_null() {
            errors.push(FieldError::required("data", "data is mandatory"));
        }
        rules::not_negative(&mut errors, &Path::Root("revision"), object.at("revision"));
        errors
    },
    validate_update: |new, old| {
        let mut errors = Vec::new();
        if new.at("data") != old.at("data") {
            errors.push(FieldError::invalid("data", new.at("data").clone(), "field is immutable"));
        }
        errors
    },
    columns: &[NAME, text("Controller"), number("Revision"), AGE],
    cells: |object, now| {
        let owners = object.list("metadata.ownerReferences");
        let controller = owners.iter().find(|owner| owner.flag("controller")).map(|owner| {
            let group = owner
                .text("apiVersion")
                .split_once('/')
                .map_or(String::new(), |(group, _)| format!(".{group}"));
            format!("{}{group}/{}", owner.text("kind").to_lowercase(), owner.text("name"))
        });
        vec![
            object.at("metadata.name").clone(),
            controller.unwrap_or_else(|| "<none>".to_owned()).into(),
            count(object, "revision").into(),
            age(object, now),
        ]
    },
    ..PLAIN
};

/// Columns of what keeps replicas of one template.
pub(crate) const REPLICAS_COLUMNS: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

/// One cell for each of [`REPLICAS_COLUMNS`].
pub(crate) fn replicas_cells(object: &Value, now: Timestamp, selector: Value) -> Vec<Value> {
    let (names, images) = container_cells(object.at("spec.template.spec"));
    vec![
        object.at("metadata.name").clone(),
        count(object, "spec.replicas").into(),
        count(object, "status.replicas").into(),
        count(object, "status.readyReplicas").into(),
        age(object, now),
        names.into(),
        images.into(),
        selector,
    ]
}

pub(crate) fn count(object: &Value, path: &str) -> i64 {
    object.int(path).unwrap_or_default()
}

pub(crate) fn age(object: &Value, now: Timestamp) -> Value {
    human::age(object.at("metadata.creationTimestamp"), now).into()
}

fn selector_cell(object: &Value) -> Value {
    or_none(selector::to_text(object.at("spec.selector"))).into()
}

fn default_deployment(object: &mut Value) {
    let spec = object.ensure("spec");
    spec.set_default("replicas", 1);
    spec.set_default("revisionHistoryLimit", 10);
    spec.set_default("progressDeadlineSeconds", 600);
    let strategy = spec.ensure("strategy");
    strategy.set_default("type", "RollingUpdate");
    if strategy.text("type") == "RollingUpdate" {
        let rolling = strategy.ensure("rollingUpdate");
        rolling.set_default("maxUnavailable", "25%");
        rolling.set_default("maxSurge", "25%");
    }
    default_template(spec.ensure("template"));
}

fn default_stateful_set(object: &mut Value) {
    let spec = object.ensure("spec");
    spec.set_default("replicas", 1);
    spec.set_default("revisionHistoryLimit", 10);
    spec.set_default("podManagementPolicy", "OrderedReady");
    let strategy = spec.ensure("updateStrategy");
    strategy.set_default("type", "RollingUpdate");
    if strategy.text("type") == "RollingUpdate" {
        strategy.ensure("rollingUpdate").set_default("partition", 0);
    }
    let retention = spec.ensure("persistentVolumeClaimRetentionPolicy");
    retention.set_default("whenDeleted", "Retain");
    retention.set_default("whenScaled", "Retain");
    for claim in spec.list_mut("volumeClaimTemplates") {
        claim.set_default("apiVersion", "v1");
        claim.set_default("kind", "PersistentVolumeClaim");
        claim.ensure("spec").set_default("volumeMode", "Filesystem");
        claim.ensure("status").set_default("phase", "Pending");
    }
    default_template(spec.ensure("template"));
}

/// Selector and template, which all workloads have.
fn workload(errors: &mut Vec<FieldError>, object: &Value, what: &str) {
    let spec = object.at("spec");
    let own = spec.at("selector");
    let path = SPEC.field("selector");
    if !own.is_object() {
        errors.push(FieldError::required(path, ""));
    } else {
        selector::validate(errors, &path, own);
        if selector::is_empty(own) {
            let detail = format!("empty selector is invalid for {what}");
            errors.push(FieldError::invalid(path, own.clone(), detail));
        }
    }
    let path = SPEC.field("template");
    let labels = spec.at("template.metadata.labels");
    if own.is_object() && !selector::is_empty(own) && !selector::matches(own, labels) {
        let shown = if labels.is_null() { json!({}) } else { labels.clone() };
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(path.field("metadata.labels"), shown, detail));
    }
    match with_claims(spec) {
        Some(template) => validate_template(errors, &path, &template),
        None => validate_template(errors, &path, spec.at("template")),
    }
    let policy = spec.text("template.spec.restartPolicy");
    if policy != "Always" {
        errors.push(FieldError::not_supported(path.field("spec.restartPolicy"), policy, &["Always"]));
    }
    if spec.has("template.spec.activeDeadlineSeconds") {
        let kind = match what {
            "deployment" | "replica set" => "ReplicaSet",
            "statefulset" => "StatefulSet",
            _ => "DaemonSet",
        };
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(FieldError::forbidden(path.field("spec.activeDeadlineSeconds"), detail));
    }
}

/// A stateful set's template with the volumes that its claims become, which its containers mount; `None` where it has no
/// claims.
fn with_claims(spec: &Value) -> Option<Value> {
    let claims = spec.list("volumeClaimTemplates");
    if claims.is_empty() {
        return None;
    }
    let mut template = spec.at("template").clone();
    let names = claims.iter().map(|claim| claim.text("metadata.name"));
    let mut volumes = template.list("spec.volumes").to_vec();
    // A claim stands above a volume of its name.
    volumes.retain(|volume| !names.clone().any(|name| volume.text("name") == name));
    volumes.extend(names.map(|name| json!({ "name": name, "persistentVolumeClaim": { "claimName": name } })));
    template.ensure("spec").set("volumes", volumes);
    Some(template)
}

fn stateful_set_policies(errors: &mut Vec<FieldError>, spec: &Value) {
    let policy = spec.text("podManagementPolicy");
    if !matches!(policy, "OrderedReady" | "Parallel") {
        let detail = "must be 'OrderedReady' or 'Parallel'";
        errors.push(FieldError::invalid(SPEC.field("podManagementPolicy"), policy, detail));
    }
    let path = SPEC.field("updateStrategy");
    let (strategy, rolling_path) = (spec.at("updateStrategy"), path.field("rollingUpdate"));
    let rolling = strategy.at("rollingUpdate");
    match strategy.text("type") {
        "OnDelete" if !rolling.is_null() => {
            let detail = "only allowed for updateStrategy 'RollingUpdate'";
            errors.push(FieldError::invalid(rolling_path, rolling.clone(), detail));
        }
        "OnDelete" => (),
        "RollingUpdate" => {
            if let Some(partition) = rolling.int("partition").filter(|partition| *partition < 0) {
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(rolling_path.field("partition"), partition, detail));
            }
            let (path, most) = (rolling_path.field("maxUnavailable"), rolling.at("maxUnavailable"));
            int_or_percent(errors, &path, most);
            if is_zero(most) {
                errors.push(FieldError::invalid(path, most.clone(), "cannot be 0"));
            }
            up_to_all(errors, &path, most);
        }
        _ => {
            let detail = "must be 'RollingUpdate' or 'OnDelete'";
            errors.push(FieldError::invalid(path, strategy.clone(), detail));
        }
    }
    let path = SPEC.field("persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        let policy = spec.at("persistentVolumeClaimRetentionPolicy").text(field);
        if !matches!(policy, "Delete" | "Retain") {
            errors.push(FieldError::not_supported(path.field(field), policy, &["Retain", "Delete"]));
        }
    }
}

fn daemon_set_strategy(errors: &mut Vec<FieldError>, path: &Path<'_>, strategy: &Value) {
    match strategy.text("type") {
        "OnDelete" => (),
        "RollingUpdate" => {
            let (path, rolling) = (path.field("rollingUpdate"), strategy.at("rollingUpdate"));
            let surges = rolling.has("maxSurge") && !is_zero(rolling.at("maxSurge"));
            let spares = rolling.has("maxUnavailable") && !is_zero(rolling.at("maxUnavailable"));
            for field in ["maxUnavailable", "maxSurge"] {
                int_or_percent(errors, &path.field(field), rolling.at(field));
                up_to_all(errors, &path.field(field), rolling.at(field));
            }
            if spares && surges {
                let detail = "may not be set when maxUnavailable is non-zero";
                let most = rolling.at("maxSurge").clone();
                errors.push(FieldError::invalid(path.field("maxSurge"), most, detail));
            } else if !spares && !surges {
                let detail = "cannot be 0 when maxSurge is 0";
                errors.push(FieldError::required(path.field("maxUnavailable"), detail));
            }
        }
        _ => errors.push(FieldError::not_supported(path, strategy.clone(), &["RollingUpdate", "OnDelete"])),
    }
}

pub(crate) fn not_negative(errors: &mut Vec<FieldError>, spec: &Value, fields: &[&str]) {
    for field in fields {
        if let Some(number) = spec.int(field).filter(|number| *number < 0) {
            errors.push(FieldError::invalid(SPEC.field(field), number, "must be greater than or equal to 0"));
        }
    }
}

fn validate_deployment(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    workload(&mut errors, object, "deployment");
    let spec = object.at("spec");
    not_negative(
        &mut errors,
        spec,
        &["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"],
    );
    let ready = spec.int("minReadySeconds").unwrap_or_default();
    if let Some(deadline) =
        spec.int("progressDeadlineSeconds").filter(|deadline| *deadline >= 0 && *deadline <= ready)
    {
        let detail = "must be greater than minReadySeconds";
        errors.push(FieldError::invalid(SPEC.field("progressDeadlineSeconds"), deadline, detail));
    }
    let strategy = SPEC.field("strategy");
    match spec.text("strategy.type") {
        "Recreate" if spec.has("strategy.rollingUpdate") => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(strategy.field("rollingUpdate"), detail));
        }
        "RollingUpdate" => {
            rolling_update(&mut errors, &strategy.field("rollingUpdate"), spec.at("strategy.rollingUpdate"));
        }
        "Recreate" => (),
        other => {
            errors.push(FieldError::not_supported(
                strategy.field("type"),
                other,
                &["Recreate", "RollingUpdate"],
            ));
        }
    }
    errors
}

fn rolling_update(errors: &mut Vec<FieldError>, path: &Path<'_>, rolling: &Value) {
    for field in ["maxUnavailable", "maxSurge"] {
        int_or_percent(errors, &path.field(field), rolling.at(field));
    }
    up_to_all(errors, &path.field("maxUnavailable"), rolling.at("maxUnavailable"));
    if is_zero(rolling.at("maxUnavailable")) && is_zero(rolling.at("maxSurge")) {
        let value = rolling.at("maxUnavailable").clone();
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(path.field("maxUnavailable"), value, detail));
    }
}

/// Whether a number or percentage is there, and is none.
fn is_zero(value: &Value) -> bool {
    value == 0 || percent(value) == Some(0)
}

fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// No percentage beyond all.
pub(crate) fn up_to_all(errors: &mut Vec<FieldError>, path: &Path<'_>, value: &Value) {
    if percent(value).is_some_and(|percent| percent > 100) {
        errors.push(FieldError::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}

/// A number from 0 on, or a percentage.
pub(crate) fn int_or_percent(errors: &mut Vec<FieldError>, path: &Path<'_>, value: &Value) {
    match value {
        Value::String(text) => {
            let digits = text.strip_suffix('%').unwrap_or_default();
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                              '93%', regex used for validation is '[0-9]+%')";
                errors.push(FieldError::invalid(path, text.as_str(), detail));
            }
        }
        other => {
            if let Some(number) = other.as_i64().filter(|number| *number < 0) {
                errors.push(FieldError::invalid(path, number, "must be greater than or equal to 0"));
            }
        }
    }
}

fn immutable_selector(new: &Value, old: &Value) -> Vec<FieldError> {
    if new.at("spec.selector") == old.at("spec.selector") {
        return Vec::new();
    }
    vec![FieldError::invalid(SPEC.field("selector"), new.at("spec.selector").clone(), "field is immutable")]
}

fn update_stateful_set(new: &Value, old: &Value) -> Vec<FieldError> {
    let changeable = [
        "replicas",
        "template",
        "updateStrategy",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
        "ordinals",
        "revisionHistoryLimit",
    ];
    let mut allowed = new.at("spec").clone();
    for field in changeable {
        allowed.copy_field(field, old.at("spec"));
    }
    if &allowed == old.at("spec") {
        return Vec::new();
    }
    let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                  'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                  'minReadySeconds' are forbidden";
    vec![FieldError::forbidden(SPEC, detail)]
}

#[cfg(test)]
mod tests;
