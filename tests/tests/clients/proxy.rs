//! The subresource `proxy` of pods, services and nodes, as kubectl, curl and programs behind `kubectl proxy` use it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
};

use hawser_tests::{api_server::ApiServer, listening::Listening};
use serde_json::{Value, json};

use crate::{
    curl::Curl,
    node::{self, NODE, POD_IP},
};

/// The header of an answer that curl shows with `--include`.
fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let fields = answer.lines().filter_map(|line| line.split_once(": "));
    fields.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn asked(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn requests_reach_pods_as_they_were_sent() {
    let curl = Curl::start();
    let kubectl = curl.server.kubectl("shop");
    let node = node::start(&curl.server, &kubectl, "shop");
    let port = node.port;
    let pod = "/api/v1/namespaces/shop/pods/web";
    for path in [format!("{pod}/proxy/"), format!("{pod}:{port}/proxy/"), format!("{pod}:/proxy/")] {
        assert_eq!(asked(&kubectl.ok(&format!("get --raw {path}")).stdout)["uri"], "/", "{path}");
    }
    let path = format!("{pod}:{port}/proxy/a/b%2Fc/../d/?x=1&y=%20&watch=true");
    let got = curl.ask(&path, &["--path-as-is"]).json();
    assert_eq!(got["uri"], "/a/b%2Fc/../d/?x=1&y=%20&watch=true");

    let path = format!("{pod}/proxy/form");
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let got = curl.ask(&path, &["--request", method, "--data-binary", "some=text"]).json();
        assert_eq!((&got["method"], &got["body"]), (&json!(method), &json!("some=text")));
    }
    // More than the API's own requests may have, and of unknown length.
    let large = curl.server.scratch().join("large");
    std::fs::write(&large, vec![b'x'; 5 << 20]).expect("written");
    let file = format!("@{}", large.display());
    for more in [&[][..], &["--http1.1", "--header", "Transfer-Encoding: chunked"]] {
        let got = curl.ask(&path, &[&["--data-binary", &file][..], more].concat()).json();
        assert_eq!(got["bytes"], 5 << 20);
    }
    let missing = curl.ask(&format!("{pod}/proxy/missing"), &[]);
    assert_eq!((missing.code, missing.text().as_str()), (404, "nothing here"), "the pod's own answer");
    assert_eq!(curl.ask(&path, &["--head"]).code, 200);
}

#[test]
fn headers_say_who_asks_and_keep_secrets() {
    let curl = Curl::start();
    let kubectl = curl.server.kubectl("shop");
    let _node = node::start(&curl.server, &kubectl, "shop");
    kubectl.ok("create serviceaccount robot");
    kubectl.ok("create rolebinding robot --clusterrole=edit --serviceaccount=shop:robot");
    let token = kubectl.ok("create token robot").stdout;
    let path = "/api/v1/namespaces/shop/pods/web/proxy/x";
    for http in ["--http1.1", "--http2"] {
        let bearer = format!("Authorization: Bearer {}", token.trim());
        let arguments =
            [http, "--header", &bearer, "--header", "Cookie: a=b", "--header", "X-Forwarded-For: 192.0.2.9"];
        let got = curl.as_nobody(path, &arguments).json();
        let headers = got["headers"].as_object().expect("headers");
        assert!(!headers.contains_key("authorization"), "{got}");
        let address = curl.server.address();
        let host = address.strip_prefix("https://").expect("an address");
        for (name, value) in [
            ("host", host),
            ("cookie", "a=b"),
            ("x-forwarded-for", "192.0.2.9, 127.0.0.1"),
            ("x-forwarded-uri", path),
        ] {
            assert_eq!(headers.get(name), Some(&json!(value)), "{http} {name}: {got}");
        }
        let impersonating =
            ["--header", "Impersonate-User: jane", "--header", "Impersonate-Group: system:masters"];
        let got = curl.ask(path, &[&[http][..], &impersonating[..]].concat()).json();
        let names = got["headers"].as_object().expect("headers").keys();
        assert!(names.into_iter().all(|name| !name.starts_with("impersonate")), "{got}");
    }
    let open = curl.ask("/api/v1/namespaces/shop/pods/web/proxy/open", &["--include"]).text();
    assert_eq!(header(&open, "access-control-allow-origin"), None, "{open}");
}

