//! The pod network with real packets: two nodes and an outside host, each a network namespace.
//!
//! Every call starts the network anew from what is on disk and in the kernel, as an agent that restarts does.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use hawser_network::{Config, Error, Mode, Network, NodeRoute, PodId, PodInterface};
use nix::sched::{CloneFlags, setns};

const VXLAN: Mode = Mode::Vxlan { vni: 1, port: 8472 };

/// How long anything may take that should happen at once: `HAWSER_TEST_PATIENCE` times longer where the machine is
/// emulated.
fn patience() -> Duration {
    let factor = std::env::var("HAWSER_TEST_PATIENCE");
    Duration::from_secs(10)
        * factor.map_or(1, |factor| factor.parse().expect("HAWSER_TEST_PATIENCE is a number"))
}

/// Two nodes on a bridge in a namespace of its own, which also is the outside. Removed on drop.
struct Lan {
    prefix: String,
    state: PathBuf,
    mode: Mode,
}

impl Lan {
    /// `None`, with a message, without root.
    fn new(mode: Mode) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: network namespaces need root");
            return None;
        }
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let prefix = format!("hnt{}x{number}", std::process::id());
        let state = std::env::temp_dir().join(&prefix);
        let lan = Self { prefix, state, mode };
        let outside = lan.netns("out");
        ip(&format!("netns add {outside}"));
        ip(&format!("-n {outside} link set lo up"));
        ip(&format!("-n {outside} link add name lan type bridge"));
        ip(&format!("-n {outside} address add 172.29.0.1/24 dev lan"));
        ip(&format!("-n {outside} link set lan up"));
        for node in [1, 2] {
            let netns = lan.netns(&format!("n{node}"));
            ip(&format!("netns add {netns}"));
            ip(&format!("-n {netns} link set lo up"));
            ip(&format!("-n {outside} link add p{node} type veth peer name eth0 netns {netns}"));
            ip(&format!("-n {outside} link set p{node} master lan up"));
            ip(&format!("-n {netns} address add 172.29.0.1{node}/24 dev eth0"));
            ip(&format!("-n {netns} link set eth0 up"));
        }
        Some(lan)
    }

    fn netns(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn outside(&self) -> PathBuf {
        Path::new("/run/netns").join(self.netns("out"))
    }

    fn node(&self, node: u8) -> PathBuf {
        Path::new("/run/netns").join(self.netns(&format!("n{node}")))
    }

    fn node_ip(node: u8) -> IpAddr {
        IpAddr::from([172, 29, 0, 10 + node])
    }

    fn config(&self, node: u8) -> Config {
        Config {
            node_ip: Self::node_ip(node),
            uplink: None,
            pod_cidrs: vec![format!("10.250.{node}.0/24").parse().unwrap()],
            cluster_cidrs: vec!["10.250.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.251.0.0/16".parse().unwrap()],
            mode: self.mode,
            masquerade: true,
            dns_addresses: vec!["10.251.0.10".parse().unwrap()],
            state_dir: self.state.join(node.to_string()),
        }
    }

    /// Starts the network of a node, in its namespace, and works with it.
    fn with<T: Send>(
        &self,
        node: u8,
        work: impl AsyncFnOnce(Network) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let config = self.config(node);
        inside(&self.node(node), move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { work(Network::start(config).await?).await })
        })
    }

    fn join(&self) {
        for (node, other) in [(1, 2), (2, 1)] {
            let route = NodeRoute {
                name: format!("n{other}"),
                node_ip: Self::node_ip(other),
                pod_cidrs: vec![format!("10.250.{other}.0/24").parse().unwrap()],
            };
            self.with(node, async |network| network.set_nodes(&[route]).await).unwrap();
        }
    }

    fn attach(&self, node: u8, uid: &str) -> PodInterface {
        self.with(node, async |network| network.attach_pod(&pod(uid), None).await).unwrap()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // Pinned namespaces are mounts below `state`; the rest goes with the nodes' namespaces.
        for node in [1, 2].into_iter().filter(|node| self.node(*node).exists()) {
            if let Err(error) = self.with(node, async |network| network.remove_all().await) {
                eprintln!("node {node} is not clean: {error}");
            }
        }
        for name in ["n1", "n2", "out"] {
            let deleted = Command::new("ip").args(["netns", "delete", &self.netns(name)]).status();
            if !deleted.is_ok_and(|status| status.success()) {
                eprintln!("namespace {name} stays");
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.state) {
            eprintln!("{} stays: {error}", self.state.display());
        }
    }
}

