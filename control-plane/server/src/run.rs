//! `control-plane run`: opens the store, makes what certificates are missing, starts the roles, and ends them in order.

use std::{
    collections::BTreeSet,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use hawser_api::{AddressRange, Client, election::Election};
use hawser_apiserver::{
    ApiServer, Config,
    admission::DefaultTolerationSeconds,
    allocator::{IpRange, PortRange},
    auth::{CONTROLLER_MANAGER, SCHEDULER, SYSTEM_MASTERS, User, jwt::SigningKey, keys::VerifyingKey},
    chain::Limits,
    http,
    local::LocalClient,
    spans::Adopt,
    version::Build,
};
use hawser_store::Store;
use ipnet::IpNet;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    files::{self, Access},
    kubeconfig,
    leader::{self, Elections},
    logging,
    pki::{self, Authority, Identity, Purpose},
    signer::ClusterSigner,
    store, tls,
};

/// How long requests in flight have at the end.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Role {
    Apiserver,
    Scheduler,
    Controllers,
}

#[derive(Args)]
pub(crate) struct Flags {
    /// Directory for certificates and the embedded store.
    #[arg(long)]
    data_dir: PathBuf,
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Port for HTTPS and gRPC.
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// Address under which nodes and pods reach the API server; by default that of the default route.
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Further names and addresses for the serving certificate.
    #[arg(long, value_delimiter = ',')]
    tls_san: Vec<String>,
    /// What to run in this process.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "apiserver,scheduler,controllers")]
    roles: Vec<Role>,
    #[command(flatten)]
    store: store::Flags,
    /// Addresses of services: one range, or one of each family, the primary first.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16")]
    service_cluster_ip_range: Vec<IpRange>,
    /// Ports of services on every node.
    #[arg(long, default_value = "30000-32767")]
    service_node_port_range: PortRange,
    /// Issuer of service account tokens.
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local")]
    service_account_issuer: String,
    /// File with public or private keys (RSA, P-256, P-384) of other control planes, or of earlier times, whose service
    /// account tokens are taken too. Of a private key the public part is taken.
    #[arg(long)]
    service_account_key_file: Vec<PathBuf>,
    /// Addresses of pods; each node gets a block. Empty: nodes get none.
    #[arg(long, value_delimiter = ',')]
    cluster_cidr: Vec<IpNet>,
    /// Size of a node's block of IPv4 addresses.
    #[arg(long, default_value_t = 24)]
    node_cidr_mask_size_ipv4: u8,
    /// Addresses for Services of type LoadBalancer, as 10.0.0.200-10.0.0.250 or 10.0.1.0/24; nodes need the same flag.
    /// Empty: another implementation gives them.
    #[arg(long, value_delimiter = ',')]
    load_balancer_ip_range: Vec<AddressRange>,
    /// Seconds without a heartbeat after which a node is Unknown.
    #[arg(long, default_value_t = 40)]
    node_monitor_grace_period: u64,
    /// Nodes of a zone that are given up in a second, when they are not ready or Unknown.
    #[arg(long, default_value_t = 0.1)]
    node_eviction_rate: f64,
    /// The same while most of a large zone is lost; of a small one, none is given up then.
    #[arg(long, default_value_t = 0.01)]
    secondary_node_eviction_rate: f64,
    /// Share of a zone's nodes that is most of it.
    #[arg(long, default_value_t = 0.55)]
    unhealthy_zone_threshold: f64,
    /// Nodes beyond which a zone is large.
    #[arg(long, default_value_t = 50)]
    large_cluster_size_threshold: usize,
    /// Seconds that pods stay on a node that is not ready, unless they say something else.
    #[arg(long, default_value_t = 300)]
    default_not_ready_toleration_seconds: u32,
    /// Seconds that pods stay on a node that is Unknown, unless they say something else.
    #[arg(long, default_value_t = 300)]
    default_unreachable_toleration_seconds: u32,
    #[command(flatten)]
    leader: leader::Flags,
    /// Controllers to run: `*` for all, `-name` for all but one.
    #[arg(long, value_delimiter = ',', default_value = "*")]
    controllers: Vec<String>,
    /// File with a KubeSchedulerConfiguration; without it pods are placed by upstream's defaults.
    #[arg(long)]
    scheduler_config: Option<PathBuf>,
    /// Requests that only read, at a time.
    #[arg(long, default_value_t = 400)]
    max_requests_inflight: usize,
    /// Requests that write, at a time.
    #[arg(long, default_value_t = 200)]
    max_mutating_requests_inflight: usize,
    /// Seconds that events are kept.
    #[arg(long, default_value_t = 3600)]
    event_ttl: u64,
    /// Seconds between compactions of history; 0 for never.
    #[arg(long, default_value_t = 300)]
    etcd_compaction_interval: u64,
    #[command(flatten)]
    logging: logging::Flags,
}