#[test]
fn links_lead_back_through_the_proxy() {
    let curl = Curl::start();
    let kubectl = curl.server.kubectl("shop");
    let _node = node::start(&curl.server, &kubectl, "shop");
    let proxy = "/api/v1/namespaces/shop/pods/web/proxy";
    let moved = curl.ask(&format!("{proxy}?a=b"), &["--include"]);
    assert_eq!((moved.code, header(&moved.text(), "location")), (301, Some(&*format!("{proxy}/?a=b"))));
    let posted = curl.ask(proxy, &["--data", "x"]).json();
    assert_eq!(posted["uri"], "/", "a body is not sent twice");
    let found = curl.ask(&format!("{proxy}/old"), &["--include"]);
    assert_eq!((found.code, header(&found.text(), "location")), (302, Some(&*format!("{proxy}/new?a=b"))));
    let page = curl.ask(&format!("{proxy}/page"), &[]);
    assert_eq!(page.content_type, "text/html; charset=utf-8");
    let expected = format!(r#"<a href="{proxy}/next">/next</a> <a href="http://198.51.100.7/x">"#);
    assert_eq!(page.text(), expected, "the other link is to another port of the pod");
}

#[test]
fn services_lead_to_ready_pods_alone() {
    let curl = Curl::start();
    let kubectl = curl.server.kubectl("shop");
    let node = node::start(&curl.server, &kubectl, "shop");
    let port = node.port;
    kubectl.ok(&format!("expose pod web --name=plain --port=80 --target-port={port}"));
    let named = json!({
        "kind": "Service", "apiVersion": "v1", "metadata": { "name": "named" },
        "spec": { "selector": { "app": "web" }, "ports": [
            { "name": "http", "port": 80, "targetPort": port }, { "name": "dns", "port": 53, "protocol": "UDP" },
        ] },
    });
    kubectl.ok_with("create -f -", &named.to_string());
    kubectl.eventually(
        "endpointslices -l kubernetes.io/service-name=named",
        "{.items[0].endpoints[0].conditions.ready}",
        "true",
    );
    let service = |id: &str| format!("/api/v1/namespaces/shop/services/{id}/proxy/x");
    for id in ["plain", "plain:80", "http:plain:80", "named:http", "named:80", "http:named:http"] {
        assert_eq!(curl.ask(&service(id), &[]).json()["uri"], "/x", "{id}");
    }
    let unavailable = |id: &str| {
        let status = curl.ask(&service(id), &[]).is_status(503, "ServiceUnavailable");
        status["message"].as_str().expect("a message").to_owned()
    };
    assert_eq!(unavailable("plain:81"), "no service port 81 found for service \"plain\"");
    assert_eq!(unavailable("named"), "no endpoints available for service \"named\"");
    assert_eq!(unavailable("named:dns"), "no endpoints available for service \"named\"");
    curl.ask(&service("nobody"), &[]).is_status(404, "NotFound");

    // An endpoint by hand: what it names is no pod, or not that pod's address.
    kubectl.ok("create service clusterip forged --tcp=80");
    for (number, target) in
        [Value::Null, json!({ "kind": "Pod", "namespace": "shop", "name": "web" })].iter().enumerate()
    {
        let mut endpoint = json!({ "addresses": ["192.0.2.1"], "conditions": { "ready": true } });
        if !target.is_null() {
            endpoint["targetRef"] = target.clone();
        }
        let slice = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
            "metadata": { "name": format!("forged-{number}"), "labels": { "kubernetes.io/service-name": "forged" } },
            "ports": [{ "name": "80", "port": port }], "endpoints": [endpoint],
        });
        kubectl.ok_with("create -f -", &slice.to_string());
    }
    assert_eq!(unavailable("forged:80"), "no endpoints available for service \"forged\"");

    let unready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    kubectl.ok(&format!("patch pod web --subresource=status --type=merge -p '{unready}'"));
    kubectl.eventually(
        "endpointslices -l kubernetes.io/service-name=plain",
        "{.items[0].endpoints[0].conditions.ready}",
        "false",
    );
    assert_eq!(unavailable("plain"), "no endpoints available for service \"plain\"");
    assert_eq!(curl.ask("/api/v1/namespaces/shop/pods/web/proxy/x", &[]).json()["uri"], "/x");
}

