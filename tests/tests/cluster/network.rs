//! The pod network: pods reach pods on every node, the outside sees the node, nothing leaks.

use std::{
    net::{TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use hawser_tests::{cluster::Namespace, eventually};

const SOON: Duration = Duration::from_secs(30);

/// One pod a node, named after it.
fn pod_on_every_node(ns: &Namespace) -> Vec<String> {
    let nodes = ns.cluster.nodes().expect("nodes");
    for node in &nodes {
        let manifest = r#"
apiVersion: v1
kind: Pod
metadata: { name: NODE }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: DEMO }]
"#;
        ns.apply(&manifest.replace("NODE", node)).expect("applied");
    }
    for node in &nodes {
        ns.wait_for_pod(node);
    }
    nodes
}

#[test]
fn pods_reach_pods_on_all_nodes() {
    let Some(ns) = Namespace::of_shared_cluster("mesh") else { return };
    let pods = pod_on_every_node(&ns);
    for to in &pods {
        let address =
            format!("{}:8080", ns.field(&format!("pod/{to}"), "/status/podIP").expect("an address"));
        for from in &pods {
            for verb in ["get", "ask"] {
                let answer = ns.exec(from, &["/demo", verb, &address, "3"]).expect("answered");
                assert!(answer.starts_with(&format!("3 {to} ")), "{from} to {to}: {answer}");
            }
        }
        let demo = std::env::var("HAWSER_TEST_DEMO").expect("the path of the demo program");
        for node in &pods {
            ns.cluster.on_node(node, &[&demo, "get", &address]).expect("a node reaches the pod");
        }
    }
}

#[test]
fn large_packets_pass_between_nodes() {
    let Some(ns) = Namespace::of_shared_cluster("mtu") else { return };
    let pods = pod_on_every_node(&ns);
    let address = ns.field(&format!("pod/{}", pods[0]), "/status/podIP").expect("an address");
    // A megabyte over TCP: it passes only where segment sizes fit the tunnel.
    let fetched = ns.exec(&pods[1], &["/demo", "get", &format!("{address}:8080/megabyte")]).expect("fetched");
    assert_eq!(fetched.bytes().filter(|byte| *byte == b'x').count(), 1_000_000);
}

#[test]
fn outside_sees_the_node_not_the_pod() {
    let Some(ns) = Namespace::of_shared_cluster("outside") else { return };
    let pods = pod_on_every_node(&ns);
    let host = ns.cluster.registry.split(':').next().expect("an address").to_owned();
    let listener = TcpListener::bind((host.as_str(), 0)).expect("a port on the nodes' network");
    listener.set_nonblocking(true).expect("set");
    let port = listener.local_addr().expect("bound").port();
    for node in &pods {
        let script = format!("nc -w 2 {host} {port} < /dev/null");
        let seen = thread::scope(|scope| {
            // Accepted and closed while nc waits for that.
            let accepted = scope.spawn(|| {
                eventually(SOON, "the connection arrives", || Ok(listener.accept()?.1.ip().to_string()))
            });
            ns.exec(node, &["sh", "-c", &script]).expect("the outside answers");
            accepted.join().expect("accepted")
        });
        assert_eq!(seen, ns.cluster.node_address(node).expect("an address"));
    }
}

#[test]
fn service_address_that_nothing_serves_leaves_no_node() {
    let Some(ns) = Namespace::of_shared_cluster("unreachable") else { return };
    let pods = pod_on_every_node(&ns);
    let kubernetes =
        ns.cluster.kubectl("get service kubernetes -o jsonpath={.spec.clusterIP}").expect("an address");
    let prefix = kubernetes.rsplit_once('.').expect("IPv4").0.rsplit_once('.').expect("IPv4").0.to_owned();
    let error =
        ns.exec(&pods[0], &["/demo", "get", &format!("{prefix}.200.200:80")]).expect_err("nothing is there");
    let text = format!("{error:#}").to_lowercase();
    assert!(text.contains("unreachable") || text.contains("no route") || text.contains("refused"), "{text}");
}

#[test]
fn host_network_and_host_port_are_on_the_nodes_address() {
    let Some(ns) = Namespace::of_shared_cluster("host") else { return };
    let node = ns.cluster.nodes().expect("nodes").remove(0);
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: { name: onhost }
spec:
  nodeName: NODE
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: DEMO, args: [serve, "18080"] }]
---
apiVersion: v1
kind: Pod
metadata: { name: withport }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: DEMO
    ports: [{ containerPort: 8080, hostPort: 18081 }]
"#;
    ns.apply(&manifest.replace("NODE", &node)).expect("applied");
    ns.wait_for_pod("onhost");
    ns.wait_for_pod("withport");
    let address = ns.cluster.node_address(&node).expect("an address");
    assert_eq!(ns.field("pod/onhost", "/status/podIP").expect("an address"), address);
    for port in [18080, 18081] {
        eventually(SOON, "the port answers from outside", || {
            Ok(std::net::TcpStream::connect((address.as_str(), port))?)
        });
    }
}

#[test]
fn udp_host_port_answers_on_the_nodes_address_from_outside() {
    let Some(ns) = Namespace::of_shared_cluster("hostudp") else { return };
    let node = ns.cluster.nodes().expect("nodes").remove(0);
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: { name: echo }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: DEMO
    ports: [{ containerPort: 8080, hostPort: 18082, protocol: UDP }]
"#;
    ns.apply(&manifest.replace("NODE", &node)).expect("applied");
    ns.wait_for_pod("echo");
    let address = ns.cluster.node_address(&node).expect("an address");
    let answer = eventually(SOON, "the port answers from outside", || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        // Connected, so that only an answer from the address and port that were asked is taken.
        socket.connect((address.as_str(), 18082))?;
        socket.send(b"hello")?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    });
    assert_eq!(answer, "echo 1 hello");
}

#[test]
fn hosts_and_resolver_files_name_the_pod_and_cluster() {
    let Some(ns) = Namespace::of_shared_cluster("files") else { return };
    let pods = pod_on_every_node(&ns);
    let address = ns.field(&format!("pod/{}", pods[0]), "/status/podIP").expect("an address");
    let hosts = ns.exec(&pods[0], &["cat", "/etc/hosts"]).expect("read");
    assert!(hosts.lines().any(|line| line.starts_with(&address) && line.contains(&pods[0])), "{hosts}");
    let resolver = ns.exec(&pods[0], &["cat", "/etc/resolv.conf"]).expect("read");
    let search = format!("search {}.svc.cluster.local svc.cluster.local cluster.local", ns.name);
    assert!(resolver.contains(&search) && resolver.contains("ndots:5"), "{resolver}");
}
