//! Acting as somebody else: the `Impersonate-*` headers, which `kubectl --as` sends.
//!
//! Who asks must be allowed to impersonate each thing named: the user (or service account), every group, the uid and the
//! extra values, as upstream asks it of its authorizer. From there on the request is the other's alone: nothing of the
//! asker's own rights remains. Headers that are overlooked would be the opposite, so they are read wherever
//! authentication is.

use std::{borrow::Cow, sync::Arc};

use hawser_api::{Error, GroupVersionResource};
use http::HeaderMap;

use super::{ANONYMOUS, AUTHENTICATED, Attributes, Authorizer, Decision, UNAUTHENTICATED, User, refusal};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// The user as whom the request goes on: the one the headers name, or `user` where they name nobody.
///
/// # Errors
/// Forbidden where `user` may not act as them; BadRequest for groups, uid or extra values of nobody.
pub fn effective(
    user: Arc<User>,
    headers: &HeaderMap,
    authorizer: &dyn Authorizer,
) -> Result<Arc<User>, Error> {
    let Some(asked) = read(headers)? else { return Ok(user) };
    for attributes in permissions(&asked) {
        match authorizer.authorize(&user, &attributes) {
            Decision::Allow(_) => {}
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                let resource = GroupVersionResource {
                    group: attributes.group.clone().into(),
                    version: attributes.version.clone().into(),
                    resource: attributes.resource.clone().into(),
                };
                let why = refusal(&user, &attributes, &reason);
                return Err(Error::forbidden(&resource, &attributes.name, &why));
            }
        }
    }
    Ok(Arc::new(with_implied_groups(asked)))
}

/// Whom the headers name; `None` where there are none.
fn read(headers: &HeaderMap) -> Result<Option<User>, Error> {
    let text = |value: &http::HeaderValue| {
        value
            .to_str()
            .map(str::to_owned)
            .map_err(|_| Error::bad_request("an Impersonate header is not plain text"))
    };
    let mut user = User::default();
    let mut any = false;
    for (name, value) in headers {
        match name.as_str() {
            USER => user.name = text(value)?,
            UID => user.uid = text(value)?,
            GROUP => user.groups.push(text(value)?),
            other => match other.strip_prefix(EXTRA) {
                Some(key) => user.extra.entry(unescaped(key)).or_default().push(text(value)?),
                None => continue,
            },
        }
        any = true;
    }
    if any && user.name.is_empty() {
        return Err(Error::bad_request("groups, uid or extra values cannot be impersonated without a user"));
    }
    Ok(any.then_some(user))
}

/// A header's name cannot carry everything that a key may hold: the rest is percent-encoded.
fn unescaped(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let [first, after @ ..] = rest {
        let escape = after.first_chunk::<2>().filter(|_| *first == b'%');
        let decoded =
            escape.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the asker must be allowed to do, one by one.
fn permissions(asked: &User) -> Vec<Attributes> {
    let permission =
        |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
            verb: Cow::Borrowed("impersonate"),
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
    let account = asked.name.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'));
    let mut needed = vec![match account {
        Some((namespace, name)) => permission("", "serviceaccounts", "", namespace, name),
        None => permission("", "users", "", "", &asked.name),
    }];
    needed.extend(asked.groups.iter().map(|group| permission("", "groups", "", "", group)));
    if !asked.uid.is_empty() {
        needed.push(permission("authentication.k8s.io", "uids", "", "", &asked.uid));
    }
    for (key, values) in &asked.extra {
        let of_key =
            values.iter().map(|value| permission("authentication.k8s.io", "userextras", key, "", value));
        needed.extend(of_key);
    }
    needed
}

/// Groups that everybody of that kind is in, as if they had come by themselves.
fn with_implied_groups(mut user: User) -> User {
    if user.groups.is_empty()
        && let Some((namespace, _)) =
            user.name.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'))
    {
        user.groups = vec![SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")];
    }
    let everybody = if user.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !user.is_in(everybody) && !user.is_in(UNAUTHENTICATED) {
        user.groups.push(everybody.to_owned());
    }
    user
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::auth::{SYSTEM_MASTERS, authz::Superusers};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, http::HeaderValue::from_static(value));
        }
        headers
    }

    fn administrator() -> Arc<User> {
        User::named("root", &[SYSTEM_MASTERS])
    }

    #[track_caller]
    fn acts_as(pairs: &[(&'static str, &'static str)], name: &str, groups: &[&str]) {
        let user = effective(administrator(), &headers(pairs), &Superusers).expect("an administrator may");
        assert_eq!(
            (user.name.as_str(), user.groups.iter().map(String::as_str).collect()),
            (name, groups.to_vec())
        );
    }

    #[test]
    fn the_request_goes_on_as_the_one_named() {
        acts_as(&[], "root", &[SYSTEM_MASTERS, AUTHENTICATED]);
        acts_as(&[(USER, "joe")], "joe", &[AUTHENTICATED]);
        acts_as(&[(USER, "joe"), (GROUP, "a"), (GROUP, "b")], "joe", &["a", "b", AUTHENTICATED]);
        acts_as(
            &[(USER, "system:serviceaccount:shop:robot")],
            "system:serviceaccount:shop:robot",
            &[SERVICE_ACCOUNTS, "system:serviceaccounts:shop", AUTHENTICATED],
        );
        acts_as(&[(USER, ANONYMOUS)], ANONYMOUS, &[UNAUTHENTICATED]);
    }

    #[test]
    fn extra_values_keep_their_keys() {
        let pairs = [(USER, "joe"), ("impersonate-extra-example.com%2fteam", "blue")];
        let user = effective(administrator(), &headers(&pairs), &Superusers).expect("an administrator may");
        assert_eq!(user.extra, BTreeMap::from([("example.com/team".to_owned(), vec!["blue".to_owned()])]));
    }

    #[test]
    fn others_may_not_and_groups_need_a_user() {
        let robot = User::named("system:serviceaccount:shop:robot", &[]);
        let error = effective(robot, &headers(&[(USER, "root")]), &Superusers).expect_err("it may not");
        assert_eq!(
            error.message(),
            r#"users "root" is forbidden: User "system:serviceaccount:shop:robot" cannot impersonate resource "users" in API group "" at the cluster scope"#
        );
        let error = effective(administrator(), &headers(&[(GROUP, "a")]), &Superusers).expect_err("nobody");
        assert_eq!(error.code(), 400);
    }
}
