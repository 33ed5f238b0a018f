//! `node-agent run`: what runs, in which order it starts, and how it stops.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use async_trait::async_trait;
use hawser_api::{
    Client,
    grpc::{NodeSession, Remote, RemoteOptions},
    informer::Informer,
    resource::{ObjectKey, Target},
};
use hawser_dns::Dns;
use hawser_kubelet::{
    Kubelet, Parts, StatusWriter, UsageReader,
    cpus::{CpuPolicy, topology::Topology},
    credentials::Credentials,
    events::{Recorder, node_reference},
    locality::{Distances, MAX_NODES, Policy, Scope},
    memory::{MemoryPolicy, machine as numa},
    node::Machine,
    quantity::binary_si,
    users::IdPool,
};
use hawser_network::{Mode, Network, Uplink};
use hawser_runtime::{Containerd, LogWriter, Registries, Runtime};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    LOG_WRITER,
    caches::Caches,
    cgroup,
    configuration::{self, Given},
    health_check::HealthChecks,
    healthz::{Health, answer_metrics},
    http_server, kubelet_api,
    load_balancer::LoadBalancer,
    memory,
    metrics::Metrics,
    names,
    options::{
        CpuManagerPolicy, EnforceNodeAllocatable, LoadBalancerMode, MemoryManagerPolicy, NetworkMode,
        Options, TopologyManagerPolicy, TopologyManagerScope, TopologyOption, Xdp, read,
    },
    pod_network::{self, AgentNetwork},
    service_path::ServicePath,
    services::pins,
    visibility,
};

/// VXLAN network identifier and port (Linux's own default port, which flannel uses too).
const TUNNEL: Mode = Mode::Vxlan { vni: 1, port: 8472 };
/// How often the node's usage goes up the stream.
const USAGE_INTERVAL: Duration = Duration::from_secs(15);
/// How long an agent with a record of its pod range waits for what the API says of it.
const API_WAIT: Duration = Duration::from_secs(3);
/// When routes to nodes that could not be set are tried again: twice as long after each time.
const NODES_AGAIN: Duration = Duration::from_secs(1);
const NODES_AGAIN_AT_LAST: Duration = Duration::from_secs(60);
/// How long containerd may take to come up before the agent gives up, and whoever supervises it sees that.
const CONTAINERD_WAIT: Duration = Duration::from_secs(60);

/// `given`: the flags that are on the command line, which win over the file of `--config`.
pub(crate) fn run(mut options: Options, given: &Given) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("HAWSER_LOG").unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // It would print them, and panic where its own log cannot be written: on a full disk, say.
        .log_internal_errors(false)
        .init();
    let mut config =
        hawser_kubelet::Config::new(options.node_name.clone(), options.node_ip, options.root_dir.clone());
    if let Some(path) = options.config.clone() {
        configuration::apply(&path, given, &mut options, &mut config)
            .with_context(|| format!("--config {}", path.display()))?;
    }
    let installed = rustls::crypto::ring::default_provider().install_default();
    installed.map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(options, config))
}

