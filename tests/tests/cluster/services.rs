//! Services: every address of one reaches all its ready backends, and only those.

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use hawser_tests::{cluster::Namespace, eventually};

const SOON: Duration = Duration::from_secs(30);

/// A deployment of three, one a node where they fit, with a Service over TCP and UDP.
fn serve(ns: &Namespace, service_type: &str) {
    ns.apply(
        &r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  replicas: 3
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers:
      - name: web
        image: DEMO
        ports: [{ name: http, containerPort: 8080 }]
        readinessProbe: { httpGet: { path: /readyz, port: http }, periodSeconds: 1 }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec:
  type: TYPE
  selector: { app: web }
  ports:
  - { name: http, port: 80, targetPort: http }
  - { name: echo, port: 80, targetPort: 8080, protocol: UDP }
"#
        .replace("TYPE", service_type),
    )
    .expect("applied");
    ns.wait_for_rollout("web");
}

fn client_pod(ns: &Namespace) {
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: DEMO, args: [serve, "9090"] }]
"#,
    )
    .expect("applied");
    ns.wait_for_pod("client");
}

/// A Service without an address: its names stand for the pods that `serve` made.
fn headless(ns: &Namespace) {
    ns.apply(
        r#"
apiVersion: v1
kind: Service
metadata: { name: headless }
spec: { clusterIP: None, selector: { app: web }, ports: [{ name: http, port: 8080 }] }
"#,
    )
    .expect("applied");
}

fn backends(answers: &str) -> usize {
    answers.lines().count()
}

#[test]
fn cluster_ip_reaches_all_backends_from_pods_and_nodes_over_tcp_and_udp() {
    let Some(ns) = Namespace::of_shared_cluster("clusterip") else { return };
    serve(&ns, "ClusterIP");
    client_pod(&ns);
    let address = format!("{}:80", ns.field("service/web", "/spec/clusterIP").expect("an address"));
    for verb in ["get", "ask"] {
        eventually(SOON, "a pod reaches three backends", || {
            let answers = ns.exec("client", &["/demo", verb, &address, "100"])?;
            anyhow::ensure!(backends(&answers) == 3, "{verb}: {answers}");
            Ok(())
        });
    }
    let demo = std::env::var("HAWSER_TEST_DEMO").expect("the path of the demo program");
    for node in ns.cluster.nodes().expect("nodes") {
        for verb in ["get", "ask"] {
            let answers = ns.cluster.on_node(&node, &[&demo, verb, &address, "100"]).expect("all answered");
            assert_eq!(backends(&answers), 3, "{verb} from {node}: {answers}");
        }
    }
}

#[test]
fn node_port_answers_on_every_node_from_outside() {
    let Some(ns) = Namespace::of_shared_cluster("nodeport") else { return };
    serve(&ns, "NodePort");
    let port = |number: u8| -> u16 {
        let text = ns.field("service/web", &format!("/spec/ports/{number}/nodePort")).expect("a node port");
        text.parse().expect("a number")
    };
    for node in ns.cluster.nodes().expect("nodes") {
        let address = ns.cluster.node_address(&node).expect("an address");
        eventually(SOON, "HTTP through the node port", || {
            let mut stream = TcpStream::connect((address.as_str(), port(0)))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"GET /clientip HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            anyhow::ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
            Ok(())
        });
        eventually(SOON, "UDP through the node port", || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.connect((address.as_str(), port(1)))?;
            socket.send(b"hello")?;
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer)?;
            anyhow::ensure!(buffer[..length].ends_with(b"hello"), "{:?}", &buffer[..length]);
            Ok(())
        });
    }
}

