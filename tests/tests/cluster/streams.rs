//! Streams and requests that pass through the API server to pods of every node.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use hawser_tests::{
    cluster::Namespace,
    eventually,
    listening::Listening,
    scripts::{python, run, script},
};

const SOON: Duration = Duration::from_secs(40);

/// What older clients speak.
const SPDY: &[(&str, &str)] =
    &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];

fn kubectl(ns: &Namespace, words: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command.args(["--kubeconfig", &ns.cluster.kubeconfig, "--namespace", &ns.name]).args(words);
    command
}

/// The body of the answer to a GET.
fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{text}");
    Ok(body.to_owned())
}

#[test]
fn python_client_execs_attaches_and_forwards_ports() {
    let Some(ns) = Namespace::of_shared_cluster("python-streams") else { return };
    let Some(python) = python() else { return };
    ns.kubectl(&format!("run web --image={}", ns.cluster.demo_image(1))).expect("created");
    let chat = "while read word; do echo heard $word; done";
    let busybox = ns.cluster.busybox_image();
    ns.cluster
        .kubectl_in(&ns.name, &["run", "box", "--image", &busybox, "-i", "--", "sh", "-c", chat], None, &[])
        .expect("created");
    ns.wait_for_pod("box");
    ns.wait_for_pod("web");
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("KUBECONFIG", &ns.cluster.kubeconfig);
    let said = run(command.env("NAMESPACE", &ns.name).arg(script("python/streams.py")));
    assert!(said.trim_end().ends_with("done"), "the script did not come to its end: {said}");
}

#[test]
fn older_clients_stream_over_spdy() {
    let Some(ns) = Namespace::of_shared_cluster("spdy") else { return };
    ns.kubectl(&format!("run box --image={} -- sleep 3600", ns.cluster.busybox_image())).expect("created");
    ns.kubectl(&format!("run web --image={}", ns.cluster.demo_image(1))).expect("created");
    ns.wait_for_pod("box");
    ns.wait_for_pod("web");
    let run = |words: &[&str], input: Option<&str>| ns.cluster.kubectl_in(&ns.name, words, input, SPDY);
    let said = run(&["exec", "box", "--", "echo", "hello"], None).expect("commands run");
    assert_eq!(said, "hello\n");
    let large = "through and back\n".repeat(50_000);
    let echoed = run(&["exec", "-i", "box", "--", "cat"], Some(&large)).expect("standard input passes");
    assert!(echoed == large, "{} bytes of {}", echoed.len(), large.len());
    let failed = run(&["exec", "box", "--", "sh", "-c", "echo wrong >&2; exit 7"], None);
    let failed = format!("{:#}", failed.expect_err("exit codes pass"));
    assert!(failed.contains("exit code 7") && failed.contains("wrong"), "{failed}");

    let folder = tempfile::tempdir().expect("a directory");
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    fs::write(&there, &large).expect("written");
    let path = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    run(&["cp", &path(&there), "box:/tmp/copied"], None).expect("copied there");
    run(&["cp", "box:/tmp/copied", &path(&back)], None).expect("copied back");
    assert!(fs::read_to_string(&back).expect("copied") == large);

    let mut forward = kubectl(&ns, &["port-forward", "pod/web", ":8080"]);
    let forward = Listening::start(forward.envs(SPDY.iter().copied()));
    for _ in 0..3 {
        assert_eq!(get(forward.port, "/hostname").expect("the forwarded port answers"), "web");
    }
}

