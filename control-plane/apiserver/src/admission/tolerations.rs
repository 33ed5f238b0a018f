//! DefaultTolerationSeconds: how long pods stay on a node that is not ready or not reachable, unless they say.

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::{Value, json};

use super::{Plugin, Request};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// What pods get that say nothing of these taints, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultTolerationSeconds {
    /// `--default-not-ready-toleration-seconds`.
    pub not_ready: u32,
    /// `--default-unreachable-toleration-seconds`.
    pub unreachable: u32,
}

impl Default for DefaultTolerationSeconds {
    /// Five minutes each.
    fn default() -> Self {
        Self { not_ready: 300, unreachable: 300 }
    }
}

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        // A client that writes back what it made is not to take away what was added.
        if request.creates("pods") || request.updates("pods") {
            add_tolerations(request.object, *self);
        }
        Ok(())
    }
}

fn add_tolerations(pod: &mut Value, defaults: DefaultTolerationSeconds) {
    let tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    let tolerates = |taint: &str| {
        tolerations.iter().any(|toleration| {
            let key = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        })
    };
    let defaults = [(NOT_READY, defaults.not_ready), (UNREACHABLE, defaults.unreachable)];
    let missing = defaults.into_iter().filter(|(taint, _)| !tolerates(taint)).map(|(taint, seconds)| {
        json!({ "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds })
    });
    let all: Vec<Value> = tolerations.iter().cloned().chain(missing).collect();
    if all.len() > tolerations.len() {
        pod["spec"]["tolerations"] = Value::Array(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_taints_are_tolerated_unless_the_pod_says_something_of_them() {
        let defaults = DefaultTolerationSeconds { not_ready: 7, ..DefaultTolerationSeconds::default() };
        let mut plain = json!({ "spec": {} });
        add_tolerations(&mut plain, defaults);
        let seconds = |index: usize| plain["spec"]["tolerations"][index]["tolerationSeconds"].as_u64();
        assert_eq!((seconds(0), seconds(1), seconds(2)), (Some(7), Some(300), None));
        let before = plain.clone();
        add_tolerations(&mut plain, defaults);
        assert_eq!(plain, before);
        let mut everything = json!({ "spec": { "tolerations": [{ "operator": "Exists" }] } });
        add_tolerations(&mut everything, defaults);
        assert_eq!(everything["spec"]["tolerations"].as_array().map(Vec::len), Some(1));
    }
}
