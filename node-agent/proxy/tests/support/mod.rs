//! A laboratory of network namespaces: a client outside, a node, a pod on it, and a second node with a pod of its own.
//!
//! ```text
//!  client 10.90.0.2 ──── up0 10.90.0.1  node  veth ──── pod 10.91.0.2
//!                                       up1 10.92.0.1 ──── 10.92.0.2 other node, pod 10.93.0.2 on its loopback
//! ```
//! (and the same with fd90::/64 ...). No namespace has a way out; service addresses are unreachable where no program
//! translates them. The test process joins a cgroup of the laboratory's own; below it lies the node's, a threaded one,
//! which the threads of the node and of its pod join, and those of other machines do not.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod load;
pub(crate) mod wire;

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hawser_proxy::{Config, Proxy};
use hawser_services::{EndpointSlice, Service};
use k8s_openapi::api;
use serde_json::{Value, json};

/// How long anything may take that should happen at once, where the machine is not emulated.
pub(crate) const USUAL_PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take here: `HAWSER_TEST_PATIENCE` times longer.
pub(crate) fn patience() -> Duration {
    let factor = std::env::var("HAWSER_TEST_PATIENCE");
    USUAL_PATIENCE * factor.map_or(1, |factor| factor.parse().expect("HAWSER_TEST_PATIENCE is a number"))
}

/// The process joins one cgroup at a time, so laboratories take turns.
static TURN: Mutex<()> = Mutex::new(());
static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) const CLIENT: &str = "client";
pub(crate) const NODE: &str = "node";
pub(crate) const POD: &str = "pod";
pub(crate) const OTHER: &str = "other";
/// See [`Lab::add_pod`].
pub(crate) const POD_2: &str = "pod2";

/// Node port of a pod of the node.
pub(crate) const HERE: u16 = 30080;
/// Node port of a pod of the other node.
pub(crate) const THERE: u16 = 30090;
/// Node port of a service without backend.
pub(crate) const NOTHING: u16 = 30070;

pub(crate) struct Lab {
    prefix: String,
    root: PathBuf,
    cgroup: PathBuf,
    cgroup_before: PathBuf,
    /// Namespaces beyond the four.
    more: Mutex<Vec<&'static str>>,
    _turn: MutexGuard<'static, ()>,
}

/// The configuration of the laboratory's node.
pub(crate) fn config(bpffs: PathBuf, cgroup: PathBuf) -> Config {
    let mut config = Config::new(bpffs, cgroup, "node-a".to_owned());
    config.uplinks = vec!["up0".to_owned(), "up1".to_owned()];
    config.node_addresses = vec!["10.90.0.1".parse().unwrap(), "fd90::1".parse().unwrap()];
    config.sizes.frontends = 1024;
    config.sizes.backends = 4096;
    config.sizes.members = 1024;
    config.max_flows = 65_536;
    config
}

/// Runs a test in a laboratory, on a thread in the node's namespace. Skips, and says so, without root.
pub(crate) fn run(name: &str, test: impl FnOnce(&Lab) + Send) {
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped {name}: needs root for network namespaces and eBPF");
        return;
    }
    let lab = Lab::new();
    lab.inside(NODE, || test(&lab));
}

