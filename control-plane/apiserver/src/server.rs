//! The API server as a whole: its parts, put together in order, and the tasks that keep it going.

use std::{net::IpAddr, sync::Arc, time::Duration};

use hawser_api::{Error, kinds::KINDS};
use hawser_store::Store;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{Admission, DefaultTolerationSeconds},
    allocator::{Allocators, IpRange, PortRange},
    auth::{
        Authorizer, Union, authn::Authenticator, authz::Superusers, jwt::SigningKey, keys::VerifyingKey,
        node::NodeAuthorizer, rbac::Rbac, tokens::Tokens,
    },
    bootstrap,
    cache::{self, Cache},
    chain::{Chain, Limits},
    grpc::NodeSessions,
    http::Flag,
    maintenance,
    metrics::Metrics,
    openapi::OpenApi,
    registry::{OldLists, Registry},
    resources::{Resources, kind_specs},
    spans::Adopt,
    version::Build,
};

/// What an API server needs to know. See [`Config::new`] for the defaults.
pub struct Config {
    /// `--service-cluster-ip-range`: one, or one of each family, the primary first.
    pub service_ranges: Vec<IpRange>,
    /// `--service-node-port-range`.
    pub node_ports: PortRange,
    /// Where pods and other machines reach this server; the endpoint of the `kubernetes` service.
    pub advertise_address: IpAddr,
    /// Its port.
    pub secure_port: u16,
    /// Signs service account tokens.
    pub signing_key: SigningKey,
    /// Check them too (`--service-account-key-file`).
    pub further_keys: Vec<VerifyingKey>,
    /// `--service-account-issuer`.
    pub issuer: String,
    pub limits: Limits,
    pub tolerations: DefaultTolerationSeconds,
    /// `--event-ttl`.
    pub event_ttl: Duration,
    /// `--etcd-compaction-interval`; zero for never.
    pub compaction_interval: Duration,
    /// Presented to kubelets, and what their certificates are checked against; without it there are no streams.
    pub kubelet_tls: Option<Arc<rustls::ClientConfig>>,
    /// What `/version` says.
    pub build: Build,
    /// What `/flagz` says.
    pub flags: Vec<Flag>,
    /// Where spans are exported: makes them parts of their clients' traces.
    pub adopt: Option<Adopt>,
    /// Metrics of other components in this process, shown with this server's own.
    pub further_metrics: Vec<MetricsSource>,
}

/// Gives metrics in Prometheus' text form.
pub type MetricsSource = Arc<dyn Fn() -> String + Send + Sync>;

impl Config {
    pub fn new(advertise_address: IpAddr, secure_port: u16, signing_key: SigningKey) -> Self {
        Self {
            service_ranges: vec!["10.96.0.0/16".parse().expect("a range")],
            node_ports: PortRange::default(),
            advertise_address,
            secure_port,
            signing_key,
            further_keys: Vec::new(),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            limits: Limits::default(),
            tolerations: DefaultTolerationSeconds::default(),
            event_ttl: Duration::from_secs(3600),
            compaction_interval: Duration::from_secs(300),
            kubelet_tls: None,
            build: Build::UNKNOWN,
            flags: Vec::new(),
            adopt: None,
            further_metrics: Vec::new(),
        }
    }
}

/// A running API server, without its listeners ([`crate::http::serve`]).
pub struct ApiServer {
    registry: Arc<Registry>,
    chain: Chain,
    authenticator: Authenticator,
    metrics: Metrics,
    further_metrics: Vec<MetricsSource>,
    nodes: NodeSessions,
    openapi: OpenApi,
    advertise: (IpAddr, u16),
    kubelet_tls: Option<Arc<rustls::ClientConfig>>,
    build: Build,
    flags: Vec<Flag>,
    adopt: Option<Adopt>,
    started: Timestamp,
    /// Cancelled when the server is to end: streams end then.
    shutdown: CancellationToken,
}

