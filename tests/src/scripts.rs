//! The Python and JavaScript clients: scripts in `tests/clients`, with the clients installed once under `target/tools`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The version that the scripts are written for.
const PYTHON_CLIENT: &str = "kubernetes==37.0.2";
/// Version 2 needs a newer runtime than Debian has.
const JAVASCRIPT_CLIENT: &str = "@kubernetes/client-node@1.4.0";

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a member of the workspace")
}

/// A file of `tests/clients`.
pub fn script(path: &str) -> PathBuf {
    workspace().join("tests/clients").join(path)
}

/// Makes a directory of tools once, whoever comes first; its content is named by `what`.
fn install(name: &str, what: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let tools = workspace().join("target/tools");
    fs::create_dir_all(&tools).expect("the target directory is writable");
    let lock = File::create(tools.join(format!("{name}.lock"))).expect("the target directory is writable");
    lock.lock().expect("a file can be locked");
    let (directory, done) = (tools.join(name), tools.join(format!("{name}.installed")));
    if fs::read_to_string(&done).is_ok_and(|installed| installed == what) && directory.exists() {
        return directory;
    }
    // What an interrupted or older installation left.
    let _ = fs::remove_dir_all(&directory);
    make(&directory);
    fs::write(done, what).expect("the target directory is writable");
    directory
}

/// What a command printed.
///
/// # Panics
/// With what it printed where it fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the program is installed");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed ({}):\n{text}", output.status);
    text
}

/// The interpreter with the client installed; `None`, with a message, where Python is not.
pub fn python() -> Option<PathBuf> {
    if Command::new("python3")
        .args(["-c", "import venv, ensurepip"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        let directory = install("python", PYTHON_CLIENT, |directory| {
            run(Command::new("python3").args(["-m", "venv"]).arg(directory));
            run(Command::new(directory.join("bin/pip")).args(["install", "--quiet", PYTHON_CLIENT]));
        });
        return Some(directory.join("bin/python"));
    }
    eprintln!("skipped: python3 with venv is not installed (package python3-venv)");
    None
}

/// The client's directory; `None`, with a message, where npm is not.
pub fn javascript() -> Option<PathBuf> {
    let exists =
        |program| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !exists("node") || !exists("npm") {
        eprintln!("skipped: node and npm are not installed (packages nodejs and npm)");
        return None;
    }
    Some(install("node", JAVASCRIPT_CLIENT, |directory| {
        fs::create_dir_all(directory).expect("the target directory is writable");
        let mut command = Command::new("npm");
        command.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]);
        run(command.arg(directory).arg(JAVASCRIPT_CLIENT));
    }))
}
