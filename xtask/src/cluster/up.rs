//! `up`: makes every part of the cluster run that does not, waits until it is ready, says how to use it.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    Cluster, NetworkMode, Selector, Settings, Store, cgroup, daemon, daemon::Daemon, lan, machine, node::Node,
};
use crate::{
    build::{self, Binaries},
    command::{output, run as run_command, say, succeeds},
    image::{self, Image},
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selector: Selector,
    /// How many nodes; a running cluster can grow
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=99))]
    nodes: Option<u8>,
    /// Where the cluster's state is kept
    #[arg(long, value_enum)]
    store: Option<Store>,
    /// How packets get from node to node
    #[arg(long, value_enum)]
    network_mode: Option<NetworkMode>,
    /// Port of the API server, on every address of this machine
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=55_534))]
    port: Option<u16>,
    /// Port of the cluster's image registry, on the nodes' network
    #[arg(long)]
    registry_port: Option<u16>,
    /// First three bytes of the nodes' network, a /24
    #[arg(long)]
    lan: Option<String>,
    /// Range of pod addresses
    #[arg(long)]
    pod_cidr: Option<String>,
    /// Range of service addresses
    #[arg(long)]
    service_cidr: Option<String>,
    /// A further flag for `control-plane run`, as --control-plane-arg=--event-ttl=60; may be given again
    #[arg(long)]
    control_plane_arg: Vec<String>,
    /// A further flag for `node-agent run`, on all nodes, as --node-agent-arg=--max-pods=250; may be given again
    #[arg(long)]
    node_agent_arg: Vec<String>,
    #[command(flatten)]
    build: build::Args,
    /// Start the binaries that were built before
    #[arg(long)]
    no_build: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let begin = Instant::now();
    let cluster = Cluster::new(&args.selector)?;
    let settings = settle(args, cluster.settings()?)?;
    setup::run(setup::Need { run: true, etcd: settings.store == Store::Etcd, ..setup::Need::BUILD })?;
    machine::check(settings.network_mode)?;
    if daemon::pid_of(&cluster, "control-plane").is_none() {
        check_port("0.0.0.0", settings.port, "--port")?;
    }
    if settings.store == Store::Etcd && daemon::pid_of(&cluster, "etcd").is_none() {
        for port in [etcd_port(&settings), etcd_port(&settings) + 1] {
            check_port("127.0.0.1", port, "--port (etcd's are 10,000 and 10,001 above it)")?;
        }
    }
    let binaries = if args.no_build { build::built(&args.build)? } else { build::binaries(&args.build)? };
    cluster.save(&settings)?;
    start(&cluster, &settings, &binaries)?;
    wait_until_ready(&cluster, &settings)?;
    say(format!("ready after {:.1} s", begin.elapsed().as_secs_f64()));
    explain(&cluster, &settings);
    Ok(())
}

/// Flags, over what the cluster was started with, over the defaults.
fn settle(args: &Args, before: Option<Settings>) -> anyhow::Result<Settings> {
    let is_new = before.is_none();
    let base = before.unwrap_or(Settings {
        nodes: 1,
        store: Store::Embedded,
        network_mode: NetworkMode::Vxlan,
        port: 6443,
        registry_port: super::default_registry_port(),
        lan: "10.203.0".into(),
        pod_cidr: "10.244.0.0/16".into(),
        service_cidr: "10.96.0.0/16".into(),
        control_plane_args: Vec::new(),
        node_agent_args: Vec::new(),
    });
    let settings = Settings {
        nodes: args.nodes.unwrap_or(base.nodes),
        store: args.store.unwrap_or(base.store),
        network_mode: args.network_mode.unwrap_or(base.network_mode),
        port: args.port.unwrap_or(base.port),
        registry_port: args.registry_port.unwrap_or(base.registry_port),
        lan: args.lan.clone().unwrap_or(base.lan.clone()),
        pod_cidr: args.pod_cidr.clone().unwrap_or(base.pod_cidr.clone()),
        service_cidr: args.service_cidr.clone().unwrap_or(base.service_cidr.clone()),
        control_plane_args: match &args.control_plane_arg[..] {
            [] => base.control_plane_args.clone(),
            given => given.to_vec(),
        },
        node_agent_args: match &args.node_agent_arg[..] {
            [] => base.node_agent_args.clone(),
            given => given.to_vec(),
        },
    };
    format!("{}.0", settings.lan)
        .parse::<std::net::Ipv4Addr>()
        .with_context(|| format!("--lan {:?}: three bytes such as 10.203.0 are expected", settings.lan))?;
    settings.dns_address()?;
    let grown = Settings { nodes: settings.nodes.max(base.nodes), ..base };
    if !is_new && grown != settings {
        bail!("the cluster runs with other settings; end it first: cargo xtask down");
    }
    Ok(settings)
}