fn pod(uid: &str) -> PodId {
    PodId { uid: uid.into(), namespace: "default".into(), name: format!("pod-{uid}") }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("ip runs");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `work` on a thread in a network namespace.
fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(netns).unwrap();
    thread::scope(|scope| {
        let run = || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(run).join().unwrap()
    })
}

fn listen(netns: &Path) -> TcpListener {
    inside(netns, || TcpListener::bind("0.0.0.0:0").unwrap())
}

fn connect(netns: &Path, to: IpAddr, port: u16) -> io::Result<TcpStream> {
    inside(netns, || TcpStream::connect_timeout(&SocketAddr::new(to, port), patience()))
}

/// The address from which `to`'s side sees a connection of `from`.
#[track_caller]
fn seen_from(from: &Path, to_netns: &Path, to: IpAddr) -> IpAddr {
    let listener = listen(to_netns);
    let _stream = connect(from, to, listener.local_addr().unwrap().port()).unwrap();
    listener.accept().unwrap().1.ip()
}

fn check_mesh(mode: Mode) {
    let Some(lan) = Lan::new(mode) else { return };
    let pods = [(1, "a"), (1, "b"), (2, "c")].map(|(node, uid)| (node, lan.attach(node, uid)));
    lan.join();
    for (_, from) in &pods {
        for (_, to) in &pods {
            let seen = seen_from(&from.netns_path, &to.netns_path, to.ips[0]);
            assert_eq!(seen, from.ips[0], "pods see each other's own addresses");
        }
    }
    for node in [1, 2] {
        for (_, to) in &pods {
            seen_from(&lan.node(node), &to.netns_path, to.ips[0]);
        }
    }
    for (node, from) in &pods {
        seen_from(&from.netns_path, &lan.node(*node), Lan::node_ip(*node));
        let seen = seen_from(&from.netns_path, &lan.outside(), "172.29.0.1".parse().unwrap());
        assert_eq!(seen, Lan::node_ip(*node), "the outside sees the node");
    }
}

#[test]
fn pods_nodes_and_outside_reach_each_other_over_vxlan() {
    check_mesh(VXLAN);
}

#[test]
fn pods_nodes_and_outside_reach_each_other_over_plain_routes() {
    check_mesh(Mode::Routes);
}

#[test]
fn uplink_is_found_by_the_nodes_address() {
    let Some(lan) = Lan::new(Mode::Routes) else { return };
    let lent: IpAddr = "172.29.0.77".parse().unwrap();
    announce(&lan, 1, &[lent]);
    let netns = lan.netns("n1");
    ip(&format!("-n {netns} address add fd29::9/64 dev eth0 nodad"));
    ip(&format!("-n {netns} address add fd29::8/64 dev eth0 nodad preferred_lft 0"));
    let uplink = lan.with(1, async |network| network.uplink().await).unwrap();
    let expected = [Lan::node_ip(1), "fd29::9".parse().unwrap()];
    assert_eq!((uplink.name.as_str(), uplink.addresses.as_slice()), ("eth0", &expected[..]));
}

#[test]
fn addresses_that_nobody_serves_leave_no_node() {
    let Some(lan) = Lan::new(VXLAN) else { return };
    let pod = lan.attach(1, "a");
    for netns in [lan.node(1), pod.netns_path] {
        for address in ["10.251.7.7", "10.250.77.7"] {
            let error = connect(&netns, address.parse().unwrap(), 80).unwrap_err();
            let kind = error.kind();
            assert!(
                matches!(kind, io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable),
                "{address} from {}: {error}",
                netns.display()
            );
        }
    }
}

