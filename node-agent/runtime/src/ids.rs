//! Names of things, all derived: whoever repeats a step finds what the first try left.

use sha2::{Digest, Sha256};

use crate::ContainerId;

/// Id of the `attempt`th container `name` of a pod: 64 hex digits.
pub fn container_id(pod_uid: &str, name: &str, attempt: u32) -> ContainerId {
    hex(&Sha256::digest(format!("{pod_uid}\n{name}\n{attempt}")))
}

/// `sha256:<hex>` of `bytes`.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_by_each_part() {
        let id = container_id("uid", "web", 0);
        assert_eq!(id.len(), 64);
        assert_eq!(id, container_id("uid", "web", 0));
        assert_ne!(id, container_id("uid", "web", 1));
        assert_ne!(id, container_id("uid", "we", 0));
        assert_ne!(id, container_id("uie", "web", 0));
    }
}
