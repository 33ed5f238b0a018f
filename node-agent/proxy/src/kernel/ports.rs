//! Ports that the kernel gives to nobody by itself (`ip_local_reserved_ports`, Documentation/networking/ip-sysctl).

use std::{fs, io};

const PATH: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Reserves `first` and the ports above it in this thread's network namespace, beside those that are reserved already.
/// A program that asks for one by its number still gets it.
pub(crate) fn reserve_from(first: u16) -> io::Result<()> {
    let known = fs::read_to_string(PATH)?;
    match with_range(known.trim(), first) {
        Some(wanted) => fs::write(PATH, wanted),
        None => Ok(()),
    }
}

/// Returns the list with the range, or `None` where it is in the list.
fn with_range(known: &str, first: u16) -> Option<String> {
    let range = format!("{first}-{}", u16::MAX);
    if known.split(',').any(|part| covers(part, first)) {
        return None;
    }
    Some(if known.is_empty() { range } else { format!("{known},{range}") })
}

fn covers(part: &str, first: u16) -> bool {
    let Some((from, to)) = part.split_once('-') else { return false };
    from.parse::<u16>().is_ok_and(|from| from <= first) && to.parse() == Ok(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_added_to_what_is_reserved() {
        assert_eq!(with_range("", 61_000).as_deref(), Some("61000-65535"));
        assert_eq!(with_range("8080,9148", 61_000).as_deref(), Some("8080,9148,61000-65535"));
        assert_eq!(with_range("62000-65535", 61_000).as_deref(), Some("62000-65535,61000-65535"));
        assert_eq!(with_range("8080,61000-65535", 61_000), None);
        assert_eq!(with_range("32768-65535", 61_000), None);
    }
}
