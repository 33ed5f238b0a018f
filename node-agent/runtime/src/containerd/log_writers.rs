//! Log writers that were killed are followed by others, and what containers write meanwhile waits in its pipes.
//!
//! For that the agent holds a reading end of every pipe that a shim made for a log writer, without reading. If the
//! writer's were the only ones, its end would make the container's next write fail, and with SIGPIPE mostly the
//! container. They are taken from the writer through `/proc` once it listens. While no agent runs, nothing holds
//! them: who then kills a writer ends the container's log until the container restarts. FIFOs need no holding, the
//! shim has both ends of them open.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::task_io::{WRITER_CONFIG, start_writer};
use super::{Inner, attach, blocking};
use crate::logger::{Source, WriterConfig};
use crate::paths::{io_error, write_atomically};
use crate::{ContainerId, Error, Result};

/// How often it is looked whether all writers are there. A pipe holds 64 KiB for its writer meanwhile; a container
/// that writes more waits.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Pipes of containers with a task, in the order of [`Source::descriptors`]; none for FIFOs.
#[derive(Default)]
pub(super) struct Outputs(Mutex<HashMap<ContainerId, Arc<Vec<File>>>>);

impl Outputs {
    /// The writer of a container with FIFOs is looked after before there is a task: it ends with a shim that gave one up,
    /// and the shim that makes the next one waits half a minute for a reader, and then fails.
    pub(super) fn watch_fifos(&self, id: &str) {
        self.0.lock().insert(id.to_owned(), Arc::default());
    }

    pub(super) fn let_go(&self, id: &str) {
        self.0.lock().remove(id);
    }
}

impl Inner {
    /// Without it a container works as well, only not past its writer.
    pub(super) async fn hold_output_or_warn(&self, id: &str) {
        if let Err(error) = self.hold_output(id).await {
            tracing::warn!(id, %error, "a container's output is not held");
        }
    }

    /// Takes hold of the output of a container whose writer runs.
    async fn hold_output(&self, id: &str) -> Result<()> {
        if self.outputs.0.lock().contains_key(id) {
            return Ok(());
        }
        let directory = self.paths.container(id);
        let descriptors = read_config(&directory)?.source.descriptors();
        if descriptors.is_empty() {
            self.outputs.watch_fifos(id);
            return Ok(());
        }
        let writer = attach::connect(&directory).await?;
        // Right unless the writer has ended since and its number was given away at once: then another process's
        // pipe is held, which is not read, and this container's is not.
        let pid = writer.peer_cred().ok().and_then(|peer| peer.pid());
        let pipes = descriptors.iter().map(|fd| {
            let path = format!("/proc/{}/fd/{fd}", pid.unwrap_or_default());
            File::open(&path).map_err(io_error("open", Path::new(&path)))
        });
        let pipes = pipes.collect::<Result<Vec<_>>>()?;
        self.outputs.0.lock().insert(id.to_owned(), Arc::new(pipes));
        Ok(())
    }

    /// Starts the log writers again that are gone before their containers' output has ended.
    pub(super) async fn revive_log_writers(&self) {
        let held: Vec<_> =
            self.outputs.0.lock().iter().map(|(id, pipes)| (id.clone(), pipes.clone())).collect();
        for (id, pipes) in held {
            let directory = self.paths.container(&id);
            if !directory.exists() {
                // Taken hold of while the container was removed.
                self.outputs.let_go(&id);
                continue;
            }
            let is_gone = match attach::connect(&directory).await {
                Err(Error::Io { source, .. }) => source.kind() == std::io::ErrorKind::ConnectionRefused,
                _ => false,
            };
            if !is_gone || !self.outputs.0.lock().contains_key(&id) {
                continue;
            }
            match self.revive_log_writer(&id, pipes).await {
                Ok(()) => tracing::warn!(id, "log writer was gone, started another"),
                Err(error) => tracing::warn!(id, %error, "log writer is gone, and another does not start"),
            }
        }
    }

    async fn revive_log_writer(&self, id: &str, pipes: Arc<Vec<File>>) -> Result<()> {
        let (directory, writer) = (self.paths.container(id), self.config.log_writer.clone());
        blocking(move || {
            let path = directory.join(WRITER_CONFIG);
            let mut config = read_config(&directory)?;
            let again = |pipe: &File| pipe.try_clone().map_err(io_error("take", &path));
            let held = match pipes.as_slice() {
                [] => None,
                [stdout] => Some([again(stdout)?, File::open("/dev/null").map_err(io_error("open", &path))?]),
                [stdout, stderr, ..] => Some([again(stdout)?, again(stderr)?]),
            };
            if held.is_some() {
                config.source = Source::Held;
                let json = serde_json::to_vec(&config).expect("a writer's configuration is plain data");
                write_atomically(&path, &json)?;
            }
            start_writer(&writer, &path, held)
        })
        .await
    }
}

fn read_config(directory: &Path) -> Result<WriterConfig> {
    let path = directory.join(WRITER_CONFIG);
    let json = fs::read(&path).map_err(io_error("read", &path))?;
    serde_json::from_slice(&json)
        .map_err(|error| Error::Invalid { field: WRITER_CONFIG, message: error.to_string() })
}
