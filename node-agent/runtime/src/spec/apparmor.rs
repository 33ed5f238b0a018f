//! The AppArmor profile of a container: one that is loaded, or the runtime's own, which is loaded when it is first needed.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{AppArmor, Error, Result};

/// Where the kernel lists the profiles that are loaded, as `name (mode)`.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Begins with `Y` where AppArmor is on.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// The runtime's own, as containerd's CRI names it.
const DEFAULT_NAME: &str = "cri-containerd.apparmor.d";
const DEFAULT_TEXT: &str = include_str!("cri-containerd.apparmor.d");
const PARSER: &str = "apparmor_parser";

/// The profile that runc is to apply; `None` for none. Blocks.
///
/// # Errors
/// A profile that was asked for and is not loaded. Where none was asked for, a container goes without where there is none.
pub(crate) fn profile(wanted: &AppArmor) -> Result<Option<String>> {
    if *wanted == AppArmor::Unconfined || (*wanted == AppArmor::Unspecified && !is_enabled()) {
        return Ok(None);
    }
    let loaded = || std::fs::read_to_string(PROFILES).unwrap_or_default();
    let found = choose(wanted, &loaded());
    if found.is_ok() || matches!(wanted, AppArmor::Localhost(_)) {
        return found;
    }
    let tried = load().and_then(|()| choose(wanted, &loaded()));
    match tried {
        Err(error) if *wanted == AppArmor::Unspecified => {
            tracing::warn!(%error, "a container goes without an AppArmor profile");
            Ok(None)
        }
        tried => tried,
    }
}

fn is_enabled() -> bool {
    std::fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y')) && Path::new(PROFILES).exists()
}

fn choose(wanted: &AppArmor, loaded: &str) -> Result<Option<String>> {
    let name = match wanted {
        AppArmor::Unconfined => return Ok(None),
        AppArmor::RuntimeDefault | AppArmor::Unspecified => DEFAULT_NAME,
        AppArmor::Localhost(name) => name,
    };
    let is_loaded = loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name));
    match is_loaded {
        true => Ok(Some(name.to_owned())),
        false => Err(invalid(format!("profile {name:?} is not loaded"))),
    }
}

/// Hands the runtime's own profile to the kernel.
fn load() -> Result<()> {
    let failed = |why: String| invalid(format!("profile {DEFAULT_NAME:?} cannot be loaded: {why}"));
    let mut parser = Command::new(PARSER)
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{PARSER}: {error}")))?;
    if let Some(mut stdin) = parser.stdin.take() {
        // Where it ends before it has read all, it says why.
        let _ = stdin.write_all(DEFAULT_TEXT.as_bytes());
    }
    let output = parser.wait_with_output().map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn invalid(message: String) -> Error {
    Error::Invalid { field: "appArmorProfile", message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_has_to_be_loaded() {
        let loaded = "cri-containerd.apparmor.d (enforce)\nk8s-deny (complain)\n";
        let check = |wanted: AppArmor, loaded: &str, expected: Option<Option<&str>>| {
            let found = choose(&wanted, loaded).ok();
            assert_eq!(found.as_ref().map(Option::as_deref), expected, "{wanted:?}");
        };
        check(AppArmor::Unconfined, "", Some(None));
        check(AppArmor::RuntimeDefault, loaded, Some(Some("cri-containerd.apparmor.d")));
        check(AppArmor::Unspecified, loaded, Some(Some("cri-containerd.apparmor.d")));
        check(AppArmor::Localhost("k8s-deny".into()), loaded, Some(Some("k8s-deny")));
        check(AppArmor::Localhost("k8s".into()), loaded, None);
        check(AppArmor::RuntimeDefault, "", None);
    }

    #[test]
    fn own_profile_has_the_name_that_is_looked_for() {
        assert!(DEFAULT_TEXT.contains(&format!("\nprofile {DEFAULT_NAME} ")));
    }
}
