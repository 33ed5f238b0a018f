//! Warnings about Services.

use serde_json::Value;

use crate::kinds::{
    addresses::{loose_address, loose_cidr},
    rules::words,
    value::{Fields, Path},
};

const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const MODE: &str = "service.kubernetes.io/topology-mode";

pub(super) fn of(said: &mut Vec<String>, service: &Value) {
    let (path, spec) = (Path::Root("spec"), service.at("spec"));
    let (kind, outside) = (spec.text("type"), words(spec, "externalIPs"));
    let is_headless = kind == "ClusterIP" && spec.text("clusterIP") == "None";
    if service.map("metadata.annotations").contains_key(HINTS) {
        said.push(format!("annotation {HINTS} is deprecated, please use {MODE} instead"));
    }
    let list = path.field("clusterIPs");
    for (index, text) in words(spec, "clusterIPs").into_iter().enumerate() {
        address(said, &list.index(index), text);
    }
    if is_headless {
        for (field, is_set) in [
            ("loadBalancerIP", !spec.text("loadBalancerIP").is_empty()),
            ("externalIPs", !outside.is_empty()),
            ("SessionAffinity", spec.text("sessionAffinity") != "None"),
        ] {
            if is_set {
                said.push(format!("spec.{field} is ignored for headless services"));
            }
        }
    }
    let list = path.field("externalIPs");
    for (index, text) in outside.iter().enumerate() {
        address(said, &list.index(index), text);
    }
    if !outside.is_empty() && !is_headless && kind != "ExternalName" {
        said.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned(),
        );
    }
    address(said, &path.field("loadBalancerIP"), spec.text("loadBalancerIP"));
    let list = path.field("loadBalancerSourceRanges");
    for (index, text) in words(spec, "loadBalancerSourceRanges").into_iter().enumerate() {
        network(said, &list.index(index), text);
    }
    if kind == "ExternalName" && !outside.is_empty() {
        said.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if kind != "ExternalName" && !spec.text("externalName").is_empty() {
        said.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.text("trafficDistribution") == "PreferClose" {
        said.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
}

/// Forms of an address that will be refused one day, and such that are not the usual one.
fn address(said: &mut Vec<String>, path: &Path<'_>, text: &str) {
    let Some(address) = loose_address(text) else { return };
    let usual = address.to_canonical().to_string();
    if usual == text {
        return;
    }
    said.push(if text.contains(':') && address == address.to_canonical() {
        format!("{path}: IPv6 address {text:?} should be in RFC 5952 canonical format ({usual:?})")
    } else {
        format!(
            "{path}: non-standard IP address {text:?} will be considered invalid in a future Kubernetes release: use \
             {usual:?}"
        )
    });
}

fn network(said: &mut Vec<String>, path: &Path<'_>, text: &str) {
    let text = text.trim();
    let Some((base, length)) = loose_cidr(text) else { return };
    let usual = format!("{base}/{length}");
    if usual != text {
        said.push(if text.contains(':') {
            format!("{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({usual:?})")
        } else {
            format!(
                "{path}: non-standard CIDR value {text:?} will be considered invalid in a future Kubernetes release: use \
                 {usual:?}"
            )
        });
    }
}
