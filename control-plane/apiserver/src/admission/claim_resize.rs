//! PersistentVolumeClaimResize: a claim grows only where its storage class says that volumes can.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Error, usage::quantity};
use serde_json::Value;

use super::{Operation, Plugin, Request};
use crate::{cache::KindCache, resources::Resources};

pub(super) struct ClaimResize {
    classes: Arc<KindCache>,
}

impl ClaimResize {
    pub(super) fn new(resources: &Resources) -> Self {
        let classes = resources.builtin("storage.k8s.io", "v1", "storageclasses");
        Self { classes: classes.cache().expect("a kind that is stored").clone() }
    }
}

#[async_trait]
impl Plugin for ClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        let is_claim = request.is("", "persistentvolumeclaims") && request.subresource.is_empty();
        let (Operation::Update, true, Some(old)) = (request.operation, is_claim, request.old) else {
            return Ok(());
        };
        let class = class_of(old).and_then(|name| self.classes.get("", name)).map(|class| class.value());
        check(request.object, old, class.as_ref()).map_err(|why| request.forbidden(why))
    }
}

fn class_of(claim: &Value) -> Option<&str> {
    let annotated = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str();
    annotated.or_else(|| claim["spec"]["storageClassName"].as_str())
}

fn check(claim: &Value, old: &Value, class: Option<&Value>) -> Result<(), &'static str> {
    let size = |claim: &Value| quantity(&claim["spec"]["resources"]["requests"]["storage"]);
    if size(claim) <= size(old) {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err("Only bound persistent volume claims can be expanded");
    }
    if class.is_none_or(|class| class["allowVolumeExpansion"] != true) {
        return Err(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support \
             resize",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_grow_where_their_class_allows_it() {
        let claim = |size: &str, phase: &str| json!({ "spec": { "resources": { "requests": { "storage": size } } }, "status": { "phase": phase } });
        let (small, large) = (claim("1Gi", "Bound"), claim("2Gi", "Bound"));
        let (grows, fixed) = (json!({ "allowVolumeExpansion": true }), json!({}));
        assert_eq!(check(&large, &small, Some(&grows)), Ok(()));
        assert_eq!(check(&claim("1024Mi", "Bound"), &small, None), Ok(()), "the same size");
        assert!(check(&large, &small, Some(&fixed)).is_err() && check(&large, &small, None).is_err());
        assert_eq!(
            check(&large, &claim("1Gi", "Pending"), Some(&grows)),
            Err("Only bound persistent volume claims can be expanded")
        );
    }
}
