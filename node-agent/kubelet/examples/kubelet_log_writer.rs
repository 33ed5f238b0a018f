//! What the agent's own binary does in its modes, as a program for tests: `kubelet_log_writer log-writer <file>`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    match words.as_slice() {
        [mode, _] if mode == hawser_runtime::pod_init::MODE => hawser_runtime::pod_init::run(),
        [mode, words @ ..] if mode == hawser_runtime::pod_namespaces::MODE => {
            hawser_runtime::pod_namespaces::run(words)
        }
        [_, config] => hawser_runtime::logger::run(Path::new(config)),
        _ => ExitCode::FAILURE,
    }
}
