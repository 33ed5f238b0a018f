//! Which Kubernetes this is.

use serde_json::{Value, json};

pub const MAJOR: &str = "1";
pub const MINOR: &str = "36";
/// What `kubectl version` shows.
pub const GIT_VERSION: &str = "v1.36.2+hawser";

/// What this program was built from.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// A commit's hash.
    pub git_commit: &'static str,
    /// `clean`, `dirty`, or `archive` where there was no repository.
    pub git_tree_state: &'static str,
    /// RFC 3339.
    pub build_date: &'static str,
}

impl Build {
    pub const UNKNOWN: Self =
        Self { git_commit: "unknown", git_tree_state: "archive", build_date: "1970-01-01T00:00:00Z" };
}

/// `/version`.
pub fn info(build: &Build) -> Value {
    json!({
        "major": MAJOR,
        "minor": MINOR,
        "emulationMajor": MAJOR,
        "emulationMinor": MINOR,
        "minCompatibilityMajor": MAJOR,
        "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION,
        "gitCommit": build.git_commit,
        "gitTreeState": build.git_tree_state,
        "buildDate": build.build_date,
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }),
    })
}