impl Flags {
    /// Says what is wrong with the flags together.
    fn check(&self) -> anyhow::Result<BTreeSet<Role>> {
        let roles: BTreeSet<Role> = self.roles.iter().copied().collect();
        ensure!(
            roles.contains(&Role::Apiserver),
            "--roles without apiserver needs a remote API server, which this version cannot use yet"
        );
        let ranges = &self.service_cluster_ip_range;
        ensure!(ranges.len() <= 2, "--service-cluster-ip-range takes one range, or one of each family");
        ensure!(
            ranges.len() < 2 || ranges[0].is_v4() != ranges[1].is_v4(),
            "--service-cluster-ip-range has two ranges of one family"
        );
        ensure!(self.max_requests_inflight > 0, "--max-requests-inflight must be at least 1");
        ensure!(
            self.max_mutating_requests_inflight > 0,
            "--max-mutating-requests-inflight must be at least 1"
        );
        Ok(roles)
    }

    fn advertise_address(&self) -> anyhow::Result<IpAddr> {
        if let Some(address) = self.advertise_address {
            return Ok(address);
        }
        if !self.bind_address.is_unspecified() {
            return Ok(self.bind_address);
        }
        default_address().context("cannot find this machine's address; name one with --advertise-address")
    }
}

/// The address that a packet to the outside would carry. Nothing is sent: connecting a datagram socket only looks up a route.
fn default_address() -> io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    Ok(socket.local_addr()?.ip())
}

/// Runs until a signal; `shown` is what `/flagz` shows.
pub(crate) fn run(flags: Flags, shown: Vec<http::Flag>) -> anyhow::Result<()> {
    let logging = logging::start(&flags.logging)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("control-plane")
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(flags, shown, logging.adopt()))
}

async fn serve(flags: Flags, shown: Vec<http::Flag>, adopt: Option<Adopt>) -> anyhow::Result<()> {
    let roles = flags.check()?;
    let advertise = flags.advertise_address()?;
    files::private_directory(&flags.data_dir)?;
    let listener = listen(SocketAddr::new(flags.bind_address, flags.secure_port)).await?;
    let port = listener.local_addr().context("cannot read the address of the listener")?.port();
    let store = store::open(&flags.store, &flags.data_dir).await?;

    let authority = Arc::new(Authority::open_or_create(&flags.data_dir)?);
    let serving = authority.issue("kube-apiserver", &[], serving_names(&flags, advertise))?;
    write_admin_kubeconfig(&flags, &authority, port)?;

    // Each of these is a step of the way out, in this order.
    let (components, front, core) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let mut core_tasks = JoinSet::new();
    let elections = flags.leader.elections(flags.store.is_shared(), &flags.data_dir)?;
    let scheduler_metrics = hawser_scheduler::Metrics::default();
    let mut config = Config { flags: shown, adopt, ..config(&flags, advertise, port, &authority)? };
    if roles.contains(&Role::Scheduler) {
        let metrics = scheduler_metrics.clone();
        config.further_metrics.push(Arc::new(move || metrics.render()));
    }
    if let Some(Elections { scheduler, controllers, .. }) = &elections {
        let all = [scheduler.clone(), controllers.clone()];
        config.further_metrics.push(Arc::new(move || leader::metrics(&all)));
    }
    let interrupted = signals()?;
    let server = tokio::select! {
        started = ApiServer::start(store.clone(), config, &mut core_tasks, core.clone()) => {
            started.context("the API server cannot start")?
        }
        signal = interrupted.wait() => {
            info!(signal, "stopped while starting");
            return close(&store).await;
        }
    };
    let tls = tls::server(authority.certificate(), &serving)?;
    let serving = tokio::spawn(http::serve(server.clone(), listener, tls, front.clone(), GRACE));
    let parts =
        Parts { server: &server, authority: &authority, elections: elections.as_ref(), scheduler_metrics };
    let mut running = start_components(&flags, &roles, parts, &components)?;
    info!(%advertise, port, "control plane is ready");

    let outcome = tokio::select! {
        signal = interrupted.wait() => {
            info!(signal, "stopping");
            Ok(())
        }
        Some(ended) = running.join_next() => match ended {
            Ok((name, Ok(()))) => Err(anyhow::anyhow!("{name} ended by itself")),
            Ok((name, Err(failure))) => Err(failure.context(format!("{name} failed"))),
            Err(panic) => Err(anyhow::Error::new(panic).context("a component panicked")),
        },
    };
    components.cancel();
    while let Some(ended) = running.join_next().await {
        if let Ok((name, Err(failure))) = ended {
            error!(component = name, error = %format!("{failure:#}"), "ended with an error");
        }
    }
    // Watches and streams end with the core; then the rest of the connections drain.
    front.cancel();
    core.cancel();
    let _ = serving.await;
    while core_tasks.join_next().await.is_some() {}
    outcome.and(close(&store).await)
}