#[test]
fn connections_outlive_a_restart_and_pods_keep_their_addresses() {
    let Some(lan) = Lan::new(VXLAN) else { return };
    let (from, to) = (lan.attach(1, "a"), lan.attach(2, "b"));
    lan.join();
    let listener = listen(&to.netns_path);
    let mut stream = connect(&from.netns_path, to.ips[0], listener.local_addr().unwrap().port()).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(patience())).unwrap();
    for _ in 0..3 {
        assert_eq!(lan.attach(1, "a"), from);
        assert_eq!(lan.attach(2, "b"), to);
        lan.join();
        peer.write_all(b"still here").unwrap();
        let mut buffer = [0; 10];
        stream.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"still here");
    }
    let other = lan.attach(1, "c");
    assert_ne!(other.ips, from.ips);
}

/// A network namespace that somebody else has made; gone on drop.
struct Given(String);

impl Given {
    fn new(lan: &Lan, name: &str) -> Self {
        let name = lan.netns(name);
        ip(&format!("netns add {name}"));
        Self(name)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
fn namespace_that_is_made_already_is_the_pods() {
    let Some(lan) = Lan::new(Mode::Routes) else { return };
    let given = ["g1", "g2"].map(|name| Given::new(&lan, name));
    let attach = |given: &Given| {
        let path = given.path();
        lan.with(1, async move |network| network.attach_pod(&pod("a"), Some(&path)).await).unwrap()
    };
    let number = |path: &Path| fs::metadata(path).unwrap().ino();
    let first = attach(&given[0]);
    assert_eq!(number(&first.netns_path), number(&given[0].path()));
    assert_eq!(attach(&given[0]), first, "nothing is made again");
    let second = attach(&given[1]);
    assert_eq!(number(&second.netns_path), number(&given[1].path()), "another takes its place");
    assert_eq!(second.ips, first.ips);
    let other = lan.attach(1, "b");
    assert_eq!(seen_from(&second.netns_path, &other.netns_path, other.ips[0]), second.ips[0]);
}

#[test]
fn node_that_left_is_reached_no_more() {
    let Some(lan) = Lan::new(VXLAN) else { return };
    let (from, to) = (lan.attach(1, "a"), lan.attach(2, "b"));
    lan.join();
    seen_from(&from.netns_path, &to.netns_path, to.ips[0]);
    lan.with(1, async |network| network.set_nodes(&[]).await).unwrap();
    let error = connect(&from.netns_path, to.ips[0], 80).unwrap_err();
    assert!(
        matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable),
        "{error}"
    );
}

#[test]
fn pods_that_come_and_go_leave_nothing() {
    let Some(lan) = Lan::new(VXLAN) else { return };
    let links = || {
        inside(&lan.node(1), || {
            let output = Command::new("ip").args(["-o", "link"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().lines().count()
        })
    };
    lan.with(1, async |network| network.set_nodes(&[]).await).unwrap();
    let before = links();
    lan.with(1, async |network| {
        for round in 0..40 {
            network.attach_pod(&pod(&format!("pod{round}")), None).await?;
            if round >= 4 {
                network.detach_pod(&format!("pod{}", round - 4)).await?;
            }
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(links(), before + 4);
    let live: HashSet<String> = ["pod39".to_owned()].into();
    let gone = lan.with(1, async |network| network.reconcile(&live).await).unwrap();
    assert_eq!(gone, ["pod36", "pod37", "pod38"]);
    lan.with(1, async |network| network.detach_pod("pod39").await).unwrap();
    assert_eq!(links(), before);
    for folder in ["netns", "pods"] {
        assert_eq!(fs::read_dir(lan.state.join("1").join(folder)).unwrap().count(), 0, "{folder} is empty");
    }
}

/// Set for a process that a test starts to kill it: the prefix of the test's namespaces, and what is to be done.
const VICTIM: &str = "HAWSER_TEST_VICTIM_PREFIX";
const WORK: &str = "HAWSER_TEST_VICTIM_WORK";

#[test]
#[ignore = "the victim of the test below"]
fn victim() {
    let Ok(prefix) = std::env::var(VICTIM) else {
        // Not started by its killer, but with all the others.
        return;
    };
    let state = std::env::temp_dir().join(&prefix);
    // What is there is the killer's to remove.
    let lan = std::mem::ManuallyDrop::new(Lan { prefix, state, mode: VXLAN });
    if std::env::var(WORK).is_ok_and(|work| work == "attach") {
        lan.attach(1, "a");
    } else {
        lan.with(1, async |network| network.detach_pod("a").await).unwrap();
    }
}

/// Has another process do the work; true when it came to its end.
fn work(lan: &Lan, work: &str, (name, value): (&str, &str)) -> bool {
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "victim", "--ignored"]).env(VICTIM, &lan.prefix).env(WORK, work).env(name, value);
    victim.output().unwrap().status.success()
}

#[test]
fn network_that_is_killed_at_any_step_is_followed_by_one_that_goes_on() {
    let Some(lan) = Lan::new(VXLAN) else { return };
    let log = lan.state.join("points");
    fs::create_dir_all(&lan.state).unwrap();
    let points = |what: &str| -> Vec<String> {
        assert!(work(&lan, what, (hawser_fault::LOG, log.to_str().unwrap())), "{what}");
        let text = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let [attaching, detaching] = ["attach", "detach"].map(points);
    assert!(attaching.len() > 9 && detaching.len() > 6, "{attaching:?} {detaching:?}");

    let is_clean = |point: &str| {
        let links = inside(&lan.node(1), || Command::new("ip").args(["-o", "link"]).output().unwrap());
        let links = String::from_utf8(links.stdout).unwrap();
        assert!(!links.contains(": hw"), "{point}: {links}");
        for folder in ["netns", "pods"] {
            let left = fs::read_dir(lan.state.join("1").join(folder)).unwrap().count();
            assert_eq!(left, 0, "{point}: {folder} is empty");
        }
    };
    for (number, point) in attaching.iter().enumerate() {
        assert!(!work(&lan, "attach", (hawser_fault::DIE_AT, point)), "it dies at {point}");
        if number % 3 > 0 {
            let pod = lan.attach(1, "a");
            seen_from(&lan.node(1), &pod.netns_path, pod.ips[0]);
        }
        lan.with(1, async |network| network.reconcile(&HashSet::new()).await).unwrap();
        is_clean(point);
    }
    for point in detaching {
        lan.attach(1, "a");
        assert!(!work(&lan, "detach", (hawser_fault::DIE_AT, &point)), "it dies at {point}");
        lan.with(1, async |network| network.detach_pod("a").await).unwrap();
        is_clean(&point);
    }
}

#[test]
fn full_block_is_a_clear_error_and_takes_nothing() {
    let Some(lan) = Lan::new(VXLAN) else { return };
    let config = Config { pod_cidrs: vec!["10.250.9.0/30".parse().unwrap()], ..lan.config(1) };
    inside(&lan.node(1), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let network = Network::start(config).await.unwrap();
            network.attach_pod(&pod("a"), None).await.unwrap();
            network.attach_pod(&pod("b"), None).await.unwrap();
            let error = network.attach_pod(&pod("c"), None).await.unwrap_err();
            assert_eq!(error.to_string(), "the node's pod range 10.250.9.0/30 has no address left");
            assert_eq!(network.list().await.len(), 2);
            network.detach_pod("a").await.unwrap();
            network.attach_pod(&pod("c"), None).await.unwrap();
            network.reconcile(&HashSet::new()).await.unwrap();
        });
    });
}

/// The link-layer address of a node's uplink.
fn mac_of(netns: &str) -> String {
    let output = Command::new("ip").args(["-n", netns, "-o", "link", "show", "eth0"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned()
}

/// What the outside knows of a neighbour, after it has asked.
fn neighbour(lan: &Lan, address: IpAddr) -> String {
    // A datagram to a port that nobody has: enough to make the kernel ask who has the address.
    inside(&lan.outside(), || {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = std::net::UdpSocket::bind(any).unwrap();
        let _ = socket.send_to(b"?", (address, 9));
    });
    known_neighbour(lan, address)
}

fn known_neighbour(lan: &Lan, address: IpAddr) -> String {
    let arguments = ["-n", &lan.netns("out"), "neighbour", "show", &address.to_string(), "dev", "lan"];
    let output = Command::new("ip").args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap_or_default().to_owned()
}

#[track_caller]
fn eventually(what: &str, check: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + patience();
    while !check() {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn announce(lan: &Lan, node: u8, addresses: &[IpAddr]) -> hawser_network::Announced {
    let addresses = addresses.iter().copied().collect();
    lan.with(node, async |network| network.announce(&addresses).await).unwrap()
}

/// The addresses of a node's uplink that do not last.
fn lent(lan: &Lan, node: u8) -> Vec<String> {
    let netns = lan.netns(&format!("n{node}"));
    let output = Command::new("ip").args(["-n", &netns, "-o", "address", "show", "dev", "eth0"]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.lines().filter(|line| !line.contains("valid_lft forever")).map(str::to_owned).collect()
}

#[test]
fn announced_address_is_answered_for_by_one_node_and_neighbours_hear_that_it_moved() {
    let Some(lan) = Lan::new(Mode::Routes) else { return };
    ip(&format!("-n {} address add fd29::1/64 dev lan nodad", lan.netns("out")));
    ip(&format!("-n {} route add fd29::/64 dev eth0", lan.netns("n1")));
    let addresses: [IpAddr; 2] = ["172.29.0.200".parse().unwrap(), "fd29::200".parse().unwrap()];
    let macs = [1, 2].map(|node| mac_of(&lan.netns(&format!("n{node}"))));
    let announced = announce(&lan, 1, &addresses);
    assert_eq!(announced.taken, addresses);
    assert_eq!(lent(&lan, 1).len(), 2);
    for address in addresses {
        eventually("node 1 answers", || neighbour(&lan, address) == macs[0]);
    }
    assert!(announce(&lan, 1, &addresses).taken.is_empty(), "a renewal takes nothing");
    // What listens on all of the node's addresses is not reached at these.
    let _server = inside(&lan.node(1), || TcpListener::bind("[::]:8080").unwrap());
    assert!(connect(&lan.outside(), Lan::node_ip(1), 8080).is_ok());
    for address in addresses {
        let error = connect(&lan.outside(), address, 8080).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{address}: {error}");
    }

    assert_eq!(announce(&lan, 1, &[]).released.len(), 2);
    assert!(lent(&lan, 1).is_empty(), "nothing is left");
    announce(&lan, 2, &addresses);
    for address in addresses {
        // Nobody asks: the node has told.
        eventually("the outside has heard", || known_neighbour(&lan, address) == macs[1]);
    }
}

#[test]
fn announced_address_lapses_by_itself_and_is_never_a_source() {
    let Some(lan) = Lan::new(Mode::Routes) else { return };
    let address: IpAddr = "172.29.0.2".parse().unwrap();
    announce(&lan, 1, &[address, "fd29::2".parse().unwrap()]);
    let shown = lent(&lan, 1);
    assert_eq!(shown.len(), 2, "{shown:?}");
    for line in shown {
        let seconds = line.split_whitespace().skip_while(|word| *word != "valid_lft").nth(1).unwrap();
        let seconds: u64 = seconds.trim_end_matches("sec").parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(seconds <= hawser_network::ANNOUNCEMENT_LIFETIME.as_secs(), "{line}");
    }
    let seen = seen_from(&lan.node(1), &lan.outside(), "172.29.0.1".parse().unwrap());
    assert_eq!(seen, Lan::node_ip(1), "the node goes on to speak with its own address");
    // Its own address is not lent, whatever is asked for, and stays.
    announce(&lan, 1, &[Lan::node_ip(1)]);
    assert!(lent(&lan, 1).is_empty());
    announce(&lan, 1, &[]);
    seen_from(&lan.outside(), &lan.node(1), Lan::node_ip(1));
}
