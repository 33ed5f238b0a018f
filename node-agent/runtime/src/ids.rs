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

/// It has the form that [`digest_of`] gives.
pub(crate) fn is_digest(text: &str) -> bool {
    let is_hex = |hex: &str| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    text.strip_prefix("sha256:").is_some_and(is_hex)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_told_from_other_texts() {
        assert!(is_digest(&digest_of(b"x")));
        for other in ["", "sha256:", "sha256:../x", &digest_of(b"x").to_uppercase(), &digest_of(b"x")[7..]] {
            assert!(!is_digest(other), "{other}");
        }
    }

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
