//! Plain requests with curl and the kubeconfig's certificates: what is negotiated, and what is refused.

use std::{fs, path::PathBuf};

use hawser_tests::api_server::ApiServer;
use serde_json::Value;

pub(crate) struct Curl {
    pub(crate) server: ApiServer,
    certificates: [PathBuf; 3],
}

pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) content_type: String,
    body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// A Status with this code and reason.
    #[track_caller]
    pub(crate) fn is_status(&self, code: u16, reason: &str) -> Value {
        let status = self.json();
        assert_eq!(
            (self.code, &status["kind"], &status["apiVersion"], &status["reason"], &status["code"]),
            (code, &"Status".into(), &"v1".into(), &reason.into(), &code.into()),
            "{status}"
        );
        assert_eq!(self.content_type, "application/json");
        status
    }
}

impl Curl {
    pub(crate) fn start() -> Self {
        let server = ApiServer::start();
        let certificates = server.credential_files();
        Self { server, certificates }
    }

    #[track_caller]
    pub(crate) fn as_nobody(&self, path: &str, arguments: &[&str]) -> Answer {
        let [authority, ..] = &self.certificates;
        let (body, mut command) = (self.server.scratch().join("body"), self.server.client("curl"));
        command.args([
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--write-out",
            "%{http_code} %{content_type}",
        ]);
        command.arg("--cacert").arg(authority).arg("--output").arg(&body).args(arguments);
        let output =
            command.arg(format!("{}{path}", self.server.address())).output().expect("curl is installed");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (code, content_type) = said.split_once(' ').unwrap_or((&said, ""));
        let code = code.parse().unwrap_or_default();
        assert_ne!(code, 0, "{path}: {}", String::from_utf8_lossy(&output.stderr));
        Answer { code, content_type: content_type.to_owned(), body: fs::read(body).unwrap_or_default() }
    }

    #[track_caller]
    pub(crate) fn ask(&self, path: &str, arguments: &[&str]) -> Answer {
        let [_, certificate, key] =
            self.certificates.each_ref().map(|path| path.to_str().expect("a plain path"));
        self.as_nobody(path, &[&["--cert", certificate, "--key", key], arguments].concat())
    }

    #[track_caller]
    fn accepting(&self, path: &str, accept: &str) -> Answer {
        self.ask(path, &["--header", &format!("Accept: {accept}")])
    }

    #[track_caller]
    fn send(&self, method: &str, path: &str, content_type: &str, body: &str) -> Answer {
        let file = self.server.scratch().join("request");
        fs::write(&file, body).expect("a file can be written");
        let data = format!("@{}", file.display());
        let header = format!("Content-Type: {content_type}");
        self.ask(path, &["--request", method, "--header", &header, "--data-binary", &data])
    }
}

