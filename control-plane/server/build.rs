//! Tells the program what it is built from, for `/version`: the commit, its time, and whether the tree is as committed.

use std::{path::Path, process::Command};

fn main() {
    // A change of any of these may make it another program; a commit moves HEAD and its log.
    println!("cargo::rerun-if-changed=..");
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let Some(commit) = git(&["rev-parse", "HEAD"]) else {
        return;
    };
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|it| it.is_empty());
    let date = git(&["log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ"]);
    println!("cargo::rustc-env=HAWSER_GIT_COMMIT={commit}");
    println!("cargo::rustc-env=HAWSER_GIT_TREE_STATE={}", if is_clean { "clean" } else { "dirty" });
    println!("cargo::rustc-env=HAWSER_BUILD_DATE={}", date.unwrap_or_default());
}

/// What git says; `None` where there is no repository or no git.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).env("TZ", "UTC").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
