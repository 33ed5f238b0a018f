//! The downward API: fields of the pod and its containers' resources, for environment and volumes.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ResourceFieldSelector};

use super::ConfigError;
use super::resources::NodeCapacity;
use crate::pod::DesiredPod;
use crate::pod::qos::{limit, request};
use crate::quantity::{milli_value, value};

/// What fields can be about, beside the pod itself.
pub struct Fields<'a> {
    pub pod: &'a DesiredPod,
    pub pod_ips: &'a [IpAddr],
    pub node_name: &'a str,
    pub node_ips: &'a [IpAddr],
    pub capacity: NodeCapacity,
}

impl Fields<'_> {
    /// The value at `field_path`, as text.
    pub fn field(&self, field_path: &str) -> Result<String, ConfigError> {
        let meta = &self.pod.object.metadata;
        if let Some((map, key)) = subscript(field_path) {
            let values = match map {
                "metadata.labels" => &meta.labels,
                "metadata.annotations" => &meta.annotations,
                _ => return Err(unsupported(field_path)),
            };
            return Ok(values.as_ref().and_then(|v| v.get(key)).cloned().unwrap_or_default());
        }
        let ips = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
        let spec = self.pod.spec();
        Ok(match field_path {
            "metadata.name" => self.pod.name().to_owned(),
            "metadata.namespace" => self.pod.namespace().to_owned(),
            "metadata.uid" => self.pod.uid().to_owned(),
            "metadata.labels" => format_map(meta.labels.as_ref()),
            "metadata.annotations" => format_map(meta.annotations.as_ref()),
            "spec.nodeName" => self.node_name.to_owned(),
            "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
            "status.hostIP" => ips(self.node_ips).into_iter().next().unwrap_or_default(),
            "status.hostIPs" => ips(self.node_ips).join(","),
            "status.podIP" => ips(self.pod_ips).into_iter().next().unwrap_or_default(),
            "status.podIPs" => ips(self.pod_ips).join(","),
            _ => return Err(unsupported(field_path)),
        })
    }

    /// A container's resource, divided and rounded up; limits that are unset are what the node has.
    pub fn resource(&self, own: &Container, selector: &ResourceFieldSelector) -> Result<String, ConfigError> {
        let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
            Some(name) => {
                let found = self.pod.container(name).map(|c| &c.spec);
                found.ok_or_else(|| ConfigError::ObjectMissing { kind: "container", name: name.into() })?
            }
            None => own,
        };
        let (kind, name) =
            selector.resource.split_once('.').ok_or_else(|| unsupported(&selector.resource))?;
        let amount = match kind {
            "limits" => Some(limit(container, name)).filter(|n| *n > 0).unwrap_or(self.capacity.of(name)),
            "requests" => request(container, name),
            _ => return Err(unsupported(&selector.resource)),
        };
        let divisor = selector.divisor.as_ref();
        let divisor = match name {
            "cpu" => divisor.map(milli_value).filter(|n| *n > 0).unwrap_or(1000),
            _ => divisor.map(value).filter(|n| *n > 0).unwrap_or(1),
        };
        Ok((amount / divisor + i64::from(amount % divisor > 0)).to_string())
    }
}

fn unsupported(path: &str) -> ConfigError {
    ConfigError::Unsupported { what: "fieldPath", value: path.to_owned() }
}

/// `metadata.labels['a']` as map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.split_once('[')?;
    let key = key.strip_suffix(']')?;
    Some((map, key.trim_matches(['\'', '"'])))
}

/// `key="value"` lines, sorted, the values escaped as Go's `%q`.
fn format_map(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{pod_object, spec, with_resources};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn check_all(checks: &[(&str, &str)]) {
        let mut object = pod_object(spec("Always", vec![], vec![]));
        object.metadata.labels = Some([("app".into(), "web".into()), ("b".into(), "x\"y".into())].into());
        let pod = DesiredPod::new(object.into());
        let ips = ["10.1.0.7".parse().expect("address"), "fd00::7".parse().expect("address")];
        let fields = Fields {
            pod: &pod,
            pod_ips: &ips,
            node_name: "n1",
            node_ips: &["10.0.0.1".parse().expect("address")],
            capacity: NodeCapacity::default(),
        };
        for (path, expected) in checks {
            assert_eq!(fields.field(path).expect(path), *expected, "{path}");
        }
        assert!(fields.field("spec.containers").is_err());
    }

    #[test]
    fn fields_become_text() {
        check_all(&[
            ("metadata.name", "web"),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "app=\"web\"\nb=\"x\\\"y\""),
            ("spec.nodeName", "n1"),
            ("status.hostIP", "10.0.0.1"),
            ("status.podIP", "10.1.0.7"),
            ("status.podIPs", "10.1.0.7,fd00::7"),
        ]);
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let container = with_resources("c", &[("cpu", "250m")], &[("memory", "100Mi")]);
        let pod = DesiredPod::new(pod_object(spec("Always", vec![], vec![container.clone()])).into());
        let capacity = NodeCapacity { cpu_millis: 4000, memory_bytes: 8 << 30, ephemeral_bytes: 0 };
        let fields = Fields { pod: &pod, pod_ips: &[], node_name: "n1", node_ips: &[], capacity };
        let check = |resource: &str, divisor: Option<&str>, expected: &str| {
            let selector = ResourceFieldSelector {
                resource: resource.into(),
                divisor: divisor.map(|d| Quantity(d.into())),
                container_name: None,
            };
            assert_eq!(fields.resource(&container, &selector).expect(resource), expected, "{resource}");
        };
        check("requests.cpu", None, "1");
        check("requests.cpu", Some("1m"), "250");
        check("limits.cpu", None, "4");
        check("limits.memory", Some("1Mi"), "100");
        check("requests.memory", None, "104857600");
    }
}
