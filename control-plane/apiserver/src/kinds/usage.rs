//! What nodes and pods use (`metrics.k8s.io`): nothing but columns, since nobody writes such objects.

use hawser_api::quantity;

use super::{Hooks, NAME, PLAIN, text, value::Fields};

/// The group.
pub(crate) const USAGE: &str = "metrics.k8s.io";

pub(crate) static NODE_METRICS: Hooks = Hooks {
    columns: &[NAME, text("cpu"), text("memory"), text("window")],
    cells: |object, _| {
        let usage = object.at("usage");
        vec![
            object.at("metadata.name").clone(),
            usage.text("cpu").into(),
            usage.text("memory").into(),
            object.text("window").into(),
        ]
    },
    ..PLAIN
};

pub(crate) static POD_METRICS: Hooks = Hooks {
    columns: NODE_METRICS.columns,
    cells: |object, _| {
        let sum = |resource: &str| {
            let containers = object.list("containers").iter();
            let amounts = containers.filter_map(|it| it.at("usage").text(resource).parse().ok());
            let total: Option<quantity::Quantity> = amounts.reduce(|sum, amount| sum + amount);
            total.map_or_else(String::new, |total| total.to_string())
        };
        vec![
            object.at("metadata.name").clone(),
            sum("cpu").into(),
            sum("memory").into(),
            object.text("window").into(),
        ]
    },
    ..PLAIN
};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_uses_what_its_containers_use() {
        let container = |cpu: &str, memory: &str| json!({ "usage": { "cpu": cpu, "memory": memory } });
        let object: Value = json!({
            "metadata": { "name": "p" }, "window": "15s",
            "containers": [container("250m", "1Mi"), container("1", "512Ki")],
        });
        let cells = (POD_METRICS.cells)(&object, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(cells, ["p", "1250m", "1536Ki", "15s"]);
    }
}
