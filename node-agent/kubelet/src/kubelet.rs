//! Starting and stopping the kubelet as a whole.

use std::sync::Arc;

use hawser_api::client::Client;
use hawser_runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Checkpoint;
use crate::clock::AgentClock;
use crate::config::Config;
use crate::cpus::Cpus;
use crate::csi::Csi;
use crate::devices::{self, Devices};
use crate::dra::Dra;
use crate::events::{Recorder, write_events};
use crate::eviction::{Evictor, Pressure};
use crate::image_gc::{ImageCollector, LastUse};
use crate::images::Images;
use crate::images::access::ImageAccess;
use crate::interfaces::{LocalEndpoints, Objects, PodNetwork, StatusWriter};
use crate::manager::{Manager, Pods};
use crate::memory::Memory;
use crate::metrics::{Metered, Metrics, Telemetry};
use crate::node::{Machine, NodeKeeper, machine, usage};
use crate::plugins::Plugins;
use crate::probes::Prober;
use crate::qos_cgroups::{Bounds, QosCgroups};
use crate::shutdown::ShutdownKeeper;
use crate::static_pods::StaticPods;
use crate::static_pods::mirror::{MirrorKeeper, MirrorStatus};
use crate::static_pods::source::Source;
use crate::stats::{Collector, disk};
use crate::users::Users;
use crate::volumes::Volumes;
use crate::worker::actions::Shared;

/// What the kubelet works with; the node agent makes these.
pub struct Parts {
    pub runtime: Arc<dyn Runtime>,
    pub network: Arc<dyn PodNetwork>,
    /// For the node object, leases, events, tokens, claims and deletions.
    pub client: Arc<dyn Client>,
    /// For statuses of pods and of the node.
    pub status: Arc<dyn StatusWriter>,
    pub objects: Objects,
    pub endpoints: Arc<dyn LocalEndpoints>,
}

/// Tells what the node and its pods use.
pub struct UsageReader(Collector);

impl UsageReader {
    /// What they use now, as the node stream carries it.
    pub async fn read(&self) -> hawser_api::v1::Usage {
        usage::usage(&*self.0.collect().await)
    }
}

/// A running kubelet. Its tasks stop when the token it was started with is cancelled.
pub struct Kubelet {
    pub pods: Pods,
    pub machine: Machine,
    telemetry: Telemetry,
    recorder: Recorder,
    tasks: JoinSet<()>,
}

