//! Whom a [`Skipped`] concerns, for those who tell users: the Service, or the pod with the host port.
//!
//! `Skipped::what` is text for people, in the forms that `desired` and [`ServicePortName`](crate::ServicePortName)
//! write: `namespace/name:port`, the same with `/protocol`, `host port N of pod namespace/name`.

use crate::desired::{Kind, Skipped};

/// The object that something was skipped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject<'a> {
    pub kind: Kind,
    pub namespace: &'a str,
    pub name: &'a str,
    /// Name of the service port (empty when it has none) or number of the host port, perhaps with its protocol.
    pub port: &'a str,
}

impl Skipped {
    /// `None` for a text of another form.
    pub fn subject(&self) -> Option<Subject<'_>> {
        if let Some((port, pod)) =
            self.what.strip_prefix("host port ").and_then(|it| it.split_once(" of pod "))
        {
            let (namespace, name) = pod.split_once('/')?;
            return Some(Subject { kind: Kind::HostPort, namespace, name, port });
        }
        let (namespace, rest) = self.what.split_once('/')?;
        let (name, port) = rest.split_once(':')?;
        Some(Subject { kind: Kind::Service, namespace, name, port })
    }
}

#[cfg(test)]
mod tests {
    use hawser_ebpf_abi::IPPROTO_UDP;

    use super::*;
    use crate::ServicePortName;

    #[track_caller]
    fn check(what: &str, expected: Option<(Kind, &str, &str, &str)>) {
        let skipped = Skipped { what: what.to_owned(), reason: "" };
        let found = skipped.subject().map(|it| (it.kind, it.namespace, it.name, it.port));
        assert_eq!(found, expected, "{what}");
    }

    #[test]
    fn every_form_names_its_object() {
        check("shop/web:http", Some((Kind::Service, "shop", "web", "http")));
        check("shop/web:", Some((Kind::Service, "shop", "web", "")));
        check("host port 80 of pod shop/web-1", Some((Kind::HostPort, "shop", "web-1", "80")));
        check("something else", None);
        let name = |kind| ServicePortName {
            namespace: "shop".into(),
            name: "web".into(),
            port: "53".into(),
            protocol: IPPROTO_UDP,
            is_v6: false,
            kind,
        };
        check(&name(Kind::Service).to_string(), Some((Kind::Service, "shop", "web", "53/UDP")));
        check(&name(Kind::HostPort).to_string(), Some((Kind::HostPort, "shop", "web", "53/UDP")));
    }
}