/// `config` has what no flag says.
async fn serve(options: Options, config: hawser_kubelet::Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    for folder in [&options.root_dir, &options.state_dir] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let remote = connect(&options)?;
    let (session, events) = remote.node_session(&options.node_name);
    let containerd = connect_containerd(containerd_config(&options)?).await?;

    let caches = Caches::default();
    let metrics = Metrics::new();
    let service_path = ServicePath::new(metrics.clone());
    let pod_network = AgentNetwork::new(service_path.clone());
    let dns = Dns::new(hawser_dns::Config {
        cluster_domain: options.cluster_domain.clone(),
        listen: options.cluster_dns.iter().map(|ip| SocketAddr::new(*ip, 53)).collect(),
        upstreams: options.upstreams()?,
        ttl_seconds: 5,
        upstream_timeout: Duration::from_secs(2),
    })?;
    names::feed(&dns, &caches.objects.services);
    let containerd: Arc<dyn Runtime> = Arc::new(containerd);
    let client: Arc<dyn Client> = Arc::new(remote);
    let parts = Parts {
        runtime: containerd.clone(),
        network: pod_network.clone(),
        client: client.clone(),
        status: Arc::new(StreamWriter(session.clone())),
        objects: caches.objects.clone(),
        endpoints: Arc::new(service_path.clone()),
    };
    let config = kubelet_config(&options, config)?;
    let server_settings = config.server.clone();
    let log_folder = config.log_dir.clone();
    let mut kubelet = Kubelet::start(config, parts, shutdown.clone());
    let surroundings = Surroundings::new(&options, &caches, &metrics, kubelet.recorder());
    let source = kubelet_api::Source {
        pods: kubelet.pods.clone(),
        network: pod_network.clone(),
        node_ip: options.node_ip,
        log_folder,
        telemetry: kubelet.telemetry(),
    };
    let server = kubelet_api::bind(&options, &server_settings, containerd, client, source).await?;
    let mut serving = tokio::spawn(server.run(shutdown.clone()));
    // After every reader has registered: no change is missed.
    let mut following = tokio::spawn(caches.clone().follow(events));
    info!(node = options.node_name, address = %options.node_ip, "node agent runs");

    // A part that ends by itself ends the agent: one that goes on without it would report a node that is well.
    let usage = kubelet.usage_reader();
    let mut is_serving = true;
    let outcome = tokio::select! {
        outcome = run_network(&options, &caches, &pod_network, &service_path, &dns, &shutdown) => outcome,
        () = report_usage(&usage, &session) => Ok(()),
        () = memory::give_back() => Ok(()),
        () = kubelet.ended() => Err(anyhow::anyhow!("a part of the kubelet ended by itself")),
        ended = &mut serving => {
            is_serving = false;
            Err(anyhow::anyhow!("the kubelet's API ended by itself: {ended:?}"))
        }
        _ = &mut following => Err(anyhow::anyhow!("the node's caches ended by themselves")),
        () = surroundings.run(&options, &caches, &service_path, pod_network.clone()) => {
            Err(anyhow::anyhow!("what surrounds the service path ended by itself"))
        }
        () = asked_to_stop() => Ok(()),
    };
    shutdown.cancel();
    service_path.stop();
    kubelet.stopped().await;
    if is_serving && let Err(error) = serving.await {
        warn!(%error, "the kubelet's API panicked");
    }
    info!("node agent ends; pods and their network go on");
    outcome
}

fn connect(options: &Options) -> anyhow::Result<Remote> {
    let options = RemoteOptions {
        servers: options.api_server.clone(),
        ca_pem: read(&options.ca_file)?,
        identity: Some((read(&options.client_cert_file)?, read(&options.client_key_file)?)),
    };
    Ok(Remote::new(&options)?)
}

