//! Measures the service path; `cargo xtask bench` builds and runs it.
//!
//! ```text
//! bench service [--services 10,1000,...] [--rounds N] [--milliseconds N] [--cases tcp_crr,...] [--json]
//! bench program [--services 1000,10000,...] [--json]
//! bench xdp [--rounds N] [--json]
//! ```
//! Everything runs in network namespaces that the process makes; it needs root.

mod lab;
mod load;
mod measure;
mod memory;
mod netfilter;
mod objects;
mod packets;
mod peers;
mod program;
mod report;
mod restore;
mod service;

use std::{process::ExitCode, str::FromStr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use lab::Machine;
use measure::Watchdog;
use report::Format;

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
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().context("what is to be measured: service, program, xdp")?;
    let options = Options::parse(arguments)?;
    ensure!(nix::unistd::geteuid().is_root(), "needs root, for network namespaces and eBPF");
    Watchdog::start()?;
    if what == "program" {
        return program::run(&options.services_or(&[1_000, 10_000, 50_000]), options.format);
    }
    let machine = Machine::enter()?;
    match what.as_str() {
        // One size of the above, in a process of its own.
        "program-of" => {
            let services = options.services_or(&[1_000]);
            program::run_size(&machine, services[0], options.format)
        }
        "xdp" => packets::run(&machine, options.rounds, options.format),
        "service" => service::run(&machine, &options.service()),
        other => bail!("there is no benchmark {other}"),
    }
}

/// The command line. Each value has a bound, so that no run is endless.
struct Options {
    services: Vec<u32>,
    rounds: usize,
    length: Duration,
    cases: Vec<String>,
    format: Format,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            services: Vec::new(),
            rounds: 5,
            length: Duration::from_millis(400),
            cases: Vec::new(),
            format: Format::Table,
        };
        while let Some(name) = arguments.next() {
            if name == "--json" {
                options.format = Format::Json;
                continue;
            }
            let value = arguments.next().with_context(|| format!("{name} has no value"))?;
            match name.as_str() {
                "--services" => options.services = list(&value)?,
                "--rounds" => options.rounds = number::<usize>(&value)?.clamp(1, 101),
                "--milliseconds" => {
                    options.length = Duration::from_millis(number::<u64>(&value)?.clamp(20, 5_000))
                }
                "--cases" => options.cases = value.split(',').map(str::to_owned).collect(),
                other => bail!("there is no option {other}"),
            }
        }
        Ok(options)
    }

    fn service(self) -> service::Options {
        service::Options {
            services: self.services_or(&[10]),
            rounds: self.rounds,
            length: self.length,
            cases: self.cases,
            format: self.format,
        }
    }

    fn services_or(&self, default: &[u32]) -> Vec<u32> {
        let services = if self.services.is_empty() { default } else { &self.services };
        services.iter().map(|count| (*count).clamp(2, objects::MAX_SERVICES)).collect()
    }
}

fn list(text: &str) -> Result<Vec<u32>> {
    text.split(',').map(number).collect()
}

fn number<T: FromStr>(text: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().with_context(|| format!("{text:?} is not a number"))
}
