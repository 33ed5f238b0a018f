//! exec, attach, logs and port-forward through the API server, over WebSocket and over SPDY, which clients older than
//! kubectl 1.30 speak.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use hawser_tests::{api_server::ApiServer, listening::Listening};

use crate::node;

const WEBSOCKET: &[(&str, &str)] = &[];
const SPDY: &[(&str, &str)] =
    &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];

#[test]
fn commands_run_over_both_protocols() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("streams");
    let _node = node::start(&server, &kubectl, "streams");
    for environment in [WEBSOCKET, SPDY] {
        let run = |line: &str, input: Option<&str>| kubectl.run_with(line, input, environment);
        let echoed = run("exec -i web -- cat", Some("through and back")).succeeded();
        assert_eq!(echoed.stdout, "through and back");
        let large = "a line that is repeated\n".repeat(40_000);
        assert_eq!(run("exec -i web -- cat", Some(&large)).succeeded().stdout, large);
        let failed = run("exec web -- exit 7", None).failed();
        failed.says(&["exit code 7"]);
        run("exec web -c other -- true", None).failed().says(&["container other is not valid for pod web"]);
        let said = run("exec web -- say hello", None).succeeded();
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("say hello\n", "said\n"));
    }
    kubectl.run_with("attach web", None, SPDY).succeeded();
}

#[test]
fn ports_are_forwarded_over_both_protocols() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("ports");
    let node = node::start(&server, &kubectl, "ports");
    for environment in [WEBSOCKET, SPDY] {
        let mut forward = server.client("kubectl");
        forward.args(["--namespace", "ports", "port-forward", "web", &format!(":{}", node.port)]);
        let forward = Listening::start(forward.envs(environment.iter().copied()));
        for round in 0..3 {
            let mut stream = TcpStream::connect(("127.0.0.1", forward.port)).expect("kubectl listens");
            write!(stream, "GET /{round} HTTP/1.0\r\n\r\n").expect("written");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            assert!(answer.contains(&format!(r#""uri":"/{round}""#)), "{answer}");
        }
    }
}

#[test]
fn reading_is_no_permission_to_execute() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("readers");
    let _node = node::start(&server, &kubectl, "readers");
    fs::write(server.scratch().join("pod.log"), "2024-01-01T00:00:00.000000000Z stdout F one\n")
        .expect("written");
    kubectl
        .ok("create role reader --verb=get --resource=pods,pods/log,pods/exec,pods/attach,pods/portforward");
    kubectl.ok("create rolebinding reader --role=reader --user=jane");
    kubectl.ok("create role runner --verb=get,create --resource=pods,pods/exec");
    kubectl.ok("create rolebinding runner --role=runner --user=joe");
    for environment in [WEBSOCKET, SPDY] {
        let run = |line: &str| kubectl.run_with(line, None, environment);
        run("exec web --as=jane -- exit 0").failed().says(&["cannot create resource \"pods/exec\""]);
        run("attach web --as=jane").failed().says(&["cannot create resource \"pods/attach\""]);
        run("port-forward web 0:80 --as=jane")
            .failed()
            .says(&["cannot create resource \"pods/portforward\""]);
        run("exec web --as=joe -- exit 0").succeeded();
        assert_eq!(run("logs web --as=jane").succeeded().stdout, "one\n");
    }
}