impl Kubelet {
    /// Starts everything. Call before `parts.objects` are fed, so that no change is missed.
    pub fn start(config: Config, parts: Parts, shutdown: CancellationToken) -> Self {
        let config = Arc::new(config);
        let machine = Machine::read(&config.root_dir);
        let (recorder, event_queue) = Recorder::new();
        let prober = Prober::default();
        let pods = Pods::default();
        let Parts { runtime, network, client, status, objects, endpoints } = parts;
        let metrics = Metrics::default();
        let runtime: Arc<dyn Runtime> = Arc::new(Metered::new(runtime, metrics.clone()));
        let collector = Collector::new(&config, runtime.clone(), pods.clone());
        let clock = AgentClock::start();
        let (pressure, pressure_seen) = watch::channel(Pressure::default());
        let (shutting_down, shutdown_seen) = watch::channel(false);
        let last_use = LastUse::default();
        let allocatable = config.allocatable(machine.capacity());
        let noted = objects.clone();
        let statics = StaticPods::default();
        let status: Arc<dyn StatusWriter> =
            Arc::new(MirrorStatus { inner: status, pods: objects.pods.clone() });
        let access = Arc::new(ImageAccess::load(&config));
        let images = Images::new(
            runtime.clone(),
            objects.secrets.clone(),
            recorder.clone(),
            metrics.clone(),
            &config,
            last_use.clone(),
            access.clone(),
        );
        let devices = Devices::load(&config);
        let cpus = Cpus::load(&config, runtime.clone(), pods.clone());
        let memory = Memory::load(&config);
        let csi = Csi::new(config.clone(), client.clone());
        let dra = Dra::load(&config, client.clone());
        let volumes = Volumes::new(
            config.clone(),
            objects.clone(),
            client.clone(),
            runtime.clone(),
            allocatable,
            csi.clone(),
        );
        let certificates = volumes.certificates();
        let pid_max = machine::pids().map(|(max, _)| max);
        let bounds = Bounds::of(&config, machine.capacity(), pid_max);
        let qos_cgroups = QosCgroups::new(&config, bounds, runtime.clone(), pods.clone(), recorder.clone());
        let qos_cgroups = Arc::new(qos_cgroups);
        let shared = Arc::new(Shared {
            config: config.clone(),
            runtime: runtime.clone(),
            network: network.clone(),
            client: client.clone(),
            objects,
            statics: statics.clone(),
            pods: pods.clone(),
            endpoints,
            status: status.clone(),
            images,
            volumes: Arc::new(volumes),
            prober: prober.clone(),
            recorder: recorder.clone(),
            clock,
            metrics: metrics.clone(),
            devices: devices.clone(),
            cpus: cpus.clone(),
            memory,
            users: Users::default(),
            dra: dra.clone(),
            qos_cgroups: qos_cgroups.clone(),
            pressure: pressure_seen.clone(),
            shutting_down: shutdown_seen.clone(),
            has_apparmor: machine.has_apparmor,
            capacity: machine.capacity(),
            allocatable,
        });
        let nodes = shared.objects.nodes.clone();
        let mirrors = MirrorKeeper {
            node_name: config.node_name.clone(),
            client: client.clone(),
            statics: statics.clone(),
            pods: shared.objects.pods.clone(),
            nodes: nodes.clone(),
            workers: pods.clone(),
        };
        let manager = Manager::new(shared, pods.clone());
        let files = config.static_pod_path.clone().map(|path| {
            let mut files = Source::new(path, config.node_name.clone(), statics, recorder.clone());
            // Before the manager begins: it is to know all of them when it looks for what nobody wants.
            files.look();
            files
        });
        let keeper = NodeKeeper {
            config: config.clone(),
            client: client.clone(),
            status,
            runtime: runtime.clone(),
            network,
            recorder: recorder.clone(),
            machine: machine.clone(),
            pressure: pressure_seen,
            shutting_down: shutdown_seen,
            devices: devices.counts(),
            csi: csi.clone(),
            nodes,
        };
        let collecting = ImageCollector {
            config: config.clone(),
            runtime: runtime.clone(),
            collector: collector.clone(),
            recorder: recorder.clone(),
            metrics: metrics.clone(),
            last_use,
            access,
        };
        let evictor = Evictor {
            config: config.clone(),
            runtime: runtime.clone(),
            collector: collector.clone(),
            pods: pods.clone(),
            images: collecting.clone(),
            recorder: recorder.clone(),
            metrics: metrics.clone(),
            clock,
            pressure,
        };
        let ending = ShutdownKeeper { config: config.clone(), pods: pods.clone(), shutting_down };
        let measuring =
            disk::keep_measuring(config.clone(), runtime.clone(), pods.clone(), collector.clone());
        let telemetry = Telemetry {
            stats: collector,
            config: config.clone(),
            metrics,
            prober: prober.clone(),
            pods: pods.clone(),
            certificates,
            cpus: cpus.clone(),
        };
        // After all that hears of pods, and before the API's word comes in.
        let checkpoint = Checkpoint::restore(&config, &noted);
        let mut tasks = JoinSet::new();
        tasks.spawn(checkpoint.run(shutdown.clone()));
        tasks.spawn(manager.run(shutdown.clone()));
        tasks.spawn(mirrors.run(shutdown.clone()));
        if let Some(files) = files {
            tasks.spawn(files.run(shutdown.clone()));
        }
        tasks.spawn(keeper.run(shutdown.clone()));
        tasks.spawn(write_events(
            event_queue,
            client,
            config.node_name.clone(),
            config.event_rate,
            shutdown.clone(),
        ));
        tasks.spawn(qos_cgroups.run(shutdown.clone()));
        tasks.spawn(evictor.run(shutdown.clone()));
        tasks.spawn(ending.run(shutdown.clone()));
        tasks.spawn(collecting.run(shutdown.clone()));
        tasks.spawn(cpus.run(shutdown.clone()));
        tasks.spawn(devices::plugins::run(devices, shutdown.clone()));
        tasks.spawn(dra.clone().run(shutdown.clone()));
        let plugins = Plugins { dir: config.root_dir.join("plugins_registry"), csi, dra };
        tasks.spawn(plugins.run(shutdown.clone()));
        let stop = shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = measuring => {}
            }
        });
        tasks.spawn(async move { prober.run(runtime, shutdown).await });
        Self { pods, machine, telemetry, recorder, tasks }
    }

    pub fn usage_reader(&self) -> UsageReader {
        UsageReader(self.telemetry.stats.clone())
    }

    /// For the kubelet's server.
    pub fn telemetry(&self) -> Telemetry {
        self.telemetry.clone()
    }

    /// For events of other parts of the agent.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Waits for the first part to end. None does before the token is cancelled, unless it panics.
    pub async fn ended(&mut self) {
        if let Some(Err(error)) = self.tasks.join_next().await {
            tracing::error!(%error, "a part of the kubelet panicked");
        }
    }

    /// Waits until everything has stopped after the token was cancelled. Containers go on running.
    pub async fn stopped(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the kubelet panicked");
            }
        }
    }
}
