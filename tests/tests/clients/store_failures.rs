//! A store that stops answering, or dies: requests end in time and say so, nothing acknowledged is lost, and the server goes
//! on by itself.

use std::{
    collections::BTreeSet,
    fs::File,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::ensure;
use hawser_tests::{api_server::ApiServer, eventually};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

/// An etcd of one member over a directory of its own.
struct Etcd {
    directory: TempDir,
    process: Child,
    url: String,
    peer: String,
}

impl Etcd {
    /// `None`, with a word on why, where etcd is not installed.
    fn start() -> Option<Self> {
        if Command::new("etcd").arg("--version").output().is_err() {
            eprintln!("skipped: etcd is not installed");
            return None;
        }
        let directory = TempDir::new().expect("a temporary directory can be made");
        let [url, peer] = [free_address(), free_address()];
        let process = spawn(&directory, &url, &peer);
        eventually(SOON, "etcd is healthy", || {
            let health =
                Command::new("curl").args(["--silent", "--fail", &format!("{url}/health")]).output()?;
            ensure!(health.status.success(), "curl ended with {}", health.status);
            Ok(())
        });
        Some(Self { directory, process, url, peer })
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().expect("kill runs");
        assert!(status.success(), "kill {signal} {pid}");
    }

    /// `kill -9`, and the end of the process.
    fn kill(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn start_again(&mut self) {
        self.process = spawn(&self.directory, &self.url, &self.peer);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    format!("http://{}", listener.local_addr().expect("it has an address"))
}

fn spawn(directory: &TempDir, url: &str, peer: &str) -> Child {
    let log = File::options().create(true).append(true).open(directory.path().join("log")).expect("a log");
    Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .args(["--listen-client-urls", url, "--advertise-client-urls", url])
        .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("etcd starts")
}

/// The status code of a request that the server has to end by itself within its time.
fn code(server: &ApiServer, method: &str, path: &str, body: &str) -> u16 {
    let [authority, certificate, key] = server.credential_files();
    let mut command = server.client("curl");
    command.args(["--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_code}"]);
    command.args(["--max-time", "20", "--request", method]);
    command.arg("--cacert").arg(authority).arg("--cert").arg(certificate).arg("--key").arg(key);
    if !body.is_empty() {
        command.args(["--header", "content-type: application/json", "--data", body]);
    }
    let output = command.arg(format!("{}{path}", server.address())).output().expect("curl runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "curl {method} {path}: {}", String::from_utf8_lossy(&output.stderr));
    said.parse().expect("a status code")
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn create(server: &ApiServer, name: &str) -> u16 {
    let body = format!(r#"{{"metadata": {{"name": "{name}", "labels": {{"test": "store"}}}}}}"#);
    code(server, "POST", &format!("{MAPS}?timeout=3s"), &body)
}

/// Creates configmaps until one is acknowledged; those that were are added.
#[track_caller]
fn serves_again(server: &ApiServer, round: &str, acknowledged: &mut BTreeSet<String>) {
    let mut attempt = 0;
    eventually(SOON, "the server serves again", || {
        attempt += 1;
        let name = format!("{round}-again-{attempt}");
        let code = create(server, &name);
        ensure!(code == 201, "{code}");
        acknowledged.insert(format!("configmap/{name}"));
        Ok(())
    });
}

#[test]
fn requests_end_in_time_while_the_store_does_not_answer_and_service_resumes() {
    let Some(mut etcd) = Etcd::start() else { return };
    let server = ApiServer::start_with(&["--store=etcd", &format!("--etcd-servers={}", etcd.url)]);
    let mut acknowledged = BTreeSet::new();
    for round in ["stopped", "killed"] {
        let before = format!("{round}-before");
        assert_eq!(create(&server, &before), 201);
        acknowledged.insert(format!("configmap/{before}"));

        if round == "stopped" {
            etcd.signal("-STOP")
        } else {
            etcd.kill()
        }
        let reads = code(&server, "GET", &format!("{MAPS}/{before}"), "");
        let writes = create(&server, &format!("{round}-during"));
        let lists = code(&server, "GET", MAPS, "");
        for (what, code) in [("a read", reads), ("a write", writes), ("a list", lists)] {
            assert!((500..=504).contains(&code), "{round}: {what} is answered with {code}");
        }
        // What is as new as the cache is can still be read.
        assert_eq!(code(&server, "GET", &format!("{MAPS}/{before}?resourceVersion=0"), ""), 200);
        assert_eq!(code(&server, "GET", "/livez", ""), 200);
        if round == "stopped" {
            etcd.signal("-CONT")
        } else {
            etcd.start_again()
        }

        serves_again(&server, round, &mut acknowledged);
        let kubectl = server.kubectl("default");
        let found: BTreeSet<String> =
            kubectl.ok("get configmaps -l test=store -o name").lines().into_iter().collect();
        assert!(
            found.is_superset(&acknowledged),
            "{round}: {acknowledged:?} were acknowledged, {found:?} are there"
        );
    }
}