#[test]
fn proxies_reach_pods_services_and_kubelets_of_every_node() {
    let Some(ns) = Namespace::of_shared_cluster("proxy") else { return };
    let nodes = ns.cluster.nodes().expect("nodes");
    for (number, node) in nodes.iter().enumerate() {
        let overrides = format!(r#"--overrides={{"spec":{{"nodeName":"{node}"}}}}"#);
        let image = format!("--image={}", ns.cluster.demo_image(1));
        let name = format!("web-{number}");
        let words = ["run", &name, &image, "--labels=app=web", "--port=8080", &overrides];
        ns.kubectl_words(&words).expect("created");
    }
    let pods: BTreeSet<String> = (0..nodes.len()).map(|number| format!("web-{number}")).collect();
    pods.iter().for_each(|pod| ns.wait_for_pod(pod));
    let base = format!("/api/v1/namespaces/{}", ns.name);
    let raw = |path: &str| ns.kubectl(&format!("get --raw {path}"));
    for pod in &pods {
        for id in [pod.clone(), format!("{pod}:8080"), format!("http:{pod}:8080")] {
            let path = format!("{base}/pods/{id}/proxy/hostname");
            assert_eq!(&raw(&path).expect("the pod answers"), pod, "{id}");
        }
    }
    ns.kubectl("create service clusterip web --tcp=80:8080").expect("created");
    let mut seen = BTreeSet::new();
    eventually(SOON, "every pod answers for the service", || {
        seen.insert(raw(&format!("{base}/services/web:80/proxy/hostname"))?);
        anyhow::ensure!(seen == pods, "{seen:?}");
        Ok(())
    });
    let proxy = Listening::start(&mut kubectl(&ns, &["proxy", "--port=0"]));
    let through = get(proxy.port, &format!("{base}/services/http:web:80/proxy/hostname")).expect("an answer");
    assert!(pods.contains(&through), "{through}");
    for node in &nodes {
        let healthy = raw(&format!("/api/v1/nodes/{node}/proxy/healthz")).expect("the kubelet answers");
        assert_eq!(healthy, "ok");
        let logs = raw(&format!("/api/v1/nodes/{node}:10250/proxy/logs/")).expect("the kubelet answers");
        assert!(logs.contains(&format!("{}_web-", ns.name)), "{logs}");
    }
    let closed = raw(&format!("{base}/pods/web-0:81/proxy/")).expect_err("nothing listens there");
    assert!(format!("{closed:#}").contains("connection refused"), "{closed:#}");
}

/// Prometheus and its like: a service account's token, and the right to `nodes/metrics`.
#[test]
fn a_node_is_scraped_with_a_token() {
    let Some(ns) = Namespace::of_shared_cluster("scrape") else { return };
    let node = ns.cluster.nodes().expect("nodes").remove(0);
    let address = ns.cluster.node_address(&node).expect("an address");
    let asked = |token: &str, path: &str| {
        let (header, url) =
            (format!("Authorization: Bearer {token}"), format!("https://{address}:10250{path}"));
        let words = ["curl", "-sk", "-m", "10", "-H", &header, "-o", "/dev/null", "-w", "%{http_code}", &url];
        ns.cluster.on_node(&node, &words).expect("the kubelet answers")
    };
    ns.kubectl("create serviceaccount scraper").expect("created");
    let token = ns.kubectl("create token scraper").expect("a token");
    assert_eq!(asked(&token, "/metrics"), "403", "nobody allowed it");
    assert_eq!(asked("abc", "/metrics"), "401", "no token");
    let (role, account) = (format!("scrape-{}", ns.name), format!("--serviceaccount={}:other", ns.name));
    ns.kubectl(&format!("create clusterrole {role} --verb=get --resource=nodes/metrics")).expect("created");
    ns.kubectl(&format!("create clusterrolebinding {role} --clusterrole={role} {account}")).expect("created");
    // Another one's, since a refusal holds for half a minute.
    ns.kubectl("create serviceaccount other").expect("created");
    let token = ns.kubectl("create token other").expect("a token");
    assert_eq!(asked(&token, "/metrics"), "200");
    assert_eq!(asked(&token, "/metrics/cadvisor"), "200");
    assert_eq!(asked(&token, "/logs/"), "403", "what it was not allowed");
    ns.kubectl(&format!("delete clusterrole,clusterrolebinding {role}")).expect("deleted");
}
