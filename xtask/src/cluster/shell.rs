//! `shell`: a shell, or a command, on a node: in its network namespace and below its cgroup, so that service
//! addresses work as they do for the node's own processes.

use std::{fs::File, io::Write, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

use super::{Cluster, Selector, lan, node::Node};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selector: Selector,
    /// The node, as `kubectl get nodes` names it
    node: String,
    /// A command to run instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cluster = Cluster::new(&args.selector)?;
    let Some(settings) = cluster.settings()? else {
        bail!("no cluster {} on this machine; start one: cargo xtask up", cluster.name);
    };
    let Some((number, name)) = settings.node_names().find(|(_, name)| *name == args.node) else {
        let known: Vec<String> = settings.node_names().map(|(_, name)| name).collect();
        bail!("no node {:?}; there are: {}", args.node, known.join(", "));
    };
    let netns = lan::netns_path(&cluster, &name);
    let node = Node { cluster: &cluster, settings: &settings, number, name };
    let procs = node.system_cgroup()?.join("cgroup.procs");
    let mut procs = File::options().write(true).open(&procs).context("the node is not running")?;
    procs.write_all(b"0").context("cannot enter the node's cgroup")?;
    let netns = File::open(&netns).with_context(|| format!("cannot open {}", netns.display()))?;
    setns(&netns, CloneFlags::CLONE_NEWNET).context("cannot enter the node's network namespace")?;

    let mut command = match args.command.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
        None => {
            let mut shell = Command::new(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
            shell.env("PS1", format!("{}# ", node.name));
            shell
        }
    };
    command.env("KUBECONFIG", cluster.kubeconfig());
    // So that `node-agent services` is this node's.
    command.env("HAWSER_STATE_DIR", node.agent_state());
    let own_folder = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.to_owned()));
    let known = std::env::var_os("PATH").unwrap_or_default();
    let folders = own_folder.into_iter().chain(std::env::split_paths(&known));
    command.env("PATH", std::env::join_paths(folders).context("a folder of PATH has a colon in its name")?);
    Err(command.exec()).with_context(|| format!("cannot run {:?}", command.get_program()))
}