impl Lab {
    fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let prefix = format!("hwp{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(root.join("bpffs")).unwrap();
        let cgroup_mount = cgroup2_mount();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned();
        let cgroup = cgroup_mount.join(&prefix);
        fs::create_dir_all(cgroup.join("node")).unwrap();
        fs::write(cgroup.join("node/cgroup.type"), "threaded").unwrap();
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let lab = Self {
            prefix,
            root,
            cgroup,
            cgroup_before: cgroup_mount.join(own),
            more: Mutex::default(),
            _turn: turn,
        };
        for ns in [CLIENT, NODE, POD, OTHER] {
            ip(&["netns", "add", &lab.ns(ns)]);
            lab.ip(ns, &["link", "set", "lo", "up"]);
        }
        lab.veth((NODE, "up0"), (CLIENT, "eth0"));
        lab.veth((NODE, "up1"), (OTHER, "eth0"));
        lab.address(NODE, "up0", "10.90.0.1/24", "fd90::1/64");
        lab.address(CLIENT, "eth0", "10.90.0.2/24", "fd90::2/64");
        lab.address(NODE, "up1", "10.92.0.1/24", "fd92::1/64");
        lab.address(OTHER, "eth0", "10.92.0.2/24", "fd92::2/64");
        lab.address(OTHER, "lo", "10.93.0.2/32", "fd93::2/128");
        lab.wire_pod(POD, "pod0", "10.91.0.2", "fd91::2");
        lab.ip(NODE, &["route", "add", "10.93.0.0/24", "via", "10.92.0.2"]);
        lab.ip(NODE, &["-6", "route", "add", "fd93::/64", "via", "fd92::2"]);
        for (v4, v6) in [("10.90.0.0/24", "fd90::/64"), ("10.91.0.0/24", "fd91::/64")] {
            lab.ip(OTHER, &["route", "add", v4, "via", "10.92.0.1"]);
            lab.ip(OTHER, &["-6", "route", "add", v6, "via", "fd92::1"]);
        }
        for services in ["10.96.0.0/16", "fd96::/64"] {
            for ns in [NODE, CLIENT, OTHER] {
                let family = if services.contains(':') { "-6" } else { "-4" };
                lab.ip(ns, &[family, "route", "add", "unreachable", services]);
            }
        }
        lab.inside(NODE, || {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        lab
    }

    /// Makes a second pod on the node, 10.91.0.3 and fd91::3.
    pub(crate) fn add_pod(&self) {
        ip(&["netns", "add", &self.ns(POD_2)]);
        self.more.lock().unwrap().push(POD_2);
        self.ip(POD_2, &["link", "set", "lo", "up"]);
        self.wire_pod(POD_2, "pod1", "10.91.0.3", "fd91::3");
    }

    fn wire_pod(&self, pod: &str, device: &str, v4: &str, v6: &str) {
        self.veth((NODE, device), (pod, "eth0"));
        self.address(pod, "eth0", &format!("{v4}/32"), &format!("{v6}/128"));
        // The node's end of a pod's interface has an address of link scope: the pod's way out.
        self.address(NODE, device, "169.254.1.1/32", "fe80::1/64");
        for (net, gateway) in [("-4", "169.254.1.1"), ("-6", "fe80::1")] {
            if net == "-4" {
                self.ip(pod, &[net, "route", "add", gateway, "dev", "eth0", "scope", "link"]);
            }
            self.ip(pod, &[net, "route", "add", "default", "via", gateway, "dev", "eth0"]);
        }
        self.ip(NODE, &["route", "add", v4, "dev", device, "src", "10.90.0.1"]);
        self.ip(NODE, &["-6", "route", "add", v6, "dev", device, "src", "fd90::1"]);
    }

    pub(crate) fn bpffs(&self) -> PathBuf {
        self.root.join("bpffs")
    }

    /// For a proxy of the other node. Removing what is there is the caller's.
    pub(crate) fn second_bpffs(&self) -> PathBuf {
        self.root.join("bpffs2")
    }

    pub(crate) fn config(&self) -> Config {
        config(self.bpffs(), self.cgroup.join("node"))
    }

    /// Starts a proxy in the node's namespace (call it from there).
    pub(crate) fn proxy(&self) -> Proxy {
        Proxy::start(self.config()).unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// Starts a proxy in the node's namespace, with node ports for TCP and UDP of both families: [`HERE`], [`THERE`]
    /// and [`NOTHING`].
    pub(crate) fn with_node_ports(&self, config: Config) -> Proxy {
        let at = [(HERE, Some(NODE)), (THERE, Some(OTHER)), (NOTHING, None)];
        let ports = at.map(|(port, node)| ["TCP", "UDP"].map(|protocol| (protocol, port, "Cluster", node)));
        self.with_ports(config, ports.as_flattened())
    }

    /// The same with any node ports: protocol, number, `externalTrafficPolicy`, and the node whose pod is the backend.
    pub(crate) fn with_ports(
        &self,
        config: Config,
        ports: &[(&str, u16, &str, Option<&'static str>)],
    ) -> Proxy {
        let mut proxy = Proxy::start(config).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        for (protocol, node_port, external_policy, node) in ports.iter().copied() {
            let number = services.len() + 1;
            let (name, v4, v6) =
                (format!("s{number}"), format!("10.96.0.{number}"), format!("fd96::{number}"));
            services.push(service(&Spec {
                name: &name,
                protocol,
                cluster_ips: &[&v4, &v6],
                port: 80,
                node_port: Some(i32::from(node_port)),
                external_policy,
            }));
            let backends = match node {
                Some(NODE) => [("10.91.0.2", "node-a", true), ("fd91::2", "node-a", true)],
                Some(_) => [("10.93.0.2", "node-b", true), ("fd93::2", "node-b", true)],
                None => continue,
            };
            slices.extend(backends.map(|backend| slice(&name, protocol, 8080, &[backend])));
        }
        proxy.sync(&services, &slices, &[]).unwrap();
        proxy
    }

    /// Attaches the packet path to the pod's interface; its packets go by the host's routes.
    pub(crate) fn attach_pod(&self, proxy: &Proxy) {
        let addresses = ["10.91.0.2", "fd91::2"].map(|text| text.parse().unwrap());
        proxy.attach_pod(self.pod_ifindex(), None, &addresses).unwrap();
    }

    /// Lets packets of test runs of `from_pod` come from a pod with these addresses: they come by loopback.
    pub(crate) fn test_runs_are_from(&self, proxy: &Proxy, addresses: &[&str]) {
        let addresses: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        proxy.attach_pod(1, None, &addresses).unwrap();
    }

    pub(crate) fn pod_ifindex(&self) -> u32 {
        self.ifindex("pod0")
    }

    /// Returns the index of one of the node's interfaces.
    pub(crate) fn ifindex(&self, device: &str) -> u32 {
        self.link(NODE, device).split(':').next().unwrap().trim().parse().unwrap()
    }

    /// Returns the link-layer address of an interface.
    pub(crate) fn mac(&self, ns: &str, device: &str) -> [u8; 6] {
        let text = self.link(ns, device);
        let mac = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    fn link(&self, ns: &str, device: &str) -> String {
        let output =
            Command::new("ip").args(["-n", &self.ns(ns), "-o", "link", "show", device]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `work` on a thread in a namespace, and in the node's cgroup if the namespace is the node's or its pod's.
    pub(crate) fn inside<T: Send>(&self, ns: &str, work: impl FnOnce() -> T + Send) -> T {
        let cgroup = matches!(ns, NODE | POD | POD_2).then(|| self.cgroup.join("node"));
        self.on_thread(ns, cgroup, work)
    }

    /// Runs `work` in a namespace, outside of the node's cgroup: no socket program sees it.
    pub(crate) fn inside_unserved<T: Send>(&self, ns: &str, work: impl FnOnce() -> T + Send) -> T {
        self.on_thread(ns, Some(self.cgroup.clone()), work)
    }

    fn on_thread<T: Send>(&self, ns: &str, cgroup: Option<PathBuf>, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.ns(ns));
        // A thread starts in the cgroup of the one that makes it.
        let cgroup = cgroup.unwrap_or_else(|| self.cgroup.clone());
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                fs::write(cgroup.join("cgroup.threads"), nix::unistd::gettid().to_string()).unwrap();
                let file = fs::File::open(path).unwrap();
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` with a namespace.
    pub(crate) fn ip(&self, ns: &str, args: &[&str]) {
        let ns = self.ns(ns);
        let mut all = vec!["-n", ns.as_str()];
        all.extend(args);
        ip(&all);
    }

    /// Returns the interfaces of the node that have filters, once for each.
    pub(crate) fn filters(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        for device in ["up0", "up1", "pod0"] {
            for direction in ["ingress", "egress"] {
                let output = Command::new("tc")
                    .args(["-n", &self.ns(NODE), "filter", "show", "dev", device, direction])
                    .output()
                    .unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                found.extend(text.lines().filter(|line| line.contains("handle")).map(|_| device));
            }
        }
        found
    }

    /// Tells whether an interface of the node runs a program at XDP.
    pub(crate) fn has_xdp(&self, device: &str) -> bool {
        self.link(NODE, device).contains("xdp")
    }

    /// Makes an interface compute the checksums of what it sends, and take in what XDP sends at its other end.
    pub(crate) fn prepare_for_xdp(&self, ns: &str, device: &str) {
        const SET_TRANSMIT_CHECKSUMS: u32 = 0x17;
        const SET_GENERIC_RECEIVE_OFFLOAD: u32 = 0x2c;
        self.inside(ns, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for value in [[SET_TRANSMIT_CHECKSUMS, 0], [SET_GENERIC_RECEIVE_OFFLOAD, 1]] {
                // SAFETY: all zero is a valid value.
                let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
                for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
                    *to = from as libc::c_char;
                }
                request.ifr_ifru.ifru_data = (&raw const value).cast_mut().cast();
                // SAFETY: the request names an interface and a `struct ethtool_value`, which is two words.
                let result =
                    unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
                assert!(result >= 0, "{device}: {}", std::io::Error::last_os_error());
            }
        });
    }

    /// Runs `bridge` with a namespace.
    pub(crate) fn bridge(&self, ns: &str, args: &[&str]) {
        let status = Command::new("bridge").args(["-n", &self.ns(ns)]).args(args).status().unwrap();
        assert!(status.success(), "bridge {args:?}");
    }

    fn ns(&self, ns: &str) -> String {
        format!("{}-{ns}", self.prefix)
    }

    pub(crate) fn veth(&self, (left_ns, left): (&str, &str), (right_ns, right): (&str, &str)) {
        let (left_ns_full, right_ns_full) = (self.ns(left_ns), self.ns(right_ns));
        ip(&[
            "link",
            "add",
            left,
            "netns",
            &left_ns_full,
            "type",
            "veth",
            "peer",
            "name",
            right,
            "netns",
            &right_ns_full,
        ]);
        self.ip(left_ns, &["link", "set", left, "up"]);
        self.ip(right_ns, &["link", "set", right, "up"]);
    }

    pub(crate) fn address(&self, ns: &str, device: &str, v4: &str, v6: &str) {
        self.ip(ns, &["address", "add", v4, "dev", device]);
        self.ip(ns, &["-6", "address", "add", v6, "dev", device, "nodad"]);
    }

    /// Starts a TCP server in a namespace that answers each connection with the client's address as it sees it, and
    /// then echoes.
    pub(crate) fn tcp_server(&self, ns: &str, address: &str) -> SocketAddr {
        let listener = self.inside(ns, || TcpListener::bind(address).unwrap());
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                thread::spawn(move || {
                    let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                    let _ = stream.write_all(format!("{address} sees {peer}\n").as_bytes());
                    let mut buffer = [0; 1024];
                    while let Ok(len @ 1..) = stream.read(&mut buffer) {
                        let _ = stream.write_all(&buffer[..len]);
                    }
                });
            }
        });
        address
    }

    /// Starts a UDP server in a namespace that answers each datagram with its own address, until the guard goes.
    pub(crate) fn udp_server(&self, ns: &str, address: &str) -> UdpServer {
        let socket = self.inside(ns, || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicU32::new(0));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while stopped.load(Ordering::Relaxed) == 0 {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(address.to_string().as_bytes(), from);
                }
            }
        });
        UdpServer { address, stop, thread: Some(thread) }
    }
}

pub(crate) struct UdpServer {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicU32>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(1, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = Proxy::remove_all(&self.bpffs()) {
            eprintln!("cannot remove the datapath: {error}");
        }
        let _ = fs::write(self.cgroup_before.join("cgroup.procs"), std::process::id().to_string());
        let more = std::mem::take(&mut *self.more.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for ns in [CLIENT, NODE, POD, OTHER].into_iter().chain(more) {
            let _ = Command::new("ip").args(["netns", "del", &self.ns(ns)]).status();
        }
        // A cgroup is busy until the last task has left it.
        let deadline = Instant::now() + patience();
        while (fs::remove_dir(self.cgroup.join("node"))
            .is_err_and(|error| error.kind() != ErrorKind::NotFound)
            || fs::remove_dir(&self.cgroup).is_err())
            && Instant::now() < deadline
        {
            thread::yield_now();
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mount =
        mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("a cgroup2 mount");
    Path::new(mount.split(' ').nth(1).unwrap()).to_owned()
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Connects, and returns the stream with the server's first line.
pub(crate) fn connect(address: &str) -> std::io::Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), patience())?;
    stream.set_read_timeout(Some(patience()))?;
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok((stream, String::from_utf8(line).unwrap()))
}

/// Sends a line and expects it back.
pub(crate) fn echo(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut buffer = [0; 5];
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"hello");
}

/// Waits until `check` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience();
    while !check() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::yield_now();
    }
}

/// Builds a service from a few words.
pub(crate) struct Spec<'a> {
    pub(crate) name: &'a str,
    pub(crate) cluster_ips: &'a [&'a str],
    pub(crate) port: i32,
    pub(crate) protocol: &'a str,
    pub(crate) node_port: Option<i32>,
    pub(crate) external_policy: &'a str,
}

impl Default for Spec<'_> {
    fn default() -> Self {
        Self {
            name: "web",
            cluster_ips: &["10.96.0.10"],
            port: 80,
            protocol: "TCP",
            node_port: None,
            external_policy: "Cluster",
        }
    }
}

pub(crate) fn service(spec: &Spec<'_>) -> Arc<Service> {
    service_with(spec, &json!({}))
}

/// The same with changes of its `spec`, and of its `status` where that is among them.
pub(crate) fn service_with(spec: &Spec<'_>, changes: &Value) -> Arc<Service> {
    let mut port = json!({ "port": spec.port, "protocol": spec.protocol });
    if let Some(node_port) = spec.node_port {
        port["nodePort"] = node_port.into();
    }
    let mut object = json!({
        "metadata": { "name": spec.name, "namespace": "default" },
        "spec": {
            "type": if spec.node_port.is_some() { "NodePort" } else { "ClusterIP" },
            "clusterIP": spec.cluster_ips[0],
            "clusterIPs": spec.cluster_ips,
            "externalTrafficPolicy": spec.external_policy,
            "ports": [port],
        },
    });
    for (name, value) in changes.as_object().unwrap() {
        match name.as_str() {
            "status" => object["status"] = value.clone(),
            name => object["spec"][name] = value.clone(),
        }
    }
    Arc::new(Service::from(&serde_json::from_value::<api::core::v1::Service>(object).unwrap()))
}

/// Builds a slice of endpoints: `(address, node, ready)`.
pub(crate) fn slice(
    service: &str,
    protocol: &str,
    port: u16,
    endpoints: &[(&str, &str, bool)],
) -> Arc<EndpointSlice> {
    slice_with(service, &json!([{ "port": port, "protocol": protocol }]), endpoints)
}

/// The same with any ports.
pub(crate) fn slice_with(
    service: &str,
    ports: &Value,
    endpoints: &[(&str, &str, bool)],
) -> Arc<EndpointSlice> {
    let is_v6 = endpoints.first().is_some_and(|(address, ..)| address.parse::<Ipv6Addr>().is_ok());
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, node, ready)| {
            json!({
                "addresses": [address],
                "nodeName": node,
                "conditions": { "ready": ready, "serving": ready, "terminating": false },
            })
        })
        .collect();
    let object = json!({
        "metadata": {
            "name": format!("{service}-{is_v6}"),
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": if is_v6 { "IPv6" } else { "IPv4" },
        "endpoints": endpoints,
        "ports": ports,
    });
    let object: api::discovery::v1::EndpointSlice = serde_json::from_value(object).unwrap();
    Arc::new(EndpointSlice::of(&object).unwrap())
}

pub(crate) fn counter(proxy: &Proxy, name: &str) -> u64 {
    let counters = proxy.counters().unwrap();
    counters.iter().find(|counter| counter.name == name).unwrap_or_else(|| panic!("no counter {name}")).value
}

pub(crate) fn mapped(address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()).to_string(),
        IpAddr::V6(_) => address.to_string(),
    }
}
