//! What is below any kubelet: containerd's own client, and runc without containerd.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// containerd's namespace for it: the agent does not look there.
const NAMESPACE: &str = "floor";

/// A network namespace, an image and a bundle that are there before anything is measured.
pub(crate) struct Floor<'a> {
    cluster: &'a Cluster,
    image: String,
    netns: String,
    folder: PathBuf,
}

fn run(command: &mut Command) -> Result<String> {
    // What a container inherits must not hold this program's pipes open.
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command whose container goes on: its output goes nowhere.
fn launch(command: &mut Command) -> Result<Duration> {
    let begin = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    let took = begin.elapsed();
    ensure!(status.success(), "{command:?}: {status}");
    Ok(took)
}

impl<'a> Floor<'a> {
    pub(crate) fn new(cluster: &'a Cluster) -> Result<Self> {
        let floor = Self {
            cluster,
            image: cluster.image("busybox:1"),
            netns: format!("{}-floor", cluster.name),
            folder: cluster.data_dir().join("floor"),
        };
        // A namespace of a run before this one that broke off serves as well.
        if !floor.netns_path().exists() {
            run(Command::new("ip").args(["netns", "add", &floor.netns]))?;
        }
        floor.pull(&floor.image)?;
        floor.make_bundle()?;
        Ok(floor)
    }

    fn netns_path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.netns)
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.cluster.containerd_socket()).args(["--namespace", NAMESPACE]);
        command
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.folder.join("runc"));
        command
    }

    /// Below the cluster's own, so that it goes with it.
    fn cgroup(&self, id: &str) -> String {
        format!("/{}/floor/{id}", self.cluster.name)
    }

    /// Pulls and unpacks an image with `ctr`.
    pub(crate) fn pull(&self, image: &str) -> Result<Duration> {
        let begin = Instant::now();
        run(self.ctr().args(["image", "pull", "--plain-http", image]))?;
        Ok(begin.elapsed())
    }

    /// Removes an image, and waits until its content is gone.
    pub(crate) fn forget(&self, image: &str) -> Result<()> {
        run(self.ctr().args(["image", "rm", "--sync", image])).map(drop)
    }

    fn make_bundle(&self) -> Result<()> {
        let (mounted, rootfs) = (self.folder.join("mounted"), self.folder.join("bundle/rootfs"));
        if rootfs.exists() {
            return Ok(());
        }
        fs::create_dir_all(&mounted)?;
        fs::create_dir_all(self.folder.join("bundle"))?;
        run(self.ctr().args(["images", "mount", &self.image]).arg(&mounted))?;
        run(Command::new("cp").arg("-a").arg(&mounted).arg(&rootfs))?;
        run(self.ctr().args(["images", "unmount", "--rm"]).arg(&mounted))?;
        run(Command::new("runc").arg("spec").current_dir(self.folder.join("bundle"))).map(drop)
    }

    fn write_spec(&self, id: &str) -> Result<()> {
        let file = self.folder.join("bundle/config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["sleep", "3600"]);
        spec["linux"]["cgroupsPath"] = json!(self.cgroup(id));
        for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
            if namespace["type"] == "network" {
                namespace["path"] = json!(self.netns_path());
            }
        }
        fs::write(&file, spec.to_string()).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Time of `ctr run` until the container's process runs.
    pub(crate) fn ctr_run(&self, id: &str) -> Result<Duration> {
        let namespace = format!("network:{}", self.netns_path().display());
        let mut command = self.ctr();
        command.args(["run", "--detach", "--with-ns", &namespace, "--cgroup", &self.cgroup(id)]);
        launch(command.args([&self.image, id, "sleep", "3600"]))
    }

    pub(crate) fn ctr_remove(&self, id: &str) -> Result<()> {
        run(self.ctr().args(["task", "rm", "--force", id]))?;
        run(self.ctr().args(["container", "rm", id])).map(drop)
    }

    /// Time of `runc run`, likewise.
    pub(crate) fn runc_run(&self, id: &str) -> Result<Duration> {
        self.write_spec(id)?;
        let mut command = self.runc();
        launch(command.args(["run", "--detach", "--bundle"]).arg(self.folder.join("bundle")).arg(id))
    }

    pub(crate) fn runc_remove(&self, id: &str) -> Result<()> {
        run(self.runc().args(["delete", "--force", id])).map(drop)
    }
}

impl Drop for Floor<'_> {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "delete", &self.netns])) {
            eprintln!("warning: {error:#}");
        }
    }
}
