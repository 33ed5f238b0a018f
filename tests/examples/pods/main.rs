//! Measures what a node does for pods; `cargo xtask bench pods` makes a cluster of one node, builds and runs it.
//!
//! ```text
//! pods --name CLUSTER --xtask PROGRAM [--cases one,many,memory,probes,restart,pull] [--rounds N] [--json]
//! ```
//! Pods come with their node in the spec, so that no scheduler is in between, and are seen as any client sees them: by
//! a watch. Times begin before the request that makes a pod. The floor is what is below any kubelet, in turns with it:
//! `ctr run` and `runc run` of the same image, in a network namespace that is there already.

mod cases;
mod cluster;
mod floor;
mod processes;
mod report;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

use cluster::Cluster;
use report::Report;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let cluster = Cluster::connect(&options.name, &options.xtask).await?;
        cases::run(&options, &cluster, &Report::new(options.json)).await
    })
}

/// The command line. Each value has a bound, so that no run is endless.
struct Options {
    name: String,
    xtask: String,
    /// Which cases; all where none is named.
    cases: Vec<String>,
    rounds: usize,
    json: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options =
            Self { name: String::new(), xtask: String::new(), cases: Vec::new(), rounds: 20, json: false };
        while let Some(name) = arguments.next() {
            if name == "--json" {
                options.json = true;
                continue;
            }
            let value = arguments.next().with_context(|| format!("{name} has no value"))?;
            match name.as_str() {
                "--name" => options.name = value,
                "--xtask" => options.xtask = value,
                "--cases" => options.cases = value.split(',').map(str::to_owned).collect(),
                "--rounds" => {
                    let rounds: usize =
                        value.parse().with_context(|| format!("{name}: {value:?} is not a number"))?;
                    options.rounds = rounds.clamp(1, 200);
                }
                other => bail!("there is no option {other}"),
            }
        }
        ensure!(!options.name.is_empty() && !options.xtask.is_empty(), "--name and --xtask are needed");
        for case in &options.cases {
            let names = cases::NAMES;
            ensure!(names.contains(&case.as_str()), "there is no case {case}: {}", names.join(", "));
        }
        Ok(options)
    }

    fn wants(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|wanted| wanted == case)
    }
}
