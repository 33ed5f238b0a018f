//! HorizontalPodAutoscalers.

use hawser_api::FieldError;
use serde_json::{Value, json};

use super::{
    AGE, Hooks, NAME, PLAIN,
    apps::age,
    autoscaling_rules, autoscaling_v1,
    rules::not_negative,
    text,
    value::{Fields, Path},
};

/// What an autoscaler aims for when it is told nothing.
const DEFAULT_UTILIZATION: i64 = 80;

pub(crate) static AUTOSCALER: Hooks = Hooks {
    default: |object| {
        let spec = object.ensure("spec");
        spec.set_default("minReplicas", 1);
        if spec.list("metrics").is_empty() {
            let target = json!({ "type": "Utilization", "averageUtilization": DEFAULT_UTILIZATION });
            spec.set(
                "metrics",
                json!([{ "type": "Resource", "resource": { "name": "cpu", "target": target } }]),
            );
        }
        autoscaling_rules::default_behavior(spec);
    },
    validate_create: |object| {
        let mut errors = Vec::new();
        let spec = object.at("spec");
        let (least, most) =
            (spec.int("minReplicas").unwrap_or_default(), spec.int("maxReplicas").unwrap_or_default());
        if least < 1 {
            let detail = "must be greater than or equal to 1";
            errors.push(FieldError::invalid("spec.minReplicas", least, detail));
        }
        if most < 1 {
            errors.push(FieldError::invalid("spec.maxReplicas", most, "must be greater than 0"));
        }
        if most < least {
            let detail = "must be greater than or equal to `minReplicas`";
            errors.push(FieldError::invalid("spec.maxReplicas", most, detail));
        }
        let path = Path::Root("spec");
        autoscaling_rules::reference(&mut errors, &path.field("scaleTargetRef"), spec.at("scaleTargetRef"));
        autoscaling_rules::validate(&mut errors, &Path::Root("spec"), spec);
        errors
    },
    validate_status: |new, _| {
        let mut errors = Vec::new();
        let path = Path::Root("status");
        for field in ["currentReplicas", "desiredReplicas"] {
            not_negative(&mut errors, &path.field(field), new.at("status").at(field));
        }
        errors
    },
    columns: &[
        NAME,
        text("Reference"),
        text("Targets"),
        text("MinPods"),
        text("MaxPods"),
        text("Replicas"),
        AGE,
    ],
    cells: |object, now| {
        let spec = object.at("spec");
        let target = spec.at("scaleTargetRef");
        let metrics: Vec<String> = spec
            .list("metrics")
            .iter()
            .enumerate()
            .map(|(index, metric)| metric_cell(metric, object.list("status.currentMetrics").get(index)))
            .collect();
        let metrics = if metrics.is_empty() { "<none>".to_owned() } else { metrics.join(", ") };
        vec![
            object.at("metadata.name").clone(),
            format!("{}/{}", target.text("kind"), target.text("name")).into(),
            metrics.into(),
            spec.int("minReplicas").unwrap_or_default().to_string().into(),
            spec.int("maxReplicas").unwrap_or_default().into(),
            object.int("status.currentReplicas").unwrap_or_default().into(),
            age(object, now),
        ]
    },
    view: Some((autoscaling_v1::to_v2, autoscaling_v1::from_v2)),
    ..PLAIN
};

fn metric_cell(metric: &Value, current: Option<&Value>) -> String {
    let resource = metric.at("resource");
    if !resource.is_object() {
        return "<unknown>".to_owned();
    }
    let now = current.map(|current| current.at("resource.current"));
    let shown = |value: Option<String>| value.unwrap_or_else(|| "<unknown>".to_owned());
    let name = resource.text("name");
    if let Some(aim) = resource.int("target.averageUtilization") {
        let now = shown(now.and_then(|now| Some(format!("{}%", now.int("averageUtilization")?))));
        return format!("{name}: {now}/{aim}%");
    }
    let now = shown(now.and_then(|now| now.at("averageValue").as_str().map(str::to_owned)));
    format!("{name}: {now}/{}", resource.text("target.averageValue"))
}
