//! DefaultTolerationSeconds: pods stay five minutes on a node that is not ready or not reachable.

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::{Value, json};

use super::{Plugin, Request};

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        if request.creates("pods") {
            add_tolerations(request.object);
        }
        Ok(())
    }
}

fn add_tolerations(pod: &mut Value) {
    let tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    let tolerates = |taint: &str| {
        tolerations.iter().any(|toleration| {
            let key = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        })
    };
    let missing = TAINTS.into_iter().filter(|taint| !tolerates(taint)).map(|taint| {
        json!({ "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS })
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
        let mut plain = json!({ "spec": {} });
        add_tolerations(&mut plain);
        assert_eq!(plain["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
        let before = plain.clone();
        add_tolerations(&mut plain);
        assert_eq!(plain, before);
        let mut everything = json!({ "spec": { "tolerations": [{ "operator": "Exists" }] } });
        add_tolerations(&mut everything);
        assert_eq!(everything["spec"]["tolerations"].as_array().map(Vec::len), Some(1));
    }
}