/// A mesh in the pod sees what its sockets asked for, and the service is served to its packets all the same.
#[test]
fn pod_can_keep_its_sockets_to_itself() {
    let Some(ns) = Namespace::of_shared_cluster("optout") else { return };
    serve(&ns, "ClusterIP");
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: meshed, annotations: { hawser.io/socket-translation: "off" } }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: DEMO, args: [serve, "9090"] }]
"#,
    )
    .expect("applied");
    ns.wait_for_pod("meshed");
    client_pod(&ns);
    let name = &ns.name;
    ns.kubectl(&format!("annotate namespace {name} hawser.io/socket-translation=off")).expect("annotated");
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: in-mesh }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: DEMO, args: [serve, "9090"] }]
"#,
    )
    .expect("applied");
    ns.wait_for_pod("in-mesh");
    let address = format!("{}:80", ns.field("service/web", "/spec/clusterIP").expect("an address"));
    for (pod, has_flows) in [("meshed", true), ("client", false), ("in-mesh", true)] {
        eventually(SOON, "the service answers", || ns.exec(pod, &["/demo", "get", &address, "20"]));
        let node = ns.field(&format!("pod/{pod}"), "/spec/nodeName").expect("a node");
        let ip = ns.field(&format!("pod/{pod}"), "/status/podIP").expect("an address");
        let flows = ns.cluster.on_node(&node, &["node-agent", "flows"]).expect("flows");
        let own: Vec<_> = flows.lines().filter(|line| line.contains(&format!("{ip}:"))).collect();
        assert_eq!(own.iter().any(|line| line.contains(&address)), has_flows, "{pod}: {own:?}");
    }
}

#[test]
fn service_without_ready_backends_refuses_at_once_and_comes_back() {
    let Some(ns) = Namespace::of_shared_cluster("refuse") else { return };
    serve(&ns, "ClusterIP");
    client_pod(&ns);
    let address = format!("{}:80", ns.field("service/web", "/spec/clusterIP").expect("an address"));
    eventually(SOON, "the service answers", || ns.exec("client", &["/demo", "get", &address, "10"]));
    ns.kubectl("scale deployment web --replicas=0").expect("scaled");
    eventually(SOON, "connections are refused", || match ns.exec("client", &["/demo", "get", &address]) {
        Err(error) if format!("{error:#}").contains("refused") => Ok(()),
        other => anyhow::bail!("{other:?}"),
    });
    ns.kubectl("scale deployment web --replicas=1").expect("scaled");
    eventually(SOON, "the service answers again", || ns.exec("client", &["/demo", "get", &address, "10"]));
}

#[test]
fn unready_backend_gets_no_new_connection() {
    let Some(ns) = Namespace::of_shared_cluster("unready") else { return };
    serve(&ns, "ClusterIP");
    client_pod(&ns);
    let address = format!("{}:80", ns.field("service/web", "/spec/clusterIP").expect("an address"));
    let pods = ns.kubectl("get pods -l app=web -o jsonpath={.items[*].metadata.name}").expect("pods");
    let victim = pods.split_whitespace().next().expect("a pod").to_owned();
    ns.exec(&victim, &["touch", "/tmp/unready"]).expect("made unready");
    eventually(SOON, "two backends are left", || {
        let answers = ns.exec("client", &["/demo", "get", &address, "100"])?;
        anyhow::ensure!(backends(&answers) == 2 && !answers.contains(&victim), "{answers}");
        Ok(())
    });
    ns.exec(&victim, &["rm", "/tmp/unready"]).expect("made ready");
    eventually(SOON, "three backends again", || {
        let answers = ns.exec("client", &["/demo", "get", &address, "100"])?;
        anyhow::ensure!(backends(&answers) == 3, "{answers}");
        Ok(())
    });
}

#[test]
fn names_of_services_resolve_in_pods() {
    let Some(ns) = Namespace::of_shared_cluster("dns") else { return };
    serve(&ns, "ClusterIP");
    client_pod(&ns);
    headless(&ns);
    let address = ns.field("service/web", "/spec/clusterIP").expect("an address");
    let full = format!("web.{}.svc.cluster.local", ns.name);
    for name in ["web", &full] {
        eventually(SOON, "the name resolves", || {
            // It also tells, and fails, where the name under the other search domains is not found.
            let answer = match ns.exec("client", &["nslookup", "-type=a", name]) {
                Ok(answer) => answer,
                Err(error) => format!("{error:#}"),
            };
            anyhow::ensure!(answer.contains(&address), "{name}: {answer}");
            Ok(())
        });
    }
    eventually(SOON, "a headless name has all pods", || {
        let answer =
            ns.exec("client", &["nslookup", "-type=a", &format!("headless.{}.svc.cluster.local", ns.name)])?;
        let ips = ns.kubectl("get pods -l app=web -o jsonpath={.items[*].status.podIP}")?;
        anyhow::ensure!(ips.split_whitespace().all(|ip| answer.contains(ip)), "{ips} in {answer}");
        Ok(())
    });
    let unknown =
        ns.exec("client", &["nslookup", "-type=a", &format!("nothing.{}.svc.cluster.local", ns.name)]);
    assert!(format!("{:#}", unknown.expect_err("there is no such name")).contains("NXDOMAIN"));
}