impl ApiServer {
    /// Starts the cache and waits until it holds what the store does, then makes sure that what every cluster has at birth is
    /// there. Tasks run in `tasks` until `shutdown`.
    pub async fn start(
        store: Arc<dyn Store>,
        config: Config,
        tasks: &mut JoinSet<()>,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let allocators = Arc::new(Allocators::new(config.service_ranges, config.node_ports));
        let rbac = Rbac::default();
        let kinds = kind_specs().map(|spec| rbac.follow(spec));
        let cache = Arc::new(Cache::new(store.clone(), kinds, allocators.sinks()));
        let resources = Arc::new(Resources::new(&cache));
        let authorizers: Vec<Arc<dyn Authorizer>> =
            vec![Arc::new(Superusers), Arc::new(NodeAuthorizer::new(&resources)), Arc::new(rbac.clone())];
        let authorizer: Arc<dyn Authorizer> = Arc::new(Union(authorizers));
        let admission =
            Admission::builtin(&cache, &resources, config.tolerations, (rbac, authorizer.clone()));
        let old_lists = OldLists::new(config.limits.old_list_bytes);
        let (cached, known) = (cache.clone(), resources.clone());
        let registry = Registry::new(store, cached, known, admission, allocators, old_lists);
        let registry = Arc::new(registry);
        let tokens =
            Arc::new(Tokens::new(config.signing_key, config.further_keys, config.issuer, &resources));
        let server = Arc::new(Self {
            registry: registry.clone(),
            chain: Chain::new(authorizer, config.limits),
            authenticator: Authenticator::new(tokens),
            metrics: Metrics::default(),
            further_metrics: config.further_metrics,
            nodes: NodeSessions::default(),
            openapi: OpenApi::new(KINDS),
            advertise: (config.advertise_address, config.secure_port),
            kubelet_tls: config.kubelet_tls,
            build: config.build,
            flags: config.flags,
            adopt: config.adopt,
            started: Timestamp::now(),
            shutdown: shutdown.clone(),
        });
        tasks.spawn(cache::run(cache.clone(), shutdown.clone()));
        cache.synced().await;
        maintenance::repair_allocations(&registry, Timestamp::now()).await?;
        bootstrap::run(&server).await?;
        tasks.spawn(maintenance::keep_allocations(registry.clone(), shutdown.clone()));
        tasks.spawn(maintenance::expire_events(registry.clone(), config.event_ttl, shutdown.clone()));
        if !config.compaction_interval.is_zero() {
            tasks.spawn(maintenance::compact(registry, config.compaction_interval, shutdown.clone()));
        }
        tasks.spawn(crate::grpc::renew_leases(server.clone(), shutdown));
        Ok(server)
    }

    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    pub fn authenticator(&self) -> &Authenticator {
        &self.authenticator
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The text of `/metrics`.
    pub(crate) fn all_metrics(&self) -> String {
        let own = self.metrics.render(self.chain.in_flight(), self.registry.cache().progress());
        self.further_metrics.iter().fold(own, |text, further| text + &further())
    }

    pub(crate) fn nodes(&self) -> &NodeSessions {
        &self.nodes
    }

    pub(crate) fn openapi(&self) -> &OpenApi {
        &self.openapi
    }

    /// Where others reach this server.
    pub fn advertised(&self) -> (IpAddr, u16) {
        self.advertise
    }

    pub(crate) fn kubelet_tls(&self) -> Option<&Arc<rustls::ClientConfig>> {
        self.kubelet_tls.as_ref()
    }

    pub(crate) fn build(&self) -> &Build {
        &self.build
    }

    pub(crate) fn flags(&self) -> &[Flag] {
        &self.flags
    }

    pub(crate) fn adopt(&self) -> Option<&Adopt> {
        self.adopt.as_ref()
    }

    pub(crate) fn started(&self) -> Timestamp {
        self.started
    }

    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }
}