/// Waits for containerd: at boot it may come up after the agent, and it may be down for a moment.
async fn connect_containerd(config: hawser_runtime::Config) -> anyhow::Result<Containerd> {
    let deadline = tokio::time::Instant::now() + CONTAINERD_WAIT;
    loop {
        match Containerd::connect(config.clone()).await {
            Ok(containerd) => return Ok(containerd),
            Err(error) if tokio::time::Instant::now() > deadline => {
                return Err(error).with_context(|| format!("containerd at {}", config.socket.display()));
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "waiting for containerd");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

fn containerd_config(options: &Options) -> anyhow::Result<hawser_runtime::Config> {
    Ok(hawser_runtime::Config {
        socket: options.container_runtime_endpoint.clone(),
        namespace: "hawser".into(),
        state_dir: options.root_dir.join("runtime"),
        run_dir: options.state_dir.join("runtime"),
        snapshotter: None,
        log_writer: LogWriter {
            program: std::env::current_exe().context("cannot find this program's own file")?,
            mode: LOG_WRITER.into(),
            max_size_bytes: options.container_log_max_size,
            max_files: options.container_log_max_files,
        },
        registries: Registries {
            config_dir: Some(options.registry_config_dir.clone()),
            plain_http: options.insecure_registry.iter().cloned().collect(),
            ..Registries::default()
        },
        cdi_dirs: options.cdi_spec_dirs.clone(),
        handlers: options.runtime_handler.iter().cloned().collect(),
        relist_interval: Duration::from_secs(60),
    })
}

/// The numbers of users that pods with their own may have, as the machine's files say.
fn users(each: u32, max_pods: u32) -> anyhow::Result<IdPool> {
    let text = |path: &str| match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| format!("cannot read {path}")),
    };
    let pool = IdPool::new(each, max_pods, &text("/etc/subuid")?, &text("/etc/subgid")?);
    pool.map_err(|why| anyhow::anyhow!("userNamespaces: {why}"))
}

fn kubelet_config(
    options: &Options,
    mut config: hawser_kubelet::Config,
) -> anyhow::Result<hawser_kubelet::Config> {
    config.cgroup_root = options.cgroup_root.clone();
    config.cluster_dns = options.cluster_dns.clone();
    config.cluster_domain = options.cluster_domain.clone();
    config.resolv_conf = options.resolv_conf.clone();
    config.port = options.port;
    config.max_pods = options.max_pods;
    config.users = users(config.users.ids_per_pod(), options.max_pods)?;
    config.static_pod_path = options.pod_manifest_path.clone();
    config.checkpoint_secrets = options.checkpoint_secrets;
    config.api_wait = API_WAIT;
    config.labels = options.labels()?;
    config.taints = options.register_with_taints.clone();
    config.pod_pids_limit = options.pod_max_pids;
    config.allowed_unsafe_sysctls = options.allowed_unsafe_sysctls.clone();
    config.kube_reserved = options.kube_reserved;
    config.system_reserved = options.system_reserved;
    config.enforce_node_allocatable = options.enforce_node_allocatable == EnforceNodeAllocatable::Pods;
    if let Some(cpus) = &options.reserved_cpus {
        config.kube_reserved.cpu_millis = 0;
        config.system_reserved.cpu_millis = 1000 * cpus.len() as u64;
    }
    if options.cpu_manager_policy == CpuManagerPolicy::Static {
        let topology = Topology::read(Path::new("/sys/devices/system/cpu"));
        let millis = config.kube_reserved.cpu_millis.saturating_add(config.system_reserved.cpu_millis);
        let policy = CpuPolicy::fixed(topology, options.reserved_cpus.clone().unwrap_or_default(), millis);
        config.cpu_policy = policy.map_err(|why| anyhow::anyhow!("--cpu-manager-policy static: {why}"))?;
    }
    config.topology_policy = match options.topology_manager_policy {
        TopologyManagerPolicy::None => Policy::None,
        TopologyManagerPolicy::BestEffort => Policy::BestEffort,
        TopologyManagerPolicy::Restricted => Policy::Restricted,
        TopologyManagerPolicy::SingleNumaNode => Policy::SingleNumaNode,
    };
    let nodes = numa::read(Path::new("/sys/devices/system/node")).len();
    anyhow::ensure!(
        config.topology_policy == Policy::None || nodes <= MAX_NODES,
        "--topology-manager-policy: the machine has {nodes} NUMA nodes, more than the {MAX_NODES} that can be put together"
    );
    config.topology_scope = match options.topology_manager_scope {
        TopologyManagerScope::Container => Scope::Container,
        TopologyManagerScope::Pod => Scope::Pod,
    };
    if options.topology_manager_policy_options.contains(&TopologyOption::PreferClosestNumaNodes(true)) {
        let distances = Distances::read(Path::new("/sys/devices/system/node"));
        let distances =
            distances.map_err(|why| anyhow::anyhow!("--topology-manager-policy-options: {why}"))?;
        config.numa_distances = Some(distances);
    }
    if let (Some(file), Some(dir)) =
        (&options.image_credential_provider_config, &options.image_credential_provider_bin_dir)
    {
        let credentials = Credentials::load(file, dir);
        config.credentials =
            credentials.map_err(|why| anyhow::anyhow!("--image-credential-provider-config: {why}"))?;
    }
    config.eviction = options.eviction()?;
    config.shutdown_graces = options.shutdown_graces()?;
    if options.memory_manager_policy == MemoryManagerPolicy::Static {
        let capacity = Machine::read(&options.root_dir).capacity();
        let withheld = capacity.memory_bytes.saturating_sub(config.allocatable(capacity).memory_bytes);
        let nodes = numa::read(Path::new("/sys/devices/system/node"));
        let reserved = options.reserved_memory.iter().cloned().collect();
        let left = numa::allocatable(nodes, &reserved, u64::try_from(withheld).unwrap_or(0));
        let left = left.map_err(|why| anyhow::anyhow!("--reserved-memory: {why}"))?;
        config.memory_policy = MemoryPolicy::Static(left);
    }
    config.runtime_handlers = options.runtime_handler.iter().map(|(name, _)| name.clone()).collect();
    config.image_gc.high_percent = options.image_gc_high_threshold;
    config.image_gc.low_percent = options.image_gc_low_threshold;
    config.server.client_ca_file = Some(options.client_ca_file.as_ref().unwrap_or(&options.ca_file).clone());
    config.of_others = shown_for_others(options);
    Ok(config)
}

/// Fields of a KubeletConfiguration that containerd's client and the server's certificates follow.
fn shown_for_others(options: &Options) -> Map<String, Value> {
    let reserved = options.reserved_memory.iter().map(|(node, amounts)| {
        let limits: BTreeMap<&String, String> =
            amounts.iter().map(|(name, amount)| (name, binary_si(*amount))).collect();
        json!({ "numaNode": node, "limits": limits })
    });
    let fields = [
        (
            "containerRuntimeEndpoint",
            json!(format!("unix://{}", options.container_runtime_endpoint.display())),
        ),
        ("containerLogMaxSize", json!(binary_si(options.container_log_max_size))),
        ("containerLogMaxFiles", json!(options.container_log_max_files)),
        ("tlsCertFile", json!(options.tls_cert_file)),
        ("tlsPrivateKeyFile", json!(options.tls_private_key_file)),
        ("reservedMemory", reserved.collect()),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Statuses go up the node's stream, each with its answer.
struct StreamWriter(NodeSession);

#[async_trait]
impl StatusWriter for StreamWriter {
    async fn patch_status(&self, target: &Target, uid: &str, patch: Value) -> Result<(), hawser_api::Error> {
        self.0.update_status(&target.clone().with_subresource("status"), uid, &patch).await
    }
}

/// What surrounds the service path: metrics, health, events, load balancer addresses.
struct Surroundings {
    metrics: Metrics,
    health: Health,
    health_checks: HealthChecks,
    load_balancer: LoadBalancer,
    recorder: Recorder,
}

impl Surroundings {
    /// Registers its readers: before the caches are filled.
    fn new(options: &Options, caches: &Caches, metrics: &Metrics, recorder: &Recorder) -> Self {
        let (services, nodes) = (&caches.objects.services, &caches.objects.nodes);
        let recorder = recorder.of("node-agent");
        let node = &options.node_name;
        let health = Health::new(metrics.clone(), nodes.clone(), node);
        Self {
            health_checks: HealthChecks::new(services, node, health.clone(), recorder.clone()),
            load_balancer: LoadBalancer::new(
                options.load_balancer_ip_range.clone(),
                node,
                services,
                nodes,
                metrics.clone(),
            ),
            metrics: metrics.clone(),
            health,
            recorder,
        }
    }

    /// Runs all of it until dropped.
    async fn run(
        self,
        options: &Options,
        caches: &Caches,
        service_path: &ServicePath,
        network: Arc<AgentNetwork>,
    ) {
        let Self { metrics, health, health_checks, load_balancer, recorder } = self;
        let objects = &caches.objects;
        let node = node_reference(&options.node_name);
        let scraped = metrics.clone();
        let balance = async {
            service_path.opened().await;
            load_balancer.run(network).await;
        };
        let watch = async {
            service_path.opened().await;
            let pins = pins(&options.state_dir);
            visibility::watch_datapath(pins, metrics, node, recorder.clone()).await;
        };
        tokio::join!(
            http_server::serve_at("metrics", options.metrics_bind_address, move |request| {
                answer_metrics(&scraped, request)
            }),
            http_server::serve_at("healthz", options.healthz_bind_address, move |request| health
                .answer(request)),
            health_checks.run(),
            balance,
            watch,
            visibility::tell_skipped(
                service_path.skipped(),
                objects.services.clone(),
                objects.pods.clone(),
                recorder.clone(),
            ),
        );
    }
}

/// Sets the node's network up as soon as its pod range is known, then keeps it in step until `shutdown`.
async fn run_network(
    options: &Options,
    caches: &Caches,
    pod_network: &AgentNetwork,
    service_path: &ServicePath,
    dns: &Dns,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let (changed, mut node_changes) = tokio::sync::watch::channel(());
    caches.objects.nodes.on_change(move |_| {
        changed.send_replace(());
    });
    let pod_cidrs = pod_range(options, caches, &mut node_changes).await?;
    info!(?pod_cidrs, "pod range");
    let network = Network::start(network_config(options, pod_cidrs.clone())).await?;
    let uplink = network.uplink().await?;
    pod_network.provide(network);
    let service_path_ended = service_path.start(proxy_config(options, uplink)?, &caches.objects.services)?;

    let follow_nodes = async {
        let mut wait = NODES_AGAIN;
        loop {
            let mut are_set = true;
            if caches.objects.nodes.is_synced() {
                service_path.set_zone(zone_of(&caches.objects.nodes, &options.node_name));
                are_set = pod_network.set_nodes(&caches.objects.nodes, &options.node_name).await;
            }
            tokio::select! {
                changed = node_changes.changed() => match changed {
                    Ok(()) => wait = NODES_AGAIN,
                    Err(_) => return,
                },
                () = tokio::time::sleep(wait), if !are_set => wait = (2 * wait).min(NODES_AGAIN_AT_LAST),
            }
        }
    };
    let first_sync = async {
        // Pods come last: everything else is there.
        caches.objects.pods.synced().await;
        pod_network.set_nodes(&caches.objects.nodes, &options.node_name).await;
        pod_network.adopted(&caches.objects.pods).await;
        service_path.set_zone(zone_of(&caches.objects.nodes, &options.node_name));
        service_path.open();
        dns.complete();
        info!("pods of the last run are adopted, the service path follows the API");
        // Known from a record while the API was away: another node may have the block by now.
        let range = known_range(options, caches);
        anyhow::ensure!(
            range.is_empty() || range == pod_cidrs,
            "this node's pod range is {range:?}, not {pod_cidrs:?} as it was; the next start follows"
        );
        Ok(())
    };
    tokio::select! {
        outcome = async { tokio::try_join!(first_sync, async { follow_nodes.await; Ok(()) }) } => outcome.map(drop),
        _ = service_path_ended => Err(anyhow::anyhow!("the service path's thread ended by itself")),
        outcome = dns.run(shutdown.clone()) => outcome.context("cluster DNS cannot run"),
    }
}

/// What the API has told of the node's pod range so far.
fn known_range(options: &Options, caches: &Caches) -> Vec<IpNet> {
    let key = ObjectKey::new("", options.node_name.clone());
    caches.objects.nodes.get(&key).map(|node| pod_network::pod_cidrs(&node)).unwrap_or_default()
}

/// The zone that the node's label names.
fn zone_of(nodes: &Informer<Node>, own_name: &str) -> Option<String> {
    let node = nodes.get(&ObjectKey::new("", own_name))?;
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").filter(|zone| !zone.is_empty()).cloned()
}

/// The node's pod range, from the API or, where that is away, from an earlier run.
async fn pod_range(
    options: &Options,
    caches: &Caches,
    node_changes: &mut tokio::sync::watch::Receiver<()>,
) -> anyhow::Result<Vec<IpNet>> {
    let file = options.root_dir.join("pod-cidrs.json");
    let recorded: Option<Vec<IpNet>> = match std::fs::read(&file) {
        Ok(bytes) => {
            Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    if let Some(recorded) = &recorded
        && tokio::time::timeout(API_WAIT, caches.objects.nodes.synced()).await.is_err()
    {
        warn!(?recorded, "the API is away: the pod range is that of the last run");
        return Ok(recorded.clone());
    }
    loop {
        let cidrs = known_range(options, caches);
        if !cidrs.is_empty() {
            if recorded.as_ref() != Some(&cidrs) {
                write_durably(&file, &serde_json::to_vec(&cidrs)?)?;
            }
            return Ok(cidrs);
        }
        node_changes.changed().await.context("the node stream ended")?;
    }
}

/// The old content or the new one, whatever happens in between.
fn write_durably(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let new = path.with_extension("new");
        let mut file = std::fs::File::create(&new)?;
        std::io::Write::write_all(&mut file, content)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn network_config(options: &Options, pod_cidrs: Vec<IpNet>) -> hawser_network::Config {
    hawser_network::Config {
        node_ip: options.node_ip,
        uplink: options.uplink.clone(),
        pod_cidrs,
        cluster_cidrs: options.cluster_cidr.clone(),
        service_cidrs: options.service_cluster_ip_range.clone(),
        mode: match options.network_mode {
            NetworkMode::Vxlan => TUNNEL,
            NetworkMode::Routes => Mode::Routes,
        },
        masquerade: !options.no_masquerade,
        dns_addresses: options.cluster_dns.clone(),
        state_dir: options.state_dir.join("network"),
    }
}

fn proxy_config(options: &Options, uplink: Uplink) -> anyhow::Result<hawser_proxy::Config> {
    let cgroup = cgroup::unified(&options.cgroup_root)?;
    let mut config = hawser_proxy::Config::new(pins(&options.state_dir), cgroup, options.node_name.clone());
    config.node_addresses = node_addresses(options.node_ip, &uplink.addresses);
    config.nodeport_addresses =
        options.nodeport_addresses.iter().map(|range| (range.network(), range.prefix_len())).collect();
    config.pod_ranges =
        options.cluster_cidr.iter().map(|range| (range.network(), range.prefix_len())).collect();
    if options.no_short_ways {
        config.short_ways = hawser_proxy::ShortWays::Off;
    }
    config.load_balancer_mode = match options.load_balancer_mode {
        LoadBalancerMode::Snat => hawser_proxy::LoadBalancerMode::Snat,
        LoadBalancerMode::Dsr => hawser_proxy::LoadBalancerMode::Dsr,
    };
    config.xdp = match options.xdp {
        // It cannot enter a tunnel.
        Xdp::Auto if options.network_mode == NetworkMode::Vxlan => hawser_proxy::Xdp::Off,
        Xdp::Auto => hawser_proxy::Xdp::Auto,
        Xdp::On => hawser_proxy::Xdp::On,
        Xdp::Off => hawser_proxy::Xdp::Off,
    };
    if let Some(max_flows) = options.max_flows {
        config.max_flows = max_flows;
    }
    config.uplinks = vec![uplink.name];
    if options.network_mode == NetworkMode::Vxlan {
        config.uplinks.push(hawser_network::TUNNEL.to_owned());
    }
    Ok(config)
}

/// The node's addresses, its own first: the first of a family is the source of what the node sends on.
fn node_addresses(node_ip: IpAddr, others: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses = vec![node_ip];
    addresses.extend(others.iter().filter(|address| **address != node_ip));
    addresses
}

async fn report_usage(usage: &UsageReader, session: &NodeSession) {
    let mut tick = tokio::time::interval(USAGE_INTERVAL);
    loop {
        tick.tick().await;
        session.report_usage(usage.read().await);
    }
}

async fn asked_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        warn!("signals cannot be received; only SIGKILL ends this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
