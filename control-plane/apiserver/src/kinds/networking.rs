//! Ingresses, their classes, and NetworkPolicies: stored for those who act on them.

mod rules;

use hawser_api::FieldError;
use serde_json::json;

use super::{AGE, Hooks, NAME, PLAIN, apps::age, pod::or_none, selector, text, value::Fields};

pub(crate) static INGRESS: Hooks = Hooks {
    validate_create: rules::ingress,
    validate_new: rules::new_ingress,
    columns: &[NAME, text("Class"), text("Hosts"), text("Address"), text("Ports"), AGE],
    cells: |ingress, now| {
        let mut hosts: Vec<&str> = Vec::new();
        for rule in ingress.list("spec.rules") {
            if !rule.text("host").is_empty() && !hosts.contains(&rule.text("host")) {
                hosts.push(rule.text("host"));
            }
        }
        let hosts = if hosts.is_empty() { "*".to_owned() } else { hosts.join(",") };
        let points = ingress.list("status.loadBalancer.ingress").iter();
        let addresses: Vec<&str> = points
            .map(|point| match point.text("ip") {
                "" => point.text("hostname"),
                ip => ip,
            })
            .collect();
        let ports = if ingress.list("spec.tls").is_empty() { "80" } else { "80, 443" };
        vec![
            ingress.at("metadata.name").clone(),
            or_none(ingress.text("spec.ingressClassName").to_owned()).into(),
            hosts.into(),
            addresses.join(",").into(),
            ports.into(),
            age(ingress, now),
        ]
    },
    ..PLAIN
};

pub(crate) static INGRESS_CLASS: Hooks = Hooks {
    default: |class| {
        if let Some(parameters) = class.part_mut("spec.parameters") {
            parameters.set_default("scope", "Cluster");
        }
    },
    validate_create: rules::ingress_class,
    validate_update: |new, old| {
        if new.at("spec.controller") == old.at("spec.controller") {
            return Vec::new();
        }
        vec![FieldError::invalid("spec.controller", new.at("spec.controller").clone(), "field is immutable")]
    },
    columns: &[NAME, text("Controller"), text("Parameters"), AGE],
    cells: |class, now| {
        let parameters = class.at("spec.parameters");
        let shown = if parameters.is_object() {
            let group = match parameters.text("apiGroup") {
                "" => String::new(),
                group => format!(".{group}"),
            };
            format!("{}{group}/{}", parameters.text("kind"), parameters.text("name"))
        } else {
            "<none>".to_owned()
        };
        vec![
            class.at("metadata.name").clone(),
            class.text("spec.controller").into(),
            shown.into(),
            age(class, now),
        ]
    },
    ..PLAIN
};

pub(crate) static NETWORK_POLICY: Hooks = Hooks {
    default: |policy| {
        let spec = policy.ensure("spec");
        spec.ensure("podSelector");
        for direction in ["ingress", "egress"] {
            for rule in spec.list_mut(direction) {
                for port in rule.list_mut("ports") {
                    port.set_default("protocol", "TCP");
                }
            }
        }
        if spec.list("policyTypes").is_empty() {
            let types = if spec.list("egress").is_empty() {
                json!(["Ingress"])
            } else {
                json!(["Ingress", "Egress"])
            };
            spec.set("policyTypes", types);
        }
    },
    validate_create: rules::network_policy,
    columns: &[NAME, text("Pod-Selector"), AGE],
    cells: |policy, now| {
        let chosen = or_none(selector::to_text(policy.at("spec.podSelector")));
        vec![policy.at("metadata.name").clone(), chosen.into(), age(policy, now)]
    },
    ..PLAIN
};

#[cfg(test)]
mod tests;
