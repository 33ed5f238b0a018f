//! IPAddresses and ServiceCIDRs (KEP-1880), as data.
//!
//! The allocator keeps addresses in its own records and takes its ranges from the flag: nothing reads these objects, and
//! whoever writes one is told.

use std::net::IpAddr;

use hawser_api::FieldError;

use super::{
    AGE, Hooks, NAME, NameRule, PLAIN,
    apps::age,
    names::dns_subdomain,
    rules::{immutable, words},
    text,
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");

pub(crate) static IP_ADDRESS: Hooks = Hooks {
    validate_create: |address| {
        let mut errors = Vec::new();
        let path = SPEC.field("parentRef");
        let parent = address.at("spec.parentRef");
        if !parent.is_object() {
            errors.push(FieldError::required(path, ""));
            return errors;
        }
        if !parent.text("group").is_empty() {
            let group = parent.text("group");
            errors.extend(
                dns_subdomain(group)
                    .into_iter()
                    .map(|wrong| FieldError::invalid(path.field("group"), group, wrong)),
            );
        }
        for (field, is_needed) in [("resource", true), ("name", true), ("namespace", false)] {
            let value = parent.text(field);
            if value.is_empty() && is_needed {
                errors.push(FieldError::required(path.field(field), ""));
            }
            for wrong in NameRule::PathSegment.check(value) {
                errors.push(FieldError::invalid(path.field(field), value, wrong));
            }
        }
        errors
    },
    validate_update: |new, old| {
        let mut errors = Vec::new();
        immutable(&mut errors, &SPEC.field("parentRef"), new.at("spec.parentRef"), old.at("spec.parentRef"));
        errors
    },
    columns: &[NAME, text("ParentRef")],
    cells: |address, _| {
        let parent = address.at("spec.parentRef");
        let shown = if parent.is_object() {
            let resource = match parent.text("group") {
                "" => parent.text("resource").to_owned(),
                group => format!("{}.{group}", parent.text("resource")),
            };
            let mut parts = vec![resource.to_lowercase()];
            parts.extend(["namespace", "name"].map(|field| parent.text(field).to_owned()));
            parts.retain(|part| !part.is_empty());
            parts.join("/")
        } else {
            "<none>".to_owned()
        };
        vec![address.at("metadata.name").clone(), shown.into()]
    },
    name: NameRule::IpAddress,
    warning: Some(
        "the IPAddress is stored, but cluster IPs are allocated without such objects: it reserves nothing",
    ),
    ..PLAIN
};

pub(crate) static SERVICE_CIDR: Hooks = Hooks {
    validate_create: |range| {
        let mut errors = Vec::new();
        let path = SPEC.field("cidrs");
        let all = words(range, "spec.cidrs");
        let spec = range.at("spec").clone();
        match all.as_slice() {
            [] => errors.push(FieldError::required(path, "at least one CIDR required")),
            [_] => (),
            [one, two] if is_dual(one, two) => (),
            [_, _] => {
                let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
                errors.push(FieldError::invalid(path, spec, detail));
                return errors;
            }
            _ => {
                errors.push(FieldError::invalid(path, spec, "may only hold up to 2 values"));
                return errors;
            }
        }
        for (index, range) in all.iter().enumerate() {
            if let Err(wrong) = cidr(range) {
                errors.push(FieldError::invalid(path.index(index), *range, wrong));
            }
        }
        errors
    },
    validate_update: |new, old| {
        let mut errors = Vec::new();
        let path = SPEC.field("cidrs");
        let (now, before) = (new.list("spec.cidrs"), old.list("spec.cidrs"));
        // A second family may come; what is there stays.
        if now.len() == before.len() || (now.len() == 2 && before.len() == 1) {
            for (index, (now, before)) in now.iter().zip(before).enumerate() {
                immutable(&mut errors, &path.index(index), now, before);
            }
        } else {
            immutable(&mut errors, &path, new.at("spec.cidrs"), old.at("spec.cidrs"));
        }
        errors
    },
    columns: &[NAME, text("CIDRs"), AGE],
    cells: |range, now| {
        vec![range.at("metadata.name").clone(), words(range, "spec.cidrs").join(",").into(), age(range, now)]
    },
    warning: Some(
        "the ServiceCIDR is stored, but cluster IPs come from the ranges of --service-cluster-ip-range alone",
    ),
    ..PLAIN
};

/// What is wrong with an address as a name; empty where nothing is.
pub(crate) fn address_name(name: &str) -> Vec<String> {
    let wrong = match name.parse::<IpAddr>() {
        Err(_) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned(),
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            "must not be an IPv4-mapped IPv6 address".to_owned()
        }
        Ok(address) if address.to_string() != name => {
            format!("must be in canonical form ({:?})", address.to_string())
        }
        Ok(_) => return Vec::new(),
    };
    vec![wrong]
}

