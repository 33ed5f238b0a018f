//! Time zones by name, from the machine's database.

use std::{fs, path::Path};

use jiff::tz::TimeZone;

/// Where systems keep the database, as other programs look for it.
const DIRECTORIES: [&str; 3] = ["/usr/share/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo"];

/// UTC where none is named. Fails with what is wrong.
pub fn find(name: Option<&str>) -> Result<TimeZone, String> {
    let name = match name {
        None | Some("" | "UTC" | "Etc/UTC") => return Ok(TimeZone::UTC),
        Some(name) => name,
    };
    let is_plain = |part: &str| {
        let mut letters = part.bytes();
        letters.next().is_some_and(|first| first.is_ascii_alphanumeric())
            && letters.all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte))
    };
    let unknown = || format!("unknown time zone {name}");
    if !name.split('/').all(is_plain) {
        return Err(unknown());
    }
    let found = DIRECTORIES.iter().find_map(|directory| fs::read(Path::new(directory).join(name)).ok());
    TimeZone::tzif(name, &found.ok_or_else(unknown)?).map_err(|error| error.to_string())
}

/// Whether this machine has a database at all. Without one no name but UTC can be told from a wrong one.
pub fn is_known() -> bool {
    DIRECTORIES.iter().any(|directory| Path::new(directory).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        assert_eq!(find(None).unwrap(), TimeZone::UTC);
        for name in ["../../etc/passwd", "/etc/passwd", "Mars/Crater", "Local", "a//b", "."] {
            assert!(find(Some(name)).is_err(), "{name}");
        }
    }
}