fn check_port(address: &str, port: u16, flag: &str) -> anyhow::Result<()> {
    match TcpListener::bind((address, port)) {
        Ok(_) => Ok(()),
        Err(error) => {
            bail!("port {port} cannot be used ({error}); end what uses it, or choose another with {flag}")
        }
    }
}

fn start(cluster: &Cluster, settings: &Settings, binaries: &Binaries) -> anyhow::Result<()> {
    lan::ensure(cluster, settings)?;
    if daemon::pid_of(cluster, "registry").is_none() {
        check_port(&settings.host_address(), settings.registry_port, "--registry-port")?;
    }
    if settings.store == Store::Etcd {
        announce(&etcd(cluster, settings)?, cluster)?;
        wait(Duration::from_secs(30), "etcd", || {
            daemon::check(cluster, "etcd")?;
            Ok(TcpStream::connect(("127.0.0.1", etcd_port(settings))).is_ok())
        })?;
    }
    let control_plane = control_plane(cluster, settings, binaries)?;
    announce(&control_plane, cluster)?;
    announce(&registry(cluster, settings)?, cluster)?;
    wait(Duration::from_secs(60), "the API server", || {
        control_plane.check(cluster)?;
        Ok(succeeds(kubectl(cluster).args(["get", "--raw", "/readyz"])))
    })?;
    for (number, name) in settings.node_names() {
        let node = Node { cluster, settings, number, name };
        node.ensure_credentials(binaries)?;
        announce(&node.containerd()?, cluster)?;
        announce(&node.agent(binaries)?, cluster)?;
    }
    push_images(cluster, settings)
}

fn announce(daemon: &Daemon, cluster: &Cluster) -> anyhow::Result<()> {
    if daemon.ensure(cluster)? {
        say(format!("started {}", daemon.name));
    }
    Ok(())
}

fn control_plane(cluster: &Cluster, settings: &Settings, binaries: &Binaries) -> anyhow::Result<Daemon> {
    let mut args = vec![
        "run".to_owned(),
        format!("--data-dir={}", cluster.data_dir().join("control-plane").display()),
        format!("--secure-port={}", settings.port),
        format!("--advertise-address={}", settings.host_address()),
        format!("--cluster-cidr={}", settings.pod_cidr),
        format!("--service-cluster-ip-range={}", settings.service_cidr),
        format!("--load-balancer-ip-range={}", settings.load_balancer_range()),
    ];
    match settings.store {
        Store::Embedded => args.push("--store=embedded".into()),
        Store::Etcd => {
            args.push("--store=etcd".into());
            args.push(format!("--etcd-servers={}", etcd_client_url(settings)));
        }
    }
    args.extend(settings.control_plane_args.iter().cloned());
    host_daemon(cluster, "control-plane", &binaries.control_plane, args)
}

fn etcd_client_url(settings: &Settings) -> String {
    format!("http://127.0.0.1:{}", etcd_port(settings))
}

fn etcd_port(settings: &Settings) -> u16 {
    settings.port + 10_000
}

