//! The log writer as a program of its own, for tests: `kubelet_log_writer log-writer <file>`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(2) {
        Some(config) => hawser_runtime::logger::run(Path::new(&config)),
        None => ExitCode::FAILURE,
    }
}
