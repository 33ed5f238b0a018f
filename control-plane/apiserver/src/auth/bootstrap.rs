//! Bootstrap tokens: what a new machine joins with, kept in Secrets of `kube-system` (upstream's
//! `bootstrap.kubernetes.io/token`, as kubeadm makes them).

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::{AUTHENTICATED, User};

pub(super) const NAMESPACE: &str = "kube-system";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
/// Bytes of a group's name behind the prefix.
const MAX_GROUP_LENGTH: usize = 256;

/// A token in two parts, `abcdef.0123456789abcdef`; the first one is no secret and finds the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BootstrapToken<'a> {
    pub(super) id: &'a str,
    secret: &'a str,
}

impl<'a> BootstrapToken<'a> {
    pub(super) fn parse(token: &'a str) -> Option<Self> {
        let is_plain = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let (id, secret) = token.split_once('.')?;
        (id.len() == ID_LENGTH && secret.len() == SECRET_LENGTH && is_plain(id) && is_plain(secret))
            .then_some(Self { id, secret })
    }

    /// The name of the Secret that it is kept in.
    pub(super) fn secret_name(&self) -> String {
        format!("bootstrap-token-{}", self.id)
    }

    /// Whom it speaks for; `None` where the Secret is of another token or sort, has expired, is going, or is not for
    /// authentication.
    pub(super) fn user(&self, secret: &Value, now: Timestamp) -> Option<Arc<User>> {
        let data = |key: &str| {
            let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        };
        let is_live = match data("expiration") {
            None => true,
            // What cannot be read has expired.
            Some(at) => at.parse::<Timestamp>().is_ok_and(|at| now < at),
        };
        // Digests are compared, so that the time that it takes tells nothing of the secret.
        let hash = |text: &str| digest(&SHA256, text.as_bytes());
        let is_it = hash(&data("token-secret")?).as_ref() == hash(self.secret).as_ref()
            && data("token-id")? == self.id;
        let is_for_this = secret["type"] == SECRET_TYPE
            && secret["metadata"]["deletionTimestamp"].is_null()
            && data("usage-bootstrap-authentication").as_deref() == Some("true");
        if !(is_it && is_live && is_for_this) {
            return None;
        }
        let extra = data("auth-extra-groups").filter(|groups| !groups.is_empty());
        let extra: Vec<String> =
            extra.iter().flat_map(|groups| groups.split(',')).map(str::to_owned).collect();
        if !extra.iter().all(|group| is_group(group)) {
            return None;
        }
        let groups = [GROUP.to_owned()].into_iter().chain(extra).chain([AUTHENTICATED.to_owned()]).collect();
        Some(Arc::new(User { name: format!("system:bootstrap:{}", self.id), groups, ..User::default() }))
    }
}

/// Groups that a token may name: those below [`GROUP`], so that it makes nobody an administrator.
fn is_group(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix(':')) else { return false };
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    rest.len() <= MAX_GROUP_LENGTH
        && rest.bytes().next_back().is_some_and(is_letter)
        && rest.bytes().all(|b| is_letter(b) || matches!(b, b':' | b'-'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(changes: &[(&str, &str)]) -> Value {
        let mut data = json!({});
        let usual = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
        ];
        for (key, value) in usual.iter().chain(changes) {
            data[key] = json!(STANDARD.encode(value));
        }
        json!({ "metadata": { "name": "bootstrap-token-abcdef" }, "type": SECRET_TYPE, "data": data })
    }

    /// The groups of the user that the token speaks for by this Secret, or nobody.
    #[track_caller]
    fn check(secret: &Value, token: &str, groups: Option<&[&str]>) {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let user = BootstrapToken::parse(token).and_then(|token| token.user(secret, now));
        let found = user.as_ref().map(|user| user.groups.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(found.as_deref(), groups, "{secret}");
        assert!(user.is_none_or(|user| user.name == "system:bootstrap:abcdef"));
    }

    #[test]
    fn a_token_speaks_for_a_bootstrapper() {
        const TOKEN: &str = "abcdef.0123456789abcdef";
        let plain: &[&str] = &["system:bootstrappers", "system:authenticated"];
        check(&secret(&[]), TOKEN, Some(plain));
        check(&secret(&[("expiration", "2026-01-01T00:00:01Z")]), TOKEN, Some(plain));
        let joined: &[&str] = &[
            "system:bootstrappers",
            "system:bootstrappers:kubeadm:default-node-token",
            "system:authenticated",
        ];
        let extra = ("auth-extra-groups", "system:bootstrappers:kubeadm:default-node-token");
        check(&secret(&[extra]), TOKEN, Some(joined));
    }

    #[test]
    fn what_is_not_that_token_speaks_for_nobody() {
        const TOKEN: &str = "abcdef.0123456789abcdef";
        for token in
            ["abcdef.0123456789abcdee", "abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "abcdef"]
        {
            check(&secret(&[]), token, None);
        }
        for change in [
            ("expiration", "2026-01-01T00:00:00Z"),
            ("expiration", "soon"),
            ("usage-bootstrap-authentication", "false"),
            ("token-id", "ghijkl"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:a,system:masters"),
            ("auth-extra-groups", "system:bootstrappers:"),
        ] {
            check(&secret(&[change]), TOKEN, None);
        }
        let mut other = secret(&[]);
        other["type"] = json!("Opaque");
        check(&other, TOKEN, None);
        let mut going = secret(&[]);
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        check(&going, TOKEN, None);
    }
}