async fn close(store: &Arc<dyn Store>) -> anyhow::Result<()> {
    store.close().await.context("cannot close the store")
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            bail!(
                "port {} is taken: stop what listens on {address}, or choose another with --secure-port",
                address.port()
            )
        }
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            bail!("{} is no address of this machine: see --bind-address", address.ip())
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {address}")),
    }
}

/// Names and addresses under which clients may find the API server.
fn serving_names(flags: &Flags, advertise: IpAddr) -> Purpose {
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .into();
    let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST), advertise];
    addresses.extend(flags.service_cluster_ip_range.iter().map(IpRange::first));
    if !flags.bind_address.is_unspecified() {
        addresses.push(flags.bind_address);
    }
    for further in &flags.tls_san {
        match further.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(further.clone()),
        }
    }
    Purpose::Server { names, addresses }
}

fn config(flags: &Flags, advertise: IpAddr, port: u16, authority: &Authority) -> anyhow::Result<Config> {
    let signing_key = SigningKey::from_pem(&pki::service_account_key(&flags.data_dir)?)?;
    let kubelet_client: Identity =
        authority.issue("kube-apiserver-kubelet-client", &[SYSTEM_MASTERS], Purpose::Client)?;
    Ok(Config {
        service_ranges: flags.service_cluster_ip_range.clone(),
        node_ports: flags.service_node_port_range,
        further_keys: further_keys(&flags.service_account_key_file)?,
        issuer: flags.service_account_issuer.clone(),
        limits: Limits {
            reads: flags.max_requests_inflight,
            writes: flags.max_mutating_requests_inflight,
            ..Limits::default()
        },
        tolerations: DefaultTolerationSeconds {
            not_ready: flags.default_not_ready_toleration_seconds,
            unreachable: flags.default_unreachable_toleration_seconds,
        },
        event_ttl: Duration::from_secs(flags.event_ttl),
        compaction_interval: Duration::from_secs(flags.etcd_compaction_interval),
        kubelet_tls: Some(tls::kubelet_client(authority.certificate(), &kubelet_client)?),
        build: build(),
        ..Config::new(advertise, port, signing_key)
    })
}

fn further_keys(files: &[PathBuf]) -> anyhow::Result<Vec<VerifyingKey>> {
    let mut keys = Vec::new();
    for file in files {
        let read = files::read(file).and_then(|pem| Ok(VerifyingKey::all_from_pem(&pem)?));
        keys.extend(read.with_context(|| format!("--service-account-key-file {}", file.display()))?);
    }
    Ok(keys)
}

/// What the build script saw; without a repository it saw nothing.
fn build() -> Build {
    let unknown = Build::UNKNOWN;
    Build {
        git_commit: option_env!("HAWSER_GIT_COMMIT").unwrap_or(unknown.git_commit),
        git_tree_state: option_env!("HAWSER_GIT_TREE_STATE").unwrap_or(unknown.git_tree_state),
        build_date: option_env!("HAWSER_BUILD_DATE").unwrap_or(unknown.build_date),
    }
}

fn write_admin_kubeconfig(flags: &Flags, authority: &Authority, port: u16) -> anyhow::Result<()> {
    let identity = authority.issue("kubernetes-admin", &[SYSTEM_MASTERS], Purpose::Client)?;
    // A listener on every address is reached from this machine by the loopback one.
    let host = if flags.bind_address.is_unspecified() {
        IpAddr::from(Ipv4Addr::LOCALHOST)
    } else {
        flags.bind_address
    };
    let server = format!("https://{}", SocketAddr::new(host, port));
    let text = kubeconfig::render(&server, authority.certificate(), "kubernetes-admin", &identity);
    files::write(&flags.data_dir.join("admin.kubeconfig"), &text, Access::Owner)
}

/// Who reports, in the scheduler's events: this machine.
fn instance() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("default-scheduler-{}", name.trim())
}

