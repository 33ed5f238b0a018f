//! Measures the API server as its clients meet it; `cargo xtask bench api` builds and runs it.
//!
//! ```text
//! api [--store embedded,etcd] [--cases create,list,...] [--seconds N] [--objects N] [--json]
//! ```
//! The server is a process of its own: the API server alone, without scheduler and controllers. It has the second
//! processor, with etcd where that is its store, and the clients have the first. Clients speak TLS to it. The cases `rbac`
//! and `owners` are of parts of the server, in this process.

mod cases;
mod client;
mod in_process;
mod measure;
mod pods;
mod report;
mod server;
mod watching;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

use report::{Format, Report};
use server::Engine;

/// The server's own, so that its parts take as long here.
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
    let options = Options::parse(std::env::args().skip(1))?;
    server::take_processor(server::CLIENTS)?;
    rustls::crypto::ring::default_provider().install_default().ok().context("TLS is set up twice")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = Report::new(None, options.format);
    if options.wants("rbac") {
        in_process::rbac(&report)?;
    }
    if options.wants("owners") {
        in_process::owners(&report)?;
    }
    for engine in options.engines.iter().filter(|_| options.needs_server()) {
        let report = Report::new(Some(*engine), options.format);
        runtime.block_on(cases::run(&options, *engine, &report))?;
    }
    Ok(())
}

/// The command line. Each value has a bound, so that no run is endless.
pub(crate) struct Options {
    engines: Vec<Engine>,
    /// Which cases; all where none is named.
    cases: Vec<String>,
    /// Length of a measurement.
    pub(crate) seconds: u64,
    /// How many pods the server holds in the end.
    pub(crate) objects: usize,
    format: Format,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            engines: vec![Engine::Embedded, Engine::Etcd],
            cases: Vec::new(),
            seconds: 5,
            objects: 100_000,
            format: Format::Table,
        };
        while let Some(name) = arguments.next() {
            if name == "--json" {
                options.format = Format::Json;
                continue;
            }
            let value = arguments.next().with_context(|| format!("{name} has no value"))?;
            let number =
                || value.parse::<u64>().with_context(|| format!("{name}: {value:?} is not a number"));
            match name.as_str() {
                "--store" => options.engines = value.split(',').map(str::parse).collect::<Result<_>>()?,
                "--cases" => options.cases = value.split(',').map(str::to_owned).collect(),
                "--seconds" => options.seconds = number()?.clamp(1, 60),
                "--objects" => options.objects = number()?.clamp(10_000, 1_000_000) as usize,
                other => bail!("there is no option {other}"),
            }
        }
        let known = [&cases::IN_PROCESS[..], &cases::NAMES[..]].concat();
        for case in &options.cases {
            ensure!(known.contains(&case.as_str()), "there is no case {case}: {}", known.join(", "));
        }
        Ok(options)
    }

    fn needs_server(&self) -> bool {
        cases::NAMES.iter().any(|case| self.wants(case))
    }

    pub(crate) fn wants(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|wanted| wanted == case)
    }
}
