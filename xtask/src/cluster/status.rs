//! `status`: the cluster's processes, and its nodes as the API shows them.

use std::process::Command;

use super::{Cluster, Selector, Settings, Store, daemon};
use crate::command::run as run_command;

pub(crate) fn run(selector: &Selector) -> anyhow::Result<()> {
    let cluster = Cluster::new(selector)?;
    let Some(settings) = cluster.settings()? else {
        println!("no cluster {} on this machine; start one: cargo xtask up", cluster.name);
        return Ok(());
    };
    println!("KUBECONFIG  {}", cluster.kubeconfig().display());
    println!("API server  https://127.0.0.1:{}", settings.port);
    println!("registry    {} (plain HTTP, on the nodes' network)", settings.registry());
    println!("logs        {}", cluster.data_dir().join("logs").display());
    println!();
    println!("{:<20} {:>8} {:>12}", "PROCESS", "PID", "RESIDENT");
    for name in processes(&settings) {
        match daemon::pid_of(&cluster, &name) {
            Some(pid) => println!("{name:<20} {pid:>8} {:>8} KiB", resident_kib(pid)),
            None => println!("{name:<20} {:>8} {:>12}", "-", "not running"),
        }
    }
    println!();
    if daemon::pid_of(&cluster, "control-plane").is_some() {
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("--kubeconfig").arg(cluster.kubeconfig()).args(["get", "nodes", "-o", "wide"]);
        run_command(&mut kubectl)?;
    }
    Ok(())
}

fn processes(settings: &Settings) -> Vec<String> {
    let mut names = vec!["control-plane".to_owned(), "registry".to_owned()];
    if settings.store == Store::Etcd {
        names.push("etcd".to_owned());
    }
    for (_, node) in settings.node_names() {
        names.push(format!("{node}.containerd"));
        names.push(format!("{node}.agent"));
    }
    names
}

/// 0 where the process has just ended.
fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// The ends of all logs, on stderr.
pub(crate) fn print_logs(selector: &Selector) -> anyhow::Result<()> {
    const LINES: usize = 60;
    let cluster = Cluster::new(selector)?;
    let Some(settings) = cluster.settings()? else { return Ok(()) };
    for name in processes(&settings) {
        let text = std::fs::read_to_string(cluster.log(&name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("==> {name}: the last of {} lines", lines.len());
        eprintln!("{}", lines[lines.len().saturating_sub(LINES)..].join("\n"));
    }
    Ok(())
}