/// Address and prefix length of a network in CIDR form, or what is wrong with it.
fn cidr(text: &str) -> Result<(IpAddr, u32), String> {
    let invalid = || "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned();
    let (base, prefix) = text.split_once('/').ok_or_else(invalid)?;
    let address: IpAddr = base.parse().map_err(|_| invalid())?;
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            return Err("must not have an IPv4-mapped IPv6 address".to_owned());
        }
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let length = prefix.parse::<u32>().ok().filter(|length| *length <= width).ok_or_else(invalid)?;
    if bits.checked_shl(length).unwrap_or(0) != 0 {
        return Err(format!("must not have bits set beyond the prefix length: {text:?}"));
    }
    let canonical = format!("{address}/{length}");
    if canonical != text {
        return Err(format!("must be in canonical form ({canonical:?})"));
    }
    Ok((address, length))
}

/// An address as older fields take it: leading zeros pass.
pub(crate) fn loose_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse().ok();
    }
    let plain = |part: &str| match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0".to_owned(),
        digits => digits.to_owned(),
    };
    text.split('.').map(plain).collect::<Vec<_>>().join(".").parse().ok()
}

/// Refuses what is no address, as older fields take it.
pub(crate) fn address(errors: &mut Vec<FieldError>, path: &Path<'_>, text: &str) {
    if loose_address(text).is_none() {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(path, text, detail));
    }
}

/// Refuses addresses that mean no host in particular, this one, or a link's own. What is no address is refused too.
pub(crate) fn not_special(errors: &mut Vec<FieldError>, path: &Path<'_>, text: &str) {
    let Some(address) = loose_address(text) else {
        errors.push(FieldError::invalid(path, text, "must be a valid IP address"));
        return;
    };
    let (is_of_link, is_to_link) = match address.to_canonical() {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    let wrong = match () {
        () if address.is_unspecified() => format!("may not be unspecified ({text})"),
        () if address.to_canonical().is_loopback() => {
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
        }
        () if is_of_link => "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned(),
        () if is_to_link => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
        }
        () => return,
    };
    errors.push(FieldError::invalid(path, text, wrong));
}

/// Refuses what is no network, as older fields take it.
pub(crate) fn network(errors: &mut Vec<FieldError>, path: &Path<'_>, text: &str) {
    if loose_cidr(text).is_none() {
        let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        errors.push(FieldError::invalid(path, text, detail));
    }
}

/// Address and prefix length of a network as older fields take it: leading zeros and bits beyond the prefix pass.
pub(crate) fn loose_cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (base, prefix) = text.split_once('/')?;
    let address = loose_address(base)?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let digits = prefix.bytes().all(|byte| byte.is_ascii_digit()).then_some(prefix)?;
    let length = digits.parse::<u32>().ok().filter(|length| *length <= width)?;
    Some((address, length))
}

/// Whether the address is one of the network's.
pub(crate) fn contains((base, length): (IpAddr, u32), address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let differing = bits(base) ^ bits(address);
    base.is_ipv4() == address.is_ipv4() && differing.checked_shr(128 - length).unwrap_or(0) == 0
}

