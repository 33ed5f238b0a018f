//! Results: a table for people, or one JSON object a line.

use serde_json::json;

use crate::server::Engine;

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
}

/// What kube-apiserver v1.36.2 with etcd 3.5 did on a machine of this kind: wrk, one thread, 64 TLS connections, pods of
/// about 1.5 kB, lists of 10,661 pods. It cannot be run beside this benchmark; these are its recorded results.
const RECORDED: [(&str, &str, f64); 9] = [
    ("create", "rate", 884.0),
    ("create", "p50", 65.0),
    ("create", "p99", 176.0),
    ("get", "rate", 3_360.0),
    ("list_json", "time", 640.0),
    ("list_protobuf", "time", 270.0),
    ("list_table", "time", 370.0),
    ("lists_at_once", "peak", 4_700.0),
    ("idle", "resident", 270.0),
];

/// Prints what is measured with one store, or with none.
pub(crate) struct Report {
    engine: Option<Engine>,
    format: Format,
}

impl Report {
    pub(crate) fn new(engine: Option<Engine>, format: Format) -> Self {
        Self { engine, format }
    }

    pub(crate) fn print(&self, case: &str, metric: &str, value: f64, unit: &str) {
        let store = self.engine.map_or("none", Engine::name);
        let value = rounded(value);
        let recorded = RECORDED.iter().find(|(name, what, _)| *name == case && *what == metric);
        if self.format == Format::Json {
            let mut line = json!({
                "case": case, "store": store, "metric": metric, "value": value, "unit": unit,
            });
            if let Some((_, _, peer)) = recorded {
                line["recorded_kube_apiserver"] = json!(peer);
            }
            println!("{line}");
            return;
        }
        let beside = recorded
            .map(|(_, _, peer)| format!("  {} of kube-apiserver's recorded {peer}", rounded(value / peer)));
        println!("{store:<9} {case:<16} {metric:<12} {value:>10} {unit:<12}{}", beside.unwrap_or_default());
    }
}

/// Four significant digits: more is noise.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}