#[test]
fn named_ports_have_srv_records_in_pods() {
    let Some(ns) = Namespace::of_shared_cluster("srv") else { return };
    serve(&ns, "ClusterIP");
    client_pod(&ns);
    headless(&ns);
    let zone = format!("{}.svc.cluster.local", ns.name);
    let ask = |name: &str| ns.exec("client", &["nslookup", "-type=srv", &format!("{name}.{zone}")]);
    for port in ["_http._tcp", "_echo._udp"] {
        eventually(SOON, "the port is found by its name and protocol", || {
            let answer = ask(&format!("{port}.web"))?;
            anyhow::ensure!(answer.contains(&format!("0 100 80 web.{zone}")), "{port}: {answer}");
            Ok(())
        });
    }
    eventually(SOON, "a headless service has a record for each pod", || {
        let answer = ask("_http._tcp.headless")?;
        let ips = ns.kubectl("get pods -l app=web -o jsonpath={.items[*].status.podIP}")?;
        for ip in ips.split_whitespace() {
            let record = format!("0 33 8080 {}.headless.{zone}", ip.replace('.', "-"));
            anyhow::ensure!(answer.contains(&record), "{record} in {answer}");
        }
        Ok(())
    });
    let unknown = ask("_http._udp.web").expect_err("there is no such port");
    assert!(format!("{unknown:#}").contains("NXDOMAIN"), "{unknown:#}");
}

/// A resolver that asks for both families would take "no such name" for the answer to both.
#[test]
fn name_without_addresses_of_a_family_exists_all_the_same() {
    let Some(ns) = Namespace::of_shared_cluster("aaaa") else { return };
    serve(&ns, "ClusterIP");
    client_pod(&ns);
    let address = ns.field("service/web", "/spec/clusterIP").expect("an address");
    let full = format!("web.{}.svc.cluster.local", ns.name);
    eventually(SOON, "the name resolves", || {
        let answer = ns.exec("client", &["nslookup", "-type=a", &full])?;
        anyhow::ensure!(answer.contains(&address), "{answer}");
        Ok(())
    });
    // It fails where the name is not found, and where no answer comes.
    let answer = ns.exec("client", &["nslookup", "-type=aaaa", &full]).expect("answered");
    assert!(!answer.contains("Name:"), "IPv6 of a service that has none: {answer}");
    let both = ns.exec("client", &["nslookup", &full]).expect("both questions are answered");
    assert!(both.contains(&address), "{both}");
    ns.exec("client", &["wget", "-q", "-O", "-", "http://web/"]).expect("the name leads to the service");
}

#[test]
fn api_is_reached_through_its_service_with_the_pods_token() {
    let Some(ns) = Namespace::of_shared_cluster("inapi") else { return };
    client_pod(&ns);
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    let listed = ns.exec("client", &["ls", folder]).expect("the token is mounted");
    for file in ["ca.crt", "namespace", "token"] {
        assert!(listed.contains(file), "{listed}");
    }
    let environment = ns.exec("client", &["env"]).expect("its environment");
    assert!(environment.contains("KUBERNETES_SERVICE_HOST="), "{environment}");
    // TCP is enough here: what the token may do is the API's own suite.
    let script = "nc -w 2 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT < /dev/null";
    ns.exec("client", &["sh", "-c", script]).expect("the API's address answers");
}

