//! StorageObjectInUseProtection: claims and volumes stay until nothing uses them.
//!
//! The finalizers are taken away by the controllers `persistentvolumeclaim-protection` and `persistentvolume-protection`.

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::{Value, json};

use super::{Plugin, Request, elements};

pub(super) struct StorageProtection;

#[async_trait]
impl Plugin for StorageProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        if request.creates("persistentvolumeclaims") {
            add_finalizer(request.object, "kubernetes.io/pvc-protection");
        } else if request.creates("persistentvolumes") {
            add_finalizer(request.object, "kubernetes.io/pv-protection");
        }
        Ok(())
    }
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    let mut finalizers = elements(&object["metadata"]["finalizers"]).to_vec();
    if !finalizers.iter().any(|known| known == finalizer) {
        finalizers.push(json!(finalizer));
        object["metadata"]["finalizers"] = json!(finalizers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finalizer_stands_there_once() {
        let mut claim = json!({ "metadata": { "finalizers": ["a/b"] } });
        add_finalizer(&mut claim, "c/d");
        add_finalizer(&mut claim, "c/d");
        assert_eq!(claim["metadata"]["finalizers"], json!(["a/b", "c/d"]));
    }
}
