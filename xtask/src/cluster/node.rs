//! The processes of one node: its containerd and its agent.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Context;

use super::{Cluster, NetworkMode, Settings, cgroup, daemon::Daemon, lan};
use crate::{build::Binaries, command::run};

/// A node and its places.
pub(crate) struct Node<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) settings: &'a Settings,
    pub(crate) number: u8,
    pub(crate) name: String,
}

impl Node<'_> {
    fn data_dir(&self) -> PathBuf {
        self.cluster.data_dir().join(&self.name)
    }

    fn run_dir(&self) -> PathBuf {
        self.cluster.run_dir().join(&self.name)
    }

    /// The agent's `--state-dir`.
    pub(crate) fn agent_state(&self) -> PathBuf {
        self.run_dir().join("agent")
    }

    fn credentials(&self) -> PathBuf {
        self.data_dir().join("pki")
    }

    /// Below which its processes and pods run; the socket programs of its agent serve this tree.
    fn cgroup(&self) -> String {
        format!("{}/{}", self.cluster.cgroup(), self.name)
    }

    /// The folder for processes that are not pods, in the cgroup2 hierarchy.
    pub(crate) fn system_cgroup(&self) -> anyhow::Result<PathBuf> {
        Ok(cgroup::unified_root()?.join(self.cgroup().trim_start_matches('/')).join("system"))
    }

    fn daemon(&self, part: &str, program: PathBuf, args: Vec<String>) -> anyhow::Result<Daemon> {
        Ok(Daemon {
            name: format!("{}.{part}", self.name),
            program,
            args,
            netns: Some(lan::netns_path(self.cluster, &self.name)),
            cgroup: self.system_cgroup()?,
        })
    }

    /// Certificates by the cluster's authority, made once.
    pub(crate) fn ensure_credentials(&self, binaries: &Binaries) -> anyhow::Result<()> {
        let folder = self.credentials();
        if folder.join("kubelet.key").exists() {
            return Ok(());
        }
        let mut command = Command::new(&binaries.control_plane);
        command.arg("node-credentials");
        command.arg("--data-dir").arg(self.cluster.data_dir().join("control-plane"));
        command.args(["--name", &self.name, "--node-ip", &self.settings.node_address(self.number)]);
        command.arg("--out").arg(&folder);
        run(&mut command)
    }

    pub(crate) fn containerd(&self) -> anyhow::Result<Daemon> {
        let (data, state) = (self.data_dir().join("containerd"), self.run_dir().join("containerd"));
        fs::create_dir_all(&data)?;
        fs::create_dir_all(&state)?;
        let file = data.join("config.toml");
        let config = format!(
            r#"version = 2
root = {root:?}
state = {state:?}
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.restart",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = {socket:?}

[plugins."io.containerd.internal.v1.opt"]
  path = {opt:?}
"#,
            root = data.join("root"),
            socket = state.join("containerd.sock"),
            opt = data.join("opt"),
        );
        fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
        let args = vec!["--config".to_owned(), file.display().to_string()];
        self.daemon("containerd", "/usr/bin/containerd".into(), args)
    }

    pub(crate) fn agent(&self, binaries: &Binaries) -> anyhow::Result<Daemon> {
        let settings = self.settings;
        // Nodes answer for the cluster's names only: what the machine resolves stays the machine's.
        let resolv_conf = self.data_dir().join("resolv.conf");
        fs::write(&resolv_conf, "")?;
        let pki = self.credentials();
        let path = |path: PathBuf| path.display().to_string();
        let mode = match settings.network_mode {
            NetworkMode::Vxlan => "vxlan",
            NetworkMode::Routes => "routes",
        };
        let flags = [
            ("node-name", self.name.clone()),
            ("node-ip", settings.node_address(self.number)),
            ("api-server", format!("https://{}:{}", settings.host_address(), settings.port)),
            ("ca-file", path(pki.join("ca.crt"))),
            ("client-cert-file", path(pki.join("node.crt"))),
            ("client-key-file", path(pki.join("node.key"))),
            ("tls-cert-file", path(pki.join("kubelet.crt"))),
            ("tls-private-key-file", path(pki.join("kubelet.key"))),
            ("root-dir", path(self.data_dir().join("agent"))),
            ("state-dir", path(self.agent_state())),
            ("container-runtime-endpoint", path(self.run_dir().join("containerd/containerd.sock"))),
            // The cluster's registry speaks plain HTTP, on the nodes' network only.
            ("insecure-registry", settings.registry()),
            ("cgroup-root", self.cgroup()),
            ("cluster-cidr", settings.pod_cidr.clone()),
            ("service-cluster-ip-range", settings.service_cidr.clone()),
            ("cluster-dns", settings.dns_address()?),
            ("load-balancer-ip-range", settings.load_balancer_range()),
            ("resolv-conf", path(resolv_conf)),
            ("network-mode", mode.to_owned()),
            ("uplink", "eth0".to_owned()),
            // The disk is the machine's, shared by all nodes and not theirs to keep free.
            ("eviction-hard", "memory.available<100Mi,nodefs.available<2%,imagefs.available<2%".to_owned()),
            ("image-gc-high-threshold", "100".to_owned()),
        ];
        let args = std::iter::once("run".to_owned())
            .chain(flags.into_iter().map(|(name, value)| format!("--{name}={value}")))
            .chain(settings.node_agent_args.iter().cloned())
            .collect();
        self.daemon("agent", binaries.node_agent.clone(), args)
    }
}