#[test]
fn answers_come_in_the_form_that_is_accepted() {
    let curl = Curl::start();
    let path = "/api/v1/namespaces";
    for accept in [
        "application/json",
        "*/*",
        "application/*",
        "text/html, application/json;q=0.5",
        "text/html, */*;q=0.1",
    ] {
        let answer = curl.accepting(path, accept);
        assert_eq!((answer.code, answer.content_type.as_str()), (200, "application/json"), "{accept}");
        assert_eq!(answer.json()["kind"], "NamespaceList");
    }
    let list = curl.ask(path, &[]).json();
    let names: Vec<_> =
        list["items"].as_array().into_iter().flatten().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    assert_eq!(list["items"][0].get("kind"), None, "items of a list do not repeat their kind");

    let table = curl.accepting(path, "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").json();
    assert_eq!((&table["kind"], &table["apiVersion"]), (&"Table".into(), &"meta.k8s.io/v1".into()));
    assert_eq!(table["columnDefinitions"][1]["name"], "Status");
    assert_eq!(table["rows"][0]["cells"][0], "default");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");

    let partial =
        curl.accepting(path, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").json();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0]["metadata"]["name"], "default");
    assert_eq!(partial["items"][0].get("spec"), None);

    let yaml = curl.accepting(path, "application/yaml");
    assert_eq!((yaml.code, yaml.content_type.as_str()), (200, "application/yaml"));
    assert!(String::from_utf8_lossy(&yaml.body).contains("kind: NamespaceList"));
    let protobuf = curl.accepting(path, "application/vnd.kubernetes.protobuf");
    assert_eq!((protobuf.code, protobuf.content_type.as_str()), (200, "application/vnd.kubernetes.protobuf"));
    assert!(protobuf.body.starts_with(b"k8s\0"), "{:?}", &protobuf.body[..8]);
    curl.accepting(path, "text/nonsense").is_status(406, "NotAcceptable");
    let compressed = curl.ask("/openapi/v2", &["--compressed"]);
    assert_eq!(compressed.json()["swagger"], "2.0");

    // HTTP/1.1 and HTTP/2 say the same.
    let old = curl.ask(path, &["--http1.1"]);
    assert_eq!(old.json(), curl.ask(path, &["--http2"]).json());
}

#[test]
fn bad_requests_get_a_status_that_says_why() {
    let curl = Curl::start();
    let path = "/api/v1/namespaces/default/configmaps";
    let json = "application/json";
    curl.send("POST", path, json, "{\"metadata\":").is_status(400, "BadRequest");
    curl.send("POST", path, json, "[]").is_status(400, "BadRequest");
    curl.send("POST", path, json, "").is_status(400, "BadRequest");
    curl.send("POST", path, json, r#"{"kind":"Secret","apiVersion":"v1","metadata":{"name":"a"}}"#)
        .is_status(400, "BadRequest");
    curl.send("POST", path, json, "{}").is_status(422, "Invalid");
    let invalid = curl.send("POST", path, json, r#"{"metadata":{"name":"A"}}"#).is_status(422, "Invalid");
    assert_eq!(invalid["details"]["causes"][0]["field"], "metadata.name");
    curl.send("POST", path, "text/nonsense", "{}").is_status(415, "UnsupportedMediaType");
    curl.send("POST", path, "application/vnd.kubernetes.protobuf", "k8s\0nonsense")
        .is_status(400, "BadRequest");
    curl.send("PATCH", &format!("{path}/a"), "application/nonsense+json", "{}")
        .is_status(415, "UnsupportedMediaType");
    let huge = format!(r#"{{"metadata":{{"name":"huge"}},"data":{{"a":"{}"}}}}"#, "x".repeat(4 << 20));
    curl.send("POST", path, json, &huge).is_status(413, "RequestEntityTooLarge");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    curl.send("POST", path, json, &deep).is_status(400, "BadRequest");
    curl.send("PUT", path, json, "{}").is_status(405, "MethodNotAllowed");
    curl.send("PUT", "/api/v1/namespaces/default", json, r#"{"metadata":{"name":"b"}}"#)
        .is_status(400, "BadRequest");

    curl.ask("/nowhere", &[]).is_status(404, "NotFound");
    curl.ask("/api/v1/nonsense", &[]).is_status(404, "NotFound");
    curl.ask("/apis/nonsense.example/v1/things", &[]).is_status(404, "NotFound");
    let absent = curl.ask(&format!("{path}/absent"), &[]).is_status(404, "NotFound");
    assert_eq!(absent["message"], r#"configmaps "absent" not found"#);
    curl.ask(&format!("{path}?labelSelector=a%20in%20("), &[]).is_status(400, "BadRequest");
    curl.ask(&format!("{path}?limit=nonsense"), &[]).is_status(400, "BadRequest");
    curl.ask(&format!("{path}?resourceVersion=nonsense"), &[]).is_status(400, "BadRequest");
    curl.ask(&format!("{path}?continue=nonsense"), &[]).is_status(400, "BadRequest");
    curl.ask(&format!("{path}?watch=1&resourceVersion=nonsense"), &[]).is_status(400, "BadRequest");
    // A version that the server has not come to is not taken for the present.
    let future = curl.ask(&format!("{path}?resourceVersion=999999999"), &[]).is_status(504, "Timeout");
    assert!(
        future["message"].as_str().unwrap_or_default().starts_with("Too large resource version: 999999999"),
        "{future}"
    );
}

#[test]
fn who_has_no_credentials_sees_no_objects() {
    let curl = Curl::start();
    let path = "/api/v1/namespaces/default/pods";
    let refused = curl.as_nobody(path, &[]).is_status(403, "Forbidden");
    assert_eq!(
        refused["message"],
        r#"pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    curl.as_nobody(path, &["--header", "Authorization: Bearer nonsense"]).is_status(401, "Unauthorized");
    curl.as_nobody("/apis", &[]).is_status(403, "Forbidden");
    curl.as_nobody("/metrics", &[]).is_status(403, "Forbidden");
    assert_eq!(curl.as_nobody("/version", &[]).json()["major"], "1");
    assert_eq!(curl.as_nobody("/readyz", &[]).code, 200);
    curl.as_nobody("/api/v1/namespaces", &["--request", "POST", "--data", "{}"]).is_status(403, "Forbidden");
}

#[test]
fn yaml_is_written_and_read_back() {
    let curl = Curl::start();
    let path = "/api/v1/namespaces/default/configmaps";
    let made = curl.send(
        "POST",
        path,
        "application/yaml",
        "metadata: {name: y}\ndata:\n  text: |\n    two\n    lines\n",
    );
    assert_eq!(made.code, 201, "{}", String::from_utf8_lossy(&made.body));
    assert_eq!(curl.ask(&format!("{path}/y"), &[]).json()["data"]["text"], "two\nlines\n");
    let version = made.json()["metadata"]["resourceVersion"].clone();
    let watched = curl.ask(
        &format!("{path}?watch=1&resourceVersion=0&timeoutSeconds=1&fieldSelector=metadata.name=y"),
        &[],
    );
    let event: Value =
        serde_json::from_slice(watched.body.split(|byte| *byte == b'\n').next().unwrap_or_default())
            .expect("an event a line");
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["resourceVersion"]),
        (&"ADDED".into(), &version)
    );
}
