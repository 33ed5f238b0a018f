//! The scripts of the Python and JavaScript clients, against an API server without nodes.
//!
//! A script asserts for itself; what it printed is shown where it fails.

use std::{path::Path, process::Command};

use hawser_tests::{
    api_server::ApiServer,
    scripts::{javascript, python, run, script},
};

/// A script of the Python client, ready to run.
pub(crate) fn python_script(server: &ApiServer, python: &Path, path: &str) -> Command {
    let mut command = server.client(python);
    // Nothing is written beside the sources.
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1").arg(script(path));
    command
}

fn check_python(path: &str) {
    let Some(python) = python() else { return };
    // A script writes the status of a StatefulSet, which its controller would write too.
    let server = ApiServer::start_with(&["--controllers=*,-statefulset"]);
    let said = run(&mut python_script(&server, &python, path));
    assert!(said.trim_end().ends_with("done"), "{path} did not come to its end: {said}");
}

#[test]
fn python_client_reads_and_writes_objects() {
    check_python("python/objects.py");
}

#[test]
fn python_client_watches() {
    check_python("python/watching.py");
}

#[test]
fn python_client_uses_service_account_tokens() {
    check_python("python/tokens.py");
}

#[test]
fn python_dynamic_client_discovers() {
    check_python("python/dynamic_client.py");
}

#[test]
fn javascript_informer_hears_of_each_change() {
    let Some(directory) = javascript() else { return };
    let server = ApiServer::start();
    let mut command = server.client("node");
    command.env("NODE_CLIENT_DIRECTORY", directory).arg(script("javascript/informer.mjs"));
    let said = run(&mut command);
    assert!(said.contains("informer: done"), "the script did not come to its end: {said}");
}