pub(crate) fn scheduler_config(path: Option<&Path>) -> anyhow::Result<hawser_scheduler::Config> {
    let config = hawser_scheduler::Config { instance: instance(), ..hawser_scheduler::Config::default() };
    let Some(path) = path else {
        return Ok(config);
    };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("--scheduler-config {}", path.display()))?;
    config.with_file(&text).with_context(|| format!("--scheduler-config {}", path.display()))
}

type Component = (&'static str, anyhow::Result<()>);

/// What components are made of.
struct Parts<'a> {
    server: &'a Arc<ApiServer>,
    authority: &'a Arc<Authority>,
    elections: Option<&'a Elections>,
    scheduler_metrics: hawser_scheduler::Metrics,
}

/// Does the work, when this control plane leads where it has to compete.
async fn led<F>(
    election: Option<Election>,
    client: Arc<dyn Client>,
    shutdown: CancellationToken,
    mut work: impl FnMut(CancellationToken) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    match election {
        Some(election) => election.run(client, shutdown, work).await,
        None => work(shutdown).await,
    }
}

fn start_components(
    flags: &Flags,
    roles: &BTreeSet<Role>,
    parts: Parts<'_>,
    shutdown: &CancellationToken,
) -> anyhow::Result<JoinSet<Component>> {
    let Parts { server, authority, elections, scheduler_metrics } = parts;
    let mut running: JoinSet<Component> = JoinSet::new();
    let mut spawn = |name: &'static str, work: Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>| {
        running.spawn(async move { (name, work.await) });
    };
    let client = |user: &str| -> Arc<dyn Client> { LocalClient::new(server.clone(), User::named(user, &[])) };
    if roles.contains(&Role::Controllers) {
        let config = hawser_controllers::Config {
            controllers: flags.controllers.clone(),
            cluster_cidrs: flags.cluster_cidr.clone(),
            node_cidr_mask_size_ipv4: flags.node_cidr_mask_size_ipv4,
            node_monitor_grace_period: Duration::from_secs(flags.node_monitor_grace_period),
            node_eviction_rate: flags.node_eviction_rate,
            secondary_node_eviction_rate: flags.secondary_node_eviction_rate,
            unhealthy_zone_threshold: flags.unhealthy_zone_threshold,
            large_cluster_size_threshold: flags.large_cluster_size_threshold,
            root_ca_pem: authority.certificate().to_owned(),
            load_balancer_ranges: flags.load_balancer_ip_range.clone(),
            signer: Some(Arc::new(ClusterSigner(authority.clone()))),
            ..hawser_controllers::Config::default()
        };
        let election = elections.map(|elections| elections.controllers.clone());
        let work = {
            let client = client(CONTROLLER_MANAGER);
            move |stop| hawser_controllers::run(client.clone(), config.clone(), stop)
        };
        spawn("controllers", Box::pin(led(election, client(CONTROLLER_MANAGER), shutdown.clone(), work)));
    }
    if roles.contains(&Role::Scheduler) {
        let config = hawser_scheduler::Config {
            metrics: scheduler_metrics,
            ..scheduler_config(flags.scheduler_config.as_deref())?
        };
        let election = elections.map(|elections| elections.scheduler.clone());
        let work = {
            let client = client(SCHEDULER);
            move |stop| hawser_scheduler::run(client.clone(), config.clone(), stop)
        };
        spawn("scheduler", Box::pin(led(election, client(SCHEDULER), shutdown.clone(), work)));
    }
    if running.is_empty() {
        // Something to wait for, so that an API server alone goes on until it is told to stop.
        let shutdown = shutdown.clone();
        running.spawn(async move {
            shutdown.cancelled().await;
            ("nothing", Ok(()))
        });
    }
    Ok(running)
}

/// SIGTERM and SIGINT, heard from the moment this is made.
struct Signals {
    received: tokio::sync::watch::Receiver<&'static str>,
}

impl Signals {
    /// The name of the first signal. Cancel-safe.
    async fn wait(&self) -> &'static str {
        let mut received = self.received.clone();
        match received.wait_for(|name| !name.is_empty()).await {
            Ok(name) => *name,
            Err(_) => std::future::pending().await,
        }
    }
}

fn signals() -> anyhow::Result<Signals> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    let (sender, received) = tokio::sync::watch::channel("");
    // Lives as long as the process; the second signal is not needed, because everything has a deadline.
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        let _ = sender.send(name);
        sender.closed().await;
    });
    Ok(Signals { received })
}
