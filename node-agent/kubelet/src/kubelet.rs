//! Starting and stopping the kubelet as a whole.

use std::sync::Arc;

use hawser_api::client::Client;
use hawser_runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::AgentClock;
use crate::config::Config;
use crate::events::{Recorder, write_events};
use crate::images::Images;
use crate::interfaces::{LocalEndpoints, Objects, PodNetwork, StatusWriter};
use crate::manager::{Manager, Pods};
use crate::node::{Machine, NodeKeeper, usage};
use crate::probes::Prober;
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
pub struct UsageReader {
    runtime: Arc<dyn Runtime>,
    pods: Pods,
}

impl UsageReader {
    /// What they use now, as the node stream carries it.
    pub async fn read(&self) -> hawser_api::v1::Usage {
        usage::usage(&self.runtime, &self.pods).await
    }
}

/// A running kubelet. Its tasks stop when the token it was started with is cancelled.
pub struct Kubelet {
    pub pods: Pods,
    pub machine: Machine,
    runtime: Arc<dyn Runtime>,
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
        let images = Images::new(
            runtime.clone(),
            objects.secrets.clone(),
            recorder.clone(),
            config.max_parallel_pulls,
        );
        let volumes = Volumes::new(config.clone(), objects.clone(), client.clone(), machine.capacity());
        let shared = Arc::new(Shared {
            config: config.clone(),
            runtime: runtime.clone(),
            network: network.clone(),
            client: client.clone(),
            objects,
            endpoints,
            status: status.clone(),
            images,
            volumes: Arc::new(volumes),
            prober: prober.clone(),
            recorder: recorder.clone(),
            clock: AgentClock::start(),
            capacity: machine.capacity(),
        });
        let nodes = shared.objects.nodes.clone();
        let manager = Manager::new(shared, pods.clone());
        let keeper = NodeKeeper {
            config: config.clone(),
            client: client.clone(),
            status,
            runtime: runtime.clone(),
            network,
            recorder: recorder.clone(),
            machine: machine.clone(),
            nodes,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(manager.run(shutdown.clone()));
        tasks.spawn(keeper.run(shutdown.clone()));
        tasks.spawn(write_events(event_queue, client, config.node_name.clone(), shutdown.clone()));
        let probing = runtime.clone();
        tasks.spawn(async move { prober.run(probing, shutdown).await });
        Self { pods, machine, runtime, recorder, tasks }
    }

    pub fn usage_reader(&self) -> UsageReader {
        UsageReader { runtime: self.runtime.clone(), pods: self.pods.clone() }
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