#[test]
fn nodes_give_what_their_kubelet_has() {
    let curl = Curl::start();
    let kubectl = curl.server.kubectl("shop");
    let node = node::start(&curl.server, &kubectl, "shop");
    let kubelet_port = node.kubelet_port;
    for id in [NODE.to_owned(), format!("{NODE}:{kubelet_port}"), format!("https:{NODE}:{kubelet_port}")] {
        let proxy = format!("/api/v1/nodes/{id}/proxy");
        assert_eq!(kubectl.ok(&format!("get --raw {proxy}/healthz")).stdout, "ok", "{id}");
        assert_eq!(kubectl.ok(&format!("get --raw {proxy}/metrics")).stdout, "up 1\n");
        assert_eq!(asked(&kubectl.ok(&format!("get --raw {proxy}/pods")).stdout)["kind"], "PodList");
        let summary = asked(&kubectl.ok(&format!("get --raw {proxy}/stats/summary")).stdout);
        assert_eq!(summary["node"]["nodeName"], NODE);
        let log = "2024-01-01T00:00:00.000000000Z stdout F one\n";
        std::fs::write(curl.server.scratch().join("pod.log"), log).expect("written");
        assert!(curl.ask(&format!("{proxy}/logs/"), &[]).text().contains(r#"<a href="pod.log">"#));
        assert_eq!(kubectl.ok(&format!("get --raw {proxy}/logs/pod.log")).stdout, log);
        assert_eq!(curl.ask(&format!("{proxy}/configz"), &[]).code, 404);
    }
    curl.ask(&format!("/api/v1/nodes/{NODE}:22/proxy/"), &[]).is_status(400, "BadRequest");
    curl.ask("/api/v1/nodes/nobody/proxy/", &[]).is_status(404, "NotFound");
}

#[test]
fn what_cannot_be_reached_is_told_as_upstream_does() {
    let curl = Curl::start();
    let kubectl = curl.server.kubectl("shop");
    let node = node::start(&curl.server, &kubectl, "shop");
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound").port();
    let message = |id: &str, code, reason| {
        let path = format!("/api/v1/namespaces/shop/pods/{id}/proxy/");
        let status = curl.ask(&path, &[]).is_status(code, reason);
        status["message"].as_str().expect("a message").to_owned()
    };
    let refused = message(&format!("web:{closed}"), 503, "ServiceUnavailable");
    let expected =
        format!("error trying to reach service: dial tcp 127.0.0.1:{closed}: connect: connection refused");
    assert_eq!(refused, expected);
    let unknown = message("web:telephone", 503, "ServiceUnavailable");
    assert_eq!(unknown, "error trying to reach service: dial tcp: lookup tcp/telephone: unknown port");
    let no_tls = message(&format!("https:web:{}", node.port), 503, "ServiceUnavailable");
    assert!(no_tls.starts_with("error trying to reach service: "), "{no_tls}");
    assert_eq!(message("ftp:web:21", 400, "BadRequest"), "invalid pod request \"ftp:web:21\"");
    assert_eq!(message("nobody", 404, "NotFound"), "pods \"nobody\" not found");
    // The API says that this one is on the node, and the node knows better.
    node::run_pod(&kubectl, "stranger", 80, "192.0.2.1");
    let stranger = message("stranger", 503, "ServiceUnavailable");
    assert!(stranger.ends_with("pod \"stranger\" in namespace \"shop\" is not on this node"), "{stranger}");
    kubectl.ok("run waiting --image=demo");
    assert_eq!(message("waiting", 400, "BadRequest"), "address not allowed");
    curl.ask("/api/v1/namespaces/shop/configmaps/web/proxy/", &[]).is_status(404, "NotFound");
    curl.ask("/api/v1/namespaces/shop/pods/web/proxy/", &["--request", "TRACE"])
        .is_status(405, "MethodNotAllowed");
}

#[test]
fn connections_to_https_pods_are_encrypted() {
    let curl = Curl::start();
    let kubectl = curl.server.kubectl("shop");
    let _node = node::start(&curl.server, &kubectl, "shop");
    // The API server is at hand as a program that speaks TLS, with a certificate that is not the pod's.
    let address = curl.server.address();
    let port = address.rsplit(':').next().expect("a port");
    let path = format!("/api/v1/namespaces/shop/pods/https:web:{port}/proxy/healthz");
    assert_eq!(curl.ask(&path, &[]).text(), "ok");
    let plain = curl.ask(&format!("/api/v1/namespaces/shop/pods/web:{port}/proxy/healthz"), &[]);
    plain.is_status(503, "ServiceUnavailable");
}

#[test]
fn each_method_is_a_verb_of_its_own() {
    let curl = Curl::start();
    let kubectl = curl.server.kubectl("shop");
    let _node = node::start(&curl.server, &kubectl, "shop");
    kubectl.ok("create role looker --verb=get --resource=pods/proxy");
    kubectl.ok("create rolebinding looker --role=looker --user=jane");
    let path = "/api/v1/namespaces/shop/pods/web/proxy/x";
    let as_jane = |method: &str, path: &str| {
        curl.ask(path, &["--request", method, "--header", "Impersonate-User: jane"])
    };
    assert_eq!(as_jane("GET", path).json()["method"], "GET");
    for (method, verb) in [("POST", "create"), ("PUT", "update"), ("PATCH", "patch"), ("DELETE", "delete")] {
        let status = as_jane(method, path).is_status(403, "Forbidden");
        let message = status["message"].as_str().expect("a message");
        assert!(message.contains(&format!("cannot {verb} resource \"pods/proxy\"")), "{message}");
    }
    as_jane("GET", &format!("/api/v1/nodes/{NODE}/proxy/pods")).is_status(403, "Forbidden");
    kubectl.ok("get pod web");
}

#[test]
fn upgrades_pass() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("shop");
    let _node = node::start(&server, &kubectl, "shop");
    let proxy = Listening::start(server.client("kubectl").args(["proxy", "--port=0"]));
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port)).expect("kubectl listens");
    write!(
        stream,
        "GET /api/v1/namespaces/shop/pods/web/proxy/echo?a=b HTTP/1.1\r\nHost: localhost\r\n\
         Connection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\n"
    )
    .expect("written");
    let mut answer = BufReader::new(stream.try_clone().expect("a socket"));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(answer.read_line(&mut head).expect("an answer") > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(header(&head, "upgrade"), Some("echo"));
    let question = vec![b'?'; 100_000];
    let asking = std::thread::spawn({
        let (mut stream, question) = (stream.try_clone().expect("a socket"), question.clone());
        move || stream.write_all(&question).expect("written")
    });
    let mut echoed = vec![0; question.len()];
    answer.read_exact(&mut echoed).expect("the echo");
    asking.join().expect("asked");
    assert!(echoed == question);
    stream.shutdown(Shutdown::Both).expect("closed");
}

#[test]
fn pods_address_in_the_api_is_only_shown() {
    let curl = Curl::start();
    let kubectl = curl.server.kubectl("shop");
    let node = node::start(&curl.server, &kubectl, "shop");
    let port = node.port;
    // Nobody has this address; the node connects to what it knows itself.
    assert_eq!(kubectl.path("pod web", "{.status.podIP}"), POD_IP);
    assert_eq!(
        curl.ask(&format!("/api/v1/namespaces/shop/pods/web:{port}/proxy/x"), &[]).json()["uri"],
        "/x"
    );
}
