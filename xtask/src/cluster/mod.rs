//! A cluster on this machine: where its parts live, and the commands that start, show and end it.
//!
//! Every node is a network namespace on a bridge of the cluster's own, with its own containerd and node agent;
//! the control plane and an image registry run in the machine's namespace. All that belongs to a cluster is
//! found by its name (folders, namespaces, links, cgroups), so that `down` needs nothing but the name, and
//! works after a crash of anything.

mod cgroup;
mod daemon;
pub(crate) mod down;
mod lan;
mod machine;
mod node;
pub(crate) mod shell;
pub(crate) mod status;
pub(crate) mod up;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// Which cluster a command is about.
#[derive(clap::Args)]
pub(crate) struct Selector {
    /// Name of the cluster: prefix of its folders, namespaces, links and cgroups
    #[arg(long, default_value = "hawser")]
    pub(crate) name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Store {
    Embedded,
    Etcd,
}

/// How packets get from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkMode {
    Vxlan,
    Routes,
}

/// What a running cluster was started with; kept in its folder so that later commands agree with `up`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) nodes: u8,
    pub(crate) store: Store,
    pub(crate) network_mode: NetworkMode,
    pub(crate) port: u16,
    #[serde(default = "default_registry_port")]
    pub(crate) registry_port: u16,
    /// First three bytes of the nodes' network, a /24: `10.203.0`.
    pub(crate) lan: String,
    pub(crate) pod_cidr: String,
    pub(crate) service_cidr: String,
    /// Further flags of `control-plane run`.
    #[serde(default)]
    pub(crate) control_plane_args: Vec<String>,
    /// Further flags of `node-agent run`, for all nodes.
    #[serde(default)]
    pub(crate) node_agent_args: Vec<String>,
}

fn default_registry_port() -> u16 {
    5000
}

impl Settings {
    /// The machine's own address on the nodes' network: control plane and registry.
    pub(crate) fn host_address(&self) -> String {
        format!("{}.1", self.lan)
    }

    pub(crate) fn registry(&self) -> String {
        format!("{}:{}", self.host_address(), self.registry_port)
    }

    /// Addresses for Services of type LoadBalancer: of the nodes' network, beyond the nodes' own.
    pub(crate) fn load_balancer_range(&self) -> String {
        format!("{0}.200-{0}.250", self.lan)
    }

    /// The address of cluster DNS: the tenth of the service range.
    pub(crate) fn dns_address(&self) -> anyhow::Result<String> {
        let network = self.service_cidr.split('/').next().unwrap_or_default();
        let address: std::net::Ipv4Addr =
            network.parse().with_context(|| format!("service range {:?} is not IPv4", self.service_cidr))?;
        Ok(std::net::Ipv4Addr::from(u32::from(address) + 10).to_string())
    }

    pub(crate) fn node_names(&self) -> impl Iterator<Item = (u8, String)> + use<> {
        (1..=self.nodes).map(|number| (number, format!("node{number}")))
    }

    pub(crate) fn node_address(&self, number: u8) -> String {
        format!("{}.{}", self.lan, 10 + number)
    }
}

/// The places of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) name: String,
}

impl Cluster {
    /// # Errors
    /// Names that cannot prefix a link's name (15 bytes) or a path are refused.
    pub(crate) fn new(selector: &Selector) -> anyhow::Result<Self> {
        let name = &selector.name;
        let is_plain =
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if name.is_empty() || name.len() > 10 || !is_plain {
            bail!("--name {name:?}: 1 to 10 lower-case letters, digits and dashes are allowed");
        }
        if !nix::unistd::geteuid().is_root() {
            bail!("a cluster needs root (network namespaces, eBPF, containers): run this as root");
        }
        Ok(Self { name: name.clone() })
    }

    /// What outlives a reboot: data, logs, certificates.
    pub(crate) fn data_dir(&self) -> PathBuf {
        Path::new("/var/lib").join(&self.name)
    }

    /// Sockets, process ids, pins.
    pub(crate) fn run_dir(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }

    pub(crate) fn log(&self, part: &str) -> PathBuf {
        self.data_dir().join("logs").join(format!("{part}.log"))
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("control-plane/admin.kubeconfig")
    }

    pub(crate) fn bridge(&self) -> String {
        format!("{}0", self.name)
    }

    pub(crate) fn netns(&self, node: &str) -> String {
        format!("{}-{node}", self.name)
    }

    /// Below the root of every cgroup hierarchy.
    pub(crate) fn cgroup(&self) -> String {
        format!("/{}", self.name)
    }

    fn settings_file(&self) -> PathBuf {
        self.data_dir().join("cluster.json")
    }

    /// `None` where no cluster of this name was started.
    pub(crate) fn settings(&self) -> anyhow::Result<Option<Settings>> {
        let file = self.settings_file();
        match fs::read(&file) {
            Ok(bytes) => {
                let settings = serde_json::from_slice(&bytes);
                Ok(Some(settings.with_context(|| format!("cannot read {}", file.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    fn save(&self, settings: &Settings) -> anyhow::Result<()> {
        fs::create_dir_all(self.data_dir().join("logs"))?;
        fs::create_dir_all(self.run_dir())?;
        let file = self.settings_file();
        fs::write(&file, serde_json::to_vec_pretty(settings)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}
