//! Lifecycle hooks: postStart and preStop.

use std::net::IpAddr;
use std::time::Duration;

use hawser_runtime::Runtime;
use k8s_openapi::api::core::v1::{ContainerPort, LifecycleHandler};

use crate::probes::check;

const MAX_OUTPUT_BYTES: usize = 10 << 10;

/// Runs a hook to its end, `limit` at most; what went wrong as text.
pub(super) async fn run(
    runtime: &dyn Runtime,
    hook: &LifecycleHandler,
    container_id: &str,
    pod_ip: Option<IpAddr>,
    ports: &[ContainerPort],
    limit: Duration,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        let command = action.command.as_deref().unwrap_or_default();
        let output = runtime.exec_sync(container_id, command, limit, MAX_OUTPUT_BYTES).await;
        return match output {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => Err(format!("command {command:?} exited with {}", output.exit_code)),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(action) = &hook.http_get {
        return check::http_get(action, pod_ip, ports, limit, "kube-lifecycle/1.36").await.map(drop);
    }
    if let Some(action) = &hook.tcp_socket {
        return check::tcp(action, pod_ip, ports, limit).await;
    }
    if let Some(action) = &hook.sleep {
        let wanted = Duration::from_secs(action.seconds.max(0).unsigned_abs());
        tokio::time::sleep(wanted.min(limit)).await;
    }
    Ok(())
}
