//! Syntax of names: objects, labels, ports, keys. Each rule answers with what is wrong, in upstream's words.
//!
//! The texts are those of `k8s.io/apimachinery/pkg/util/validation`; clients and users match on them.

pub(crate) use hawser_api::validation::{
    dns_1035_label as dns_label_1035, dns_1123_label as dns_label, dns_1123_subdomain as dns_subdomain,
    label_value, qualified_name,
};

use super::addresses::address_name;

/// Which names a kind allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 label.
    Label,
    /// RFC 1123 subdomain.
    Subdomain,
    /// RFC 1035 label.
    Label1035,
    /// Anything that can be one segment of a path.
    PathSegment,
    /// An IP address in canonical form.
    IpAddress,
}

impl NameRule {
    /// What is wrong with a whole name; empty where nothing is.
    pub(crate) fn check(self, name: &str) -> Vec<String> {
        match self {
            Self::Label => dns_label(name),
            Self::Subdomain => dns_subdomain(name),
            Self::Label1035 => dns_label_1035(name),
            Self::PathSegment => path_segment(name),
            Self::IpAddress => address_name(name),
        }
    }

    /// What is wrong with the beginning of a name, which may end with a dash.
    pub(crate) fn check_prefix(self, prefix: &str) -> Vec<String> {
        match self {
            Self::PathSegment => path_segment_prefix(prefix),
            _ => match prefix.strip_suffix('-') {
                Some(start) if prefix.len() > 1 => self.check(&format!("{start}a")),
                _ => self.check(prefix),
            },
        }
    }
}

fn too_long(name: &str, limit: usize) -> Option<String> {
    (name.len() > limit).then(|| format!("must be no more than {limit} characters"))
}

fn path_segment(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    path_segment_prefix(name)
}

fn path_segment_prefix(name: &str) -> Vec<String> {
    ['/', '%'].iter().filter(|&&c| name.contains(c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// Keys of ConfigMaps and Secrets.
pub(crate) fn config_key(key: &str) -> Vec<String> {
    let mut wrong: Vec<String> = too_long(key, 253).into_iter().collect();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if key.is_empty() || !key.bytes().all(allowed) {
        wrong.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
             'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    } else if key == "." {
        wrong.push("must not be '.'".to_owned());
    } else if key == ".." {
        wrong.push("must not be '..'".to_owned());
    } else if key.starts_with("..") {
        wrong.push("must not start with '..'".to_owned());
    }
    wrong
}

/// A subdomain whose labels may have underscores, as search paths of resolvers do.
pub(crate) fn search_path(name: &str) -> Vec<String> {
    let mut wrong: Vec<String> = too_long(name, 253).into_iter().collect();
    let is_edge = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_')
    };
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        is_edge(bytes.first())
            && is_edge(bytes.last())
            && bytes.iter().all(|byte| is_edge(Some(byte)) || *byte == b'-')
    };
    if !name.split('.').all(is_label) {
        wrong.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9_]([-_a-z0-9]*[a-z0-9_])?(\\.[a-z0-9_]([-_a-z0-9]*[a-z0-9_])?)*')"
                .to_owned(),
        );
    }
    wrong
}

/// Names of headers in HTTP.
pub(crate) fn header_name(name: &str) -> Vec<String> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Vec::new();
    }
    vec![
        "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
         validation is '[-A-Za-z0-9]+')"
            .to_owned(),
    ]
}

/// Names of environment variables.
pub(crate) fn env_name(name: &str) -> Vec<String> {
    if name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .to_owned(),
    ]
}

/// Names of container ports (RFC 6335).
pub(crate) fn port_name(name: &str) -> Vec<String> {
    let mut wrong: Vec<String> = too_long(name, 15).into_iter().collect();
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// What is wrong with a port's number.
pub(crate) fn port_number(port: i64) -> Option<&'static str> {
    (!(1..=65_535).contains(&port)).then_some("must be between 1 and 65535, inclusive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rule() {
        let rows = [
            (NameRule::Label, "web-1", true),
            (NameRule::Label, "web.1", false),
            (NameRule::Label, "-web", false),
            (NameRule::Label, "", false),
            (NameRule::Subdomain, "web.example.com", true),
            (NameRule::Subdomain, "Web", false),
            (NameRule::Subdomain, "web..com", false),
            (NameRule::Label1035, "1web", false),
            (NameRule::Label1035, "web1", true),
            (NameRule::PathSegment, "system:node", true),
            (NameRule::PathSegment, "a/b", false),
            (NameRule::PathSegment, "..", false),
        ];
        for (rule, name, good) in rows {
            assert_eq!(rule.check(name).is_empty(), good, "{rule:?} {name:?}");
        }
        assert!(NameRule::Label.check_prefix("web-").is_empty());
        assert!(!NameRule::Label.check_prefix("Web-").is_empty());
        assert_eq!(NameRule::Label.check(&"a".repeat(64)), ["must be no more than 63 characters"]);
    }

    #[test]
    fn keys_and_values_of_labels() {
        for (key, good) in [
            ("app", true),
            ("example.com/app", true),
            ("a/b/c", false),
            ("/app", false),
            ("app/", false),
            ("app ", false),
        ] {
            assert_eq!(qualified_name(key).is_empty(), good, "{key:?}");
        }
        for (value, good) in [("", true), ("v1.2_3-x", true), ("-x", false), ("a b", false)] {
            assert_eq!(label_value(value).is_empty(), good, "{value:?}");
        }
        for (name, good) in
            [("http", true), ("80", false), ("a--b", false), ("-a", false), ("averyveryverylongname", false)]
        {
            assert_eq!(port_name(name).is_empty(), good, "{name:?}");
        }
        for (key, good) in [("a.b", true), ("..data", false), ("", false), ("a/b", false)] {
            assert_eq!(config_key(key).is_empty(), good, "{key:?}");
        }
    }
}