/// What an HTTP server at `address` says: status line, headers, body.
fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse()?, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn load_balancer_gets_an_address_that_answers_from_outside_until_it_is_given_back() {
    let Some(ns) = Namespace::of_shared_cluster("balancer") else { return };
    serve(&ns, "LoadBalancer");
    let path = "/status/loadBalancer/ingress/0/ip";
    let address = eventually(SOON, "it gets an address", || ns.field("service/web", path));
    eventually(SOON, "the address answers over HTTP", || {
        let text = get(&format!("{address}:80"), "/clientip")?;
        anyhow::ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
        Ok(())
    });
    eventually(SOON, "the address answers over UDP", || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect((address.as_str(), 80))?;
        socket.send(b"hello")?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer)?;
        anyhow::ensure!(buffer[..length].ends_with(b"hello"), "{:?}", &buffer[..length]);
        Ok(())
    });
    let shown = ns.kubectl("get service web").expect("shown");
    assert!(shown.contains(&address), "kubectl shows the address: {shown}");
    ns.kubectl(r#"patch service web -p {"spec":{"type":"ClusterIP"}}"#).expect("changed");
    eventually(SOON, "the address is given back", || {
        let given = ns.field("service/web", path);
        anyhow::ensure!(given.is_err() || given.as_ref().is_ok_and(String::is_empty), "{given:?}");
        anyhow::ensure!(get(&format!("{address}:80"), "/clientip").is_err(), "{address} still answers");
        Ok(())
    });
}

#[test]
fn local_load_balancer_is_answered_for_and_healthy_where_its_endpoints_are() {
    let Some(ns) = Namespace::of_shared_cluster("healthport") else { return };
    serve(&ns, "LoadBalancer");
    ns.kubectl("scale deployment web --replicas=1").expect("scaled");
    ns.kubectl(r#"patch service web -p {"spec":{"externalTrafficPolicy":"Local"}}"#).expect("changed");
    let port = ns.field("service/web", "/spec/healthCheckNodePort").expect("a health port is allocated");
    let endpoint = |replicas: usize| {
        let nodes = ns.kubectl("get pods -l app=web -o jsonpath={.items[*].spec.nodeName}")?;
        let nodes: Vec<String> = nodes.split_whitespace().map(str::to_owned).collect();
        anyhow::ensure!(nodes.len() == replicas, "{nodes:?}");
        Ok(nodes)
    };
    let on = eventually(SOON, "one pod is left", || endpoint(1));
    for node in ns.cluster.nodes().expect("nodes") {
        let address = ns.cluster.node_address(&node).expect("an address");
        let (status, count) = if on.contains(&node) { ("200", 1) } else { ("503", 0) };
        eventually(SOON, "the node says whether it has endpoints", || {
            let text = get(&format!("{address}:{port}"), "/")?;
            anyhow::ensure!(text.contains(status), "{node}: {text}");
            anyhow::ensure!(text.contains(&format!("\"localEndpoints\":{count}")), "{node}: {text}");
            Ok(())
        });
    }
    let address = ns.field("service/web", "/status/loadBalancer/ingress/0/ip").expect("an address");
    eventually(
        SOON,
        "the node with the endpoint answers for the address, and the client's own is seen",
        || {
            let text = get(&format!("{address}:80"), "/clientip")?;
            let (lan, _) = address.rsplit_once('.').expect("an IPv4 address");
            anyhow::ensure!(
                text.starts_with("HTTP/1.1 200") && text.ends_with(&format!("{lan}.1")),
                "{text}"
            );
            Ok(())
        },
    );
    ns.kubectl("scale deployment web --replicas=0").expect("scaled");
    eventually(SOON, "no node is healthy without endpoints", || {
        for node in ns.cluster.nodes()? {
            let text = get(&format!("{}:{port}", ns.cluster.node_address(&node)?), "/")?;
            anyhow::ensure!(text.contains("503"), "{node}: {text}");
        }
        Ok(())
    });
}

#[test]
fn port_that_is_not_served_is_told_in_an_event() {
    let Some(ns) = Namespace::of_shared_cluster("notserved") else { return };
    ns.apply(
        r#"
apiVersion: v1
kind: Service
metadata: { name: signalling }
spec:
  selector: { app: none }
  ports: [{ name: m3ua, port: 2905, protocol: SCTP }]
"#,
    )
    .expect("applied");
    eventually(SOON, "the event is there", || {
        let events = ns.kubectl("get events --field-selector reason=ServiceNotServed -o name")?;
        anyhow::ensure!(!events.trim().is_empty());
        Ok(())
    });
}
