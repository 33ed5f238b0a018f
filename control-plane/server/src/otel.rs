//! Spans to a collector: OpenTelemetry's protocol over gRPC.
//!
//! Spans are sent in batches by a thread of their own, from a bounded queue: beyond it they are dropped, and requests wait
//! for nothing. A collector that is away costs its spans. The collector is expected beside the process: there is no TLS.

use std::io::IsTerminal;

use anyhow::{Context, ensure};
use hawser_apiserver::spans::{self, Adopt, TraceParent};
use opentelemetry::{
    Context as TraceContext,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tokio::runtime::{Builder, Runtime};
use tracing::{Span, level_filters::LevelFilter, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{
    EnvFilter, Layer, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

const NAME: &str = "control-plane";

pub(crate) struct Exporter {
    provider: SdkTracerProvider,
    /// The connection's own: the process's ends before the last spans are sent.
    _runtime: Runtime,
}

impl Exporter {
    /// Begins to log what `filter` lets through, and to export the spans of requests.
    pub(crate) fn start(endpoint: &str, filter: EnvFilter) -> anyhow::Result<Self> {
        ensure!(
            endpoint.starts_with("http://"),
            "--otel-exporter-otlp-endpoint={endpoint}: must begin with http://; there is no TLS"
        );
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otel")
            .enable_all()
            .build()
            .context("cannot start the exporter's runtime")?;
        let entered = runtime.enter();
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.with_context(|| format!("--otel-exporter-otlp-endpoint={endpoint}"))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_service_name(NAME).build())
            .build();
        drop(entered);
        let log = fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .log_internal_errors(false)
            .with_filter(filter);
        let requests = Targets::new().with_target(spans::TARGET, LevelFilter::DEBUG);
        let exported =
            tracing_opentelemetry::layer().with_tracer(provider.tracer(NAME)).with_filter(requests);
        tracing_subscriber::registry().with(log).with(exported).init();
        Ok(Self { provider, _runtime: runtime })
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            warn!(%error, "the last spans were not exported");
        }
    }
}

/// Makes spans of requests the children of their clients'.
pub(crate) fn adopt() -> Adopt {
    std::sync::Arc::new(|span: &Span, parent: TraceParent| {
        let parent = SpanContext::new(
            TraceId::from(parent.trace_id),
            SpanId::from(parent.span_id),
            TraceFlags::default().with_sampled(parent.is_sampled),
            true,
            TraceState::default(),
        );
        // Fails where the span is not exported, which is as well.
        let _ = span.set_parent(TraceContext::new().with_remote_span_context(parent));
    })
}
