//! The scheduler on the workloads of upstream's scheduler-perf, alone and with API server and store.
//!
//! ```text
//! scheduler_perf [<workload>...] [--cases <workload>,...] [--mode scheduler_only,end_to_end]
//! ```
//! `SchedulingBasic` is a workload, of all its sizes; `SchedulingBasic/5000Nodes_10000Pods` is one of them.
//!
//! Prints one JSON object a line: `workload`, `mode`, `metric`, `value`, `unit`, `floor`. A pod counts from its coming to its
//! binding being shown by the API. `average` is over the whole time; `p50` and `p99` are of the rates of slices of 500 pods;
//! `per_second_average`, `_p50`, `_p90`, `_p95`, `_p99` are what upstream's collector would print (rates of seconds without
//! the first one), and absent where a run is too short for it. `floor` is upstream's threshold for the same
//! workload, 0 where it has none. `cargo xtask bench scheduler` builds and runs it.

mod alone;
mod background;
mod end_to_end;
mod ledger;
mod objects;
mod report;
mod samples;
mod seen;
mod server;
mod wire;
mod workloads;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use report::Mode;
use workloads::Workload;

/// As in the control plane.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let (wanted, modes) = arguments(std::env::args().skip(1))?;
    let known = workloads::all();
    for name in &wanted {
        if !known.iter().any(|workload| is_called(workload, name)) {
            let names: Vec<&str> = known.iter().map(|workload| workload.name).collect();
            bail!("no workload is called {name:?}; there are {}", names.join(", "));
        }
    }
    let is_wanted =
        |workload: &&Workload| wanted.is_empty() || wanted.iter().any(|name| is_called(workload, name));
    for workload in known.iter().filter(is_wanted) {
        if modes.contains(&Mode::SchedulerOnly) {
            alone::measure(workload).with_context(|| workload.name)?;
        }
        if modes.contains(&Mode::EndToEnd) {
            end_to_end::measure(workload).with_context(|| workload.name)?;
        }
    }
    Ok(())
}

/// By its name, or as one of the sizes of a workload.
fn is_called(workload: &Workload, name: &str) -> bool {
    workload.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Workloads and modes; no workload is all.
fn arguments(mut arguments: impl Iterator<Item = String>) -> Result<(Vec<String>, Vec<Mode>)> {
    let (mut workloads, mut modes) = (Vec::new(), Mode::ALL.to_vec());
    while let Some(name) = arguments.next() {
        if !name.starts_with("--") {
            workloads.push(name);
            continue;
        }
        // Lines are JSON in any case.
        if name == "--json" {
            continue;
        }
        let value = arguments.next().with_context(|| format!("{name} has no value"))?;
        match name.as_str() {
            "--cases" => workloads.extend(value.split(',').map(str::to_owned)),
            "--mode" => modes = value.split(',').map(mode).collect::<Result<_>>()?,
            other => bail!("there is no option {other}"),
        }
    }
    Ok((workloads, modes))
}

fn mode(name: &str) -> Result<Mode> {
    Mode::ALL
        .into_iter()
        .find(|mode| mode.name() == name)
        .with_context(|| format!("--mode: {name:?} is neither scheduler_only nor end_to_end"))
}
