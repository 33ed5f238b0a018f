//! Forms of names and labels, with the messages upstream gives for what breaks them.
//!
//! Each function returns every complaint, none for a good value; callers put them behind a field path.
//! Follows `k8s.io/apimachinery/pkg/util/validation`.

/// The most characters of a DNS label, a label's value, and the name part of a label's key.
pub const MAX_LABEL: usize = 63;
/// The most characters of a DNS subdomain: what most objects' names are.
pub const MAX_SUBDOMAIN: usize = 253;

const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                         alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                         validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                           and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or \
                           '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const DNS_1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                              must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex \
                              used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' \
                                  or '.', and must start and end with an alphanumeric character (e.g. 'example.com', \
                                  regex used for validation is \
                                  '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS_1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                              alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or \
                              'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// A key of a label, or a finalizer: `name`, or `example.com/name`.
pub fn qualified_name(value: &str) -> Vec<String> {
    let (prefix, name) = match value.split('/').collect::<Vec<_>>().as_slice() {
        [name] => (None, *name),
        [prefix, name] => (Some(*prefix), *name),
        _ => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    let mut errors = Vec::new();
    match prefix {
        Some("") => errors.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => {
            errors.extend(dns_1123_subdomain(prefix).iter().map(|error| format!("prefix part {error}")))
        }
        None => {}
    }
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > MAX_LABEL {
        errors.push(format!("name part {}", too_long(MAX_LABEL)));
    }
    if !is_qualified(name) {
        errors.push(format!("name part {QUALIFIED}"));
    }
    errors
}

/// The value of a label; may be empty.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > MAX_LABEL {
        errors.push(too_long(MAX_LABEL));
    }
    if !value.is_empty() && !is_qualified(value) {
        errors.push(LABEL_VALUE.to_owned());
    }
    errors
}

/// A namespace, a container: at most 63 lower-case letters, digits and dashes.
pub fn dns_1123_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > MAX_LABEL {
        errors.push(too_long(MAX_LABEL));
    }
    if !is_dns_label(value) {
        let has_dots = value.split('.').all(is_dns_label);
        errors.push(if has_dots { "must not contain dots" } else { DNS_1123_LABEL }.to_owned());
    }
    errors
}

/// Labels joined by dots: what most objects may be named.
pub fn dns_1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > MAX_SUBDOMAIN {
        errors.push(too_long(MAX_SUBDOMAIN));
    }
    if !value.split('.').all(is_dns_label) {
        errors.push(DNS_1123_SUBDOMAIN.to_owned());
    }
    errors
}

/// A Service: a DNS label that begins with a letter.
pub fn dns_1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > MAX_LABEL {
        errors.push(too_long(MAX_LABEL));
    }
    if !is_dns_label(value) || !value.starts_with(|c: char| c.is_ascii_lowercase()) {
        errors.push(DNS_1035_LABEL.to_owned());
    }
    errors
}

fn is_qualified(value: &str) -> bool {
    let bytes = value.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

fn is_dns_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edge = |byte: Option<&u8>| byte.is_some_and(alphanumeric);
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_forms() {
        let long = "a".repeat(64);
        for (check, good, bad) in [
            (
                qualified_name as fn(&str) -> Vec<String>,
                &["app", "App_1.x", "example.com/app", "a"][..],
                &["", "/app", "a/b/c", "-app", "app-", "Example.com/app", "a b", "ä", long.as_str()][..],
            ),
            (label_value, &["", "v1.2_3-x", "A"][..], &["-", "a/b", "a b", "x.", long.as_str()][..]),
            (dns_1123_label, &["a", "web-1", "1a"][..], &["", "-a", "a-", "a.b", "A", long.as_str()][..]),
            (dns_1123_subdomain, &["a", "web-1.example", "1.2.3"][..], &["", ".", "a..b", "a.-b", "A.b"][..]),
            (dns_1035_label, &["a", "web-1"][..], &["", "1a", "a.b", "a-"][..]),
        ] {
            for value in good {
                assert_eq!(check(value), Vec::<String>::new(), "{value:?}");
            }
            for value in bad {
                assert_ne!(check(value), Vec::<String>::new(), "{value:?}");
            }
        }
    }
}
