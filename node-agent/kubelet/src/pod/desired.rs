//! What the API wants of one pod, with its containers in the order in which they start.

use std::sync::Arc;
use std::time::Duration;

use hawser_api::resource::ObjectKey;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, Probe};

use super::state::Instance;

/// Shortest grace that a container gets, even when a pod is deleted by force.
pub const MINIMUM_GRACE: Duration = Duration::from_secs(2);
const DEFAULT_GRACE_SECONDS: i64 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always` (KEP-753): started, then kept running beside the rest.
    Sidecar,
    Main,
    /// Added to a running pod for debugging; never restarted.
    Ephemeral,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn parse(text: &str) -> Self {
        match text {
            "Never" => Self::Never,
            "OnFailure" => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct DesiredContainer {
    pub kind: ContainerKind,
    pub spec: Container,
    /// The container whose processes an ephemeral one sees.
    pub target: Option<String>,
}

impl DesiredContainer {
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn image(&self) -> &str {
        self.spec.image.as_deref().unwrap_or_default()
    }

    /// True when later containers wait for its postStart hook.
    pub fn has_post_start(&self) -> bool {
        self.spec.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some())
    }

    /// The startup probe has passed, or there is none.
    pub fn is_started(&self, instance: &Instance) -> bool {
        instance.is_running() && (self.spec.startup_probe.is_none() || instance.started)
    }

    /// The readiness probe passes, or there is none.
    pub fn is_ready(&self, instance: &Instance) -> bool {
        self.is_started(instance) && (self.spec.readiness_probe.is_none() || instance.ready)
    }

    /// Grace after a failed probe: the probe's own, else the pod's.
    pub fn probe_grace(&self, probe: Option<&Probe>, pod: &DesiredPod) -> Duration {
        let own = probe.and_then(|p| p.termination_grace_period_seconds);
        own.map_or_else(|| pod.spec_grace(), |s| Duration::from_secs(s.max(0).unsigned_abs()))
    }
}

/// A pod as the API has it, taken apart once per change.
#[derive(Clone, Debug)]
pub struct DesiredPod {
    pub object: Arc<Pod>,
    /// Init containers and sidecars in their order, then main, then ephemeral containers.
    pub containers: Vec<DesiredContainer>,
}

impl DesiredPod {
    pub fn new(object: Arc<Pod>) -> Self {
        let containers = object.spec.as_ref().map(in_start_order).unwrap_or_default();
        Self { object, containers }
    }

    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.object.spec.as_ref().unwrap_or(&EMPTY)
    }

    pub fn uid(&self) -> &str {
        self.object.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.object.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace(), self.name())
    }

    /// The account that it runs as, by name.
    pub fn service_account(&self) -> &str {
        let name = self.spec().service_account_name.as_deref();
        name.filter(|name| !name.is_empty()).unwrap_or("default")
    }

    /// `web_default(1234-...)`: how upstream's messages name a pod.
    pub fn full_name(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    pub fn restart_policy(&self) -> RestartPolicy {
        RestartPolicy::parse(self.spec().restart_policy.as_deref().unwrap_or("Always"))
    }

    pub fn host_network(&self) -> bool {
        self.spec().host_network == Some(true)
    }

    /// It asks for users of its own (KEP-127).
    pub fn has_own_users(&self) -> bool {
        self.spec().host_users == Some(false)
    }

    pub fn container(&self, name: &str) -> Option<&DesiredContainer> {
        self.containers.iter().find(|c| c.name() == name)
    }

    pub fn of_kind(&self, kind: ContainerKind) -> impl DoubleEndedIterator<Item = &DesiredContainer> {
        self.containers.iter().filter(move |c| c.kind == kind)
    }

    /// Init containers and sidecars, in order.
    pub fn init_sequence(&self) -> impl DoubleEndedIterator<Item = &DesiredContainer> {
        self.containers.iter().filter(|c| matches!(c.kind, ContainerKind::Init | ContainerKind::Sidecar))
    }

    pub fn has_init_containers(&self) -> bool {
        self.init_sequence().next().is_some()
    }

    pub fn is_deleted(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }

    /// The phase in the API when nothing may follow it.
    pub fn terminal_phase(&self) -> Option<&str> {
        let phase = self.object.status.as_ref()?.phase.as_deref()?;
        matches!(phase, "Succeeded" | "Failed").then_some(phase)
    }

    /// `terminationGracePeriodSeconds`.
    pub fn spec_grace(&self) -> Duration {
        seconds(self.spec().termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS))
    }

    /// What is left of the grace that the deletion gave, when so much of it has passed here. The deletion's timestamp is
    /// not looked at: the API server's clock is another one, and this node's may have jumped since.
    pub fn deletion_grace(&self, passed: Duration) -> Option<Duration> {
        self.object.metadata.deletion_timestamp.as_ref()?;
        let granted = self.object.metadata.deletion_grace_period_seconds.map_or(self.spec_grace(), seconds);
        Some(granted.saturating_sub(passed).max(MINIMUM_GRACE))
    }
}

fn seconds(n: i64) -> Duration {
    Duration::from_secs(n.max(0).unsigned_abs())
}

fn in_start_order(spec: &PodSpec) -> Vec<DesiredContainer> {
    let init = spec.init_containers.iter().flatten().map(|container| {
        let is_sidecar = container.restart_policy.as_deref() == Some("Always");
        let kind = if is_sidecar { ContainerKind::Sidecar } else { ContainerKind::Init };
        DesiredContainer { kind, spec: container.clone(), target: None }
    });
    let main = spec.containers.iter().map(|c| DesiredContainer {
        kind: ContainerKind::Main,
        spec: c.clone(),
        target: None,
    });
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| DesiredContainer {
        kind: ContainerKind::Ephemeral,
        spec: as_container(c.clone()),
        target: c.target_container_name.clone().filter(|name| !name.is_empty()),
    });
    init.chain(main).chain(ephemeral).collect()
}

fn as_container(ephemeral: EphemeralContainer) -> Container {
    Container {
        args: ephemeral.args,
        command: ephemeral.command,
        env: ephemeral.env,
        env_from: ephemeral.env_from,
        image: ephemeral.image,
        image_pull_policy: ephemeral.image_pull_policy,
        name: ephemeral.name,
        resources: ephemeral.resources,
        security_context: ephemeral.security_context,
        stdin: ephemeral.stdin,
        stdin_once: ephemeral.stdin_once,
        termination_message_path: ephemeral.termination_message_path,
        termination_message_policy: ephemeral.termination_message_policy,
        tty: ephemeral.tty,
        volume_mounts: ephemeral.volume_mounts,
        working_dir: ephemeral.working_dir,
        ..Container::default()
    }
}