fn is_dual(one: &str, two: &str) -> bool {
    let family = |text: &str| {
        let (address, _) = text.split_once('/')?;
        address.parse::<IpAddr>().ok().map(|address| address.is_ipv4())
    };
    matches!((family(one), family(two)), (Some(one), Some(two)) if one != two)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::kinds::tests::{refused, update_refused, with};

    const ADDRESS: &str = "networking.k8s.io/ipaddresses";
    const RANGE: &str = "networking.k8s.io/servicecidrs";

    fn address(name: &str) -> Value {
        json!({
            "kind": "IPAddress", "apiVersion": "networking.k8s.io/v1", "metadata": { "name": name },
            "spec": { "parentRef": { "resource": "services", "namespace": "default", "name": "kubernetes" } },
        })
    }

    fn range(cidrs: &[&str]) -> Value {
        json!({
            "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": { "name": "more" },
            "spec": { "cidrs": cidrs },
        })
    }

    #[test]
    fn an_address_is_named_by_itself_in_canonical_form() {
        for (name, good) in [
            ("10.0.0.1", true),
            ("2001:db8::1", true),
            ("10.0.0.01", false),
            ("2001:DB8::1", false),
            ("2001:db8:0::1", false),
            ("::ffff:10.0.0.1", false),
            ("web", false),
        ] {
            assert_eq!(address_name(name).is_empty(), good, "{name}");
        }
        refused(ADDRESS, address("10.0.0.1"), &[]);
        refused(ADDRESS, with(address("10.0.0.1"), "/spec", json!({})), &["spec.parentRef: Required value"]);
        refused(
            ADDRESS,
            with(address("10.0.0.1"), "/spec/parentRef", json!({ "group": "Apps", "name": "a/b" })),
            &[
                "spec.parentRef.group: Invalid value: \"Apps\": a lowercase RFC 1123 subdomain must consist of lower case \
                 alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
                 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                "spec.parentRef.resource: Required value",
                "spec.parentRef.name: Invalid value: \"a/b\": may not contain '/'",
            ],
        );
        update_refused(
            ADDRESS,
            address("10.0.0.1"),
            with(address("10.0.0.1"), "/spec/parentRef/name", json!("other")),
            &["spec.parentRef: Invalid value"],
        );
        let cells = (IP_ADDRESS.cells)(&address("10.0.0.1"), jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(cells[1], "services/default/kubernetes");
    }

    #[test]
    fn older_fields_take_networks_loosely() {
        for (text, good) in [
            ("10.0.0.0/8", true),
            ("010.000.00.1/08", true),
            ("2001:db8::1/64", true),
            ("0.0.0.0/0", true),
            ("10.0.0.0", false),
            ("10.0.0/8", false),
            ("10..0.0/8", false),
            ("10.0.0.0/33", false),
            ("10.0.0.0/+8", false),
            ("10.0.0.0/", false),
        ] {
            assert_eq!(loose_cidr(text).is_some(), good, "{text}");
        }
        for (network, address, inside) in [
            ("10.0.0.0/8", "10.9.8.7", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("::/0", "1.2.3.4", false),
            ("2001:db8::/64", "2001:db8::9", true),
            ("10.0.0.1/32", "10.0.0.1", true),
        ] {
            let network_bits = loose_cidr(network).unwrap();
            assert_eq!(contains(network_bits, address.parse().unwrap()), inside, "{network} {address}");
        }
    }

    #[test]
    fn ranges_are_one_of_each_family_at_most() {
        refused(RANGE, range(&["10.0.0.0/16"]), &[]);
        refused(RANGE, range(&["10.0.0.0/16", "2001:db8::/112"]), &[]);
        refused(RANGE, range(&[]), &["spec.cidrs: Required value: at least one CIDR required"]);
        for (cidr, wrong) in [
            ("10.0.0.0", "must be a valid CIDR value"),
            ("10.0.0.0/33", "must be a valid CIDR value"),
            ("10.0.0.1/16", "must not have bits set beyond the prefix length"),
            ("2001:DB8::/64", "must be in canonical form"),
            ("10.0.0.0/016", "must be in canonical form"),
        ] {
            assert!(super::cidr(cidr).is_err_and(|error| error.starts_with(wrong)), "{cidr}");
        }
        update_refused(RANGE, range(&["10.0.0.0/16"]), range(&["10.0.0.0/16", "2001:db8::/112"]), &[]);
        update_refused(
            RANGE,
            range(&["10.0.0.0/16"]),
            range(&["10.1.0.0/16"]),
            &["spec.cidrs[0]: Invalid value: \"10.1.0.0/16\": field is immutable"],
        );
        update_refused(
            RANGE,
            range(&["10.0.0.0/16", "2001:db8::/112"]),
            range(&["10.0.0.0/16"]),
            &["spec.cidrs: Invalid value"],
        );
    }
}
