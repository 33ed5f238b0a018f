//! `node-agent services`: what the kernel holds, read from the pinned maps; the agent need not run.

use std::path::PathBuf;

use anyhow::Context;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The agent's --state-dir
    #[arg(long, env = "HAWSER_STATE_DIR", default_value = "/run/hawser/agent")]
    state_dir: PathBuf,
}

/// Where the datapath's maps and links are pinned.
pub(crate) fn pins(state_dir: &std::path::Path) -> PathBuf {
    state_dir.join("bpf")
}

/// Prints for people; false where nobody reads any more (`| head`), which is no error.
pub(crate) fn print_line(text: impl AsRef<str>) -> bool {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{}", text.as_ref()).is_ok()
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let pins = pins(&options.state_dir);
    let frontends = hawser_proxy::dump_services(&pins)
        .with_context(|| format!("cannot read the datapath's maps below {}", pins.display()))?;
    print_line(format!(
        "{:<46} {:<5} {:>8} {:>12} {:>8}  BACKENDS",
        "FRONTEND", "PROTO", "SERVICE", "CONNECTIONS", "REFUSED"
    ));
    for frontend in frontends {
        let backends: Vec<String> = frontend.backends.iter().map(ToString::to_string).collect();
        let shown = if backends.is_empty() { "none: refused".to_owned() } else { backends.join(" ") };
        let address = frontend.address.to_string();
        let (protocol, id) = (frontend.protocol, frontend.service_id);
        let (chosen, refused) = (frontend.chosen, frontend.refused);
        if !print_line(format!("{address:<46} {protocol:<5} {id:>8} {chosen:>12} {refused:>8}  {shown}")) {
            break;
        }
    }
    Ok(())
}
