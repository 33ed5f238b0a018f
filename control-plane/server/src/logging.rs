//! Logs: one line an event, to standard error. With the feature `otel`, spans of requests to a collector as well.

use std::io::IsTerminal;

use anyhow::Context;
use clap::Args;
use hawser_apiserver::spans::Adopt;
use tracing_subscriber::EnvFilter;

#[derive(Args)]
#[group(id = "logging-flags")]
pub(crate) struct Flags {
    /// What is logged: `info`, or `info,hawser_apiserver=debug`.
    #[arg(long, env = "HAWSER_LOG", default_value = "info")]
    log: String,
    /// Where spans of requests go: a collector of OpenTelemetry's, as http://127.0.0.1:4317 (OTLP over gRPC).
    #[cfg(feature = "otel")]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otel_exporter_otlp_endpoint: Option<String>,
}

/// Logging that has begun. What is still to be exported is, when it is dropped.
pub(crate) struct Logging {
    #[cfg(feature = "otel")]
    exporter: Option<crate::otel::Exporter>,
}

impl Logging {
    /// How the API server's spans become parts of their clients' traces, where they are exported.
    pub(crate) fn adopt(&self) -> Option<Adopt> {
        #[cfg(feature = "otel")]
        {
            self.exporter.as_ref().map(|_| crate::otel::adopt())
        }
        #[cfg(not(feature = "otel"))]
        {
            None
        }
    }
}

pub(crate) fn start(flags: &Flags) -> anyhow::Result<Logging> {
    let filter = EnvFilter::try_new(&flags.log);
    let filter = filter.with_context(|| format!("--log={} is not a filter", flags.log))?;
    #[cfg(feature = "otel")]
    if let Some(endpoint) =
        flags.otel_exporter_otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty())
    {
        let exporter = crate::otel::Exporter::start(endpoint, filter)?;
        return Ok(Logging { exporter: Some(exporter) });
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would print them, and panic where its own log cannot be written: on a full disk, say.
        .log_internal_errors(false)
        .init();
    Ok(Logging {
        #[cfg(feature = "otel")]
        exporter: None,
    })
}