fn etcd(cluster: &Cluster, settings: &Settings) -> anyhow::Result<Daemon> {
    let client = etcd_client_url(settings);
    let peer = format!("http://127.0.0.1:{}", etcd_port(settings) + 1);
    let args = [
        ("name", cluster.name.clone()),
        ("data-dir", cluster.data_dir().join("etcd").display().to_string()),
        ("listen-client-urls", client.clone()),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer.clone()),
        ("initial-advertise-peer-urls", peer.clone()),
        ("initial-cluster", format!("{}={peer}", cluster.name)),
    ];
    let args = args.into_iter().map(|(name, value)| format!("--{name}={value}")).collect();
    host_daemon(cluster, "etcd", Path::new("/usr/bin/etcd"), args)
}

fn registry(cluster: &Cluster, settings: &Settings) -> anyhow::Result<Daemon> {
    let folder = cluster.data_dir().join("registry");
    fs::create_dir_all(&folder)?;
    let config = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {}\n",
        folder.join("data").display(),
        settings.registry(),
    );
    let file = folder.join("config.yml");
    fs::write(&file, config)?;
    let args = vec!["serve".to_owned(), file.display().to_string()];
    host_daemon(cluster, "registry", Path::new("/usr/bin/docker-registry"), args)
}

/// A process in the machine's own network namespace.
fn host_daemon(cluster: &Cluster, name: &str, program: &Path, args: Vec<String>) -> anyhow::Result<Daemon> {
    let cgroup = cgroup::unified_root()?.join(cluster.cgroup().trim_start_matches('/')).join("host");
    Ok(Daemon { name: name.into(), program: program.into(), args, netns: None, cgroup })
}

/// Packs the demo images and puts them into the cluster's registry.
fn push_images(cluster: &Cluster, settings: &Settings) -> anyhow::Result<()> {
    let folder = cluster.data_dir().join("images");
    let images = image::pack(&folder)?;
    wait(Duration::from_secs(30), "the registry", || {
        daemon::check(cluster, "registry")?;
        Ok(TcpStream::connect(settings.registry()).is_ok())
    })?;
    images.iter().try_for_each(|image| push(settings, image))
}

/// Puts an image into the cluster's registry.
pub(crate) fn push(settings: &Settings, image: &Image) -> anyhow::Result<()> {
    let to = format!("docker://{}/{}", settings.registry(), image.reference);
    let from = format!("oci:{}", image.layout.display());
    output(Command::new("skopeo").args(["copy", "--quiet", "--dest-tls-verify=false", &from, &to]))?;
    Ok(())
}

fn wait_until_ready(cluster: &Cluster, settings: &Settings) -> anyhow::Result<()> {
    say("waiting for the nodes");
    for (_, name) in settings.node_names() {
        wait(Duration::from_secs(120), &format!("node {name}"), || {
            daemon::check(cluster, "control-plane")?;
            daemon::check(cluster, &format!("{name}.containerd"))?;
            daemon::check(cluster, &format!("{name}.agent"))?;
            let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            let ready = output(kubectl(cluster).args(["get", "node", &name, "-o", path]));
            Ok(ready.is_ok_and(|status| status == "True"))
        })?;
    }
    Ok(())
}

/// Asks every 100 ms until `is_done`; an error ends the wait.
fn wait(
    limit: Duration,
    what: &str,
    mut is_done: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !is_done()? {
        if Instant::now() > deadline {
            bail!("{what} is not ready after {} s; see the logs", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn kubectl(cluster: &Cluster) -> Command {
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(cluster.kubeconfig()).arg("--request-timeout=5s");
    command
}

/// The result, on stdout.
fn explain(cluster: &Cluster, settings: &Settings) {
    let image = format!("{}/{}", settings.registry(), image::DEMO);
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("# demo image: {image} (and {}/{})", settings.registry(), image::DEMO_NEXT);
    println!("kubectl get nodes -o wide");
    println!("kubectl create deployment web --image={image} --replicas=3");
    println!("kubectl expose deployment web --port=80 --target-port=8080");
    // Whether it is well is seen by the nodes; errors of an unwritable stdout have nobody to tell.
    let _ = run_command(kubectl(cluster).args(["get", "nodes"]).stdout(std::io::stderr()));
}
