//! Plugins that come and go: each has a socket below `<root>/plugins_registry`, over which it is asked what it is.
//!
//! The directory is looked at every second. CSI drivers go to [`crate::csi`], drivers of dynamic resource allocation to
//! [`crate::dra`]; any other kind is told that nobody is there for it.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::csi::{Csi, registration as csi_registration};
use crate::dra::Dra;
use crate::sockets::connect;
use proto::registration_client::RegistrationClient;
use proto::{InfoRequest, PluginInfo, RegistrationStatus};

/// The generated code of `proto/plugin_registration.proto`.
#[expect(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated")]
pub mod proto {
    tonic::include_proto!("pluginregistration");
}

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Plugins of one node, more than any has; sockets beyond are passed over.
const MAX_PLUGINS: usize = 256;

/// Who takes plugins.
pub(crate) struct Plugins {
    pub(crate) dir: PathBuf,
    pub(crate) csi: Csi,
    pub(crate) dra: Dra,
}

/// A plugin that was taken.
#[derive(Clone, Debug)]
enum Taken {
    Csi {
        driver: String,
    },
    Dra {
        driver: String,
        endpoint: PathBuf,
    },
    /// Nobody is there for its kind.
    No,
}

/// Sockets that were seen, with what tells one from another at the same path, and the plugin behind it.
type Known = BTreeMap<PathBuf, (u64, Taken)>;

impl Plugins {
    /// Follows plugins until the token is cancelled.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut known = Known::new();
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => self.look(&mut known).await,
            }
        }
    }

    async fn look(&self, known: &mut Known) {
        let found = sockets(&self.dir);
        let is_gone = |(path, (inode, _)): &(&PathBuf, &(u64, Taken))| found.get(*path) != Some(inode);
        let gone: Vec<PathBuf> = known.iter().filter(is_gone).map(|(path, _)| path.clone()).collect();
        for path in gone {
            match known.remove(&path) {
                // Another socket in its place is taken next, and enters the driver anew.
                Some((_, Taken::Csi { driver })) if !found.contains_key(&path) => {
                    csi_registration::remove_driver(&self.csi, &driver).await;
                }
                Some((_, Taken::Dra { driver, endpoint })) => self.dra.remove_driver(&driver, &endpoint),
                _ => {}
            }
        }
        for (path, inode) in found {
            if known.contains_key(&path) {
                continue;
            }
            match self.register(&path).await {
                Ok(taken) => {
                    known.insert(path, (inode, taken));
                }
                Err(error) => {
                    warn!(socket = %path.display(), error, "plugin was not registered, trying again")
                }
            }
        }
    }

    /// Asks a plugin what it is, and tells it what became of that.
    async fn register(&self, socket: &Path) -> Result<Taken, String> {
        let channel = connect(socket.to_owned()).await.map_err(|error| error.to_string())?;
        let mut plugin = RegistrationClient::new(channel);
        let info = within(plugin.get_info(InfoRequest {})).await?;
        let taken = self.take(&info).await;
        let error = match &taken {
            Ok(Taken::No) => format!("no handler registered for plugin type: {}", info.r#type),
            Ok(_) => String::new(),
            Err(error) => error.clone(),
        };
        let status = RegistrationStatus { plugin_registered: error.is_empty(), error };
        within(plugin.notify_registration_status(status)).await?;
        taken
    }

    async fn take(&self, info: &PluginInfo) -> Result<Taken, String> {
        let driver = info.name.clone();
        match info.r#type.as_str() {
            "CSIPlugin" => {
                csi_registration::enter_driver(&self.csi, info).await?;
                Ok(Taken::Csi { driver })
            }
            "DRAPlugin" => {
                let endpoint = PathBuf::from(info.endpoint.trim_start_matches("unix://"));
                self.dra.add_driver(&driver, endpoint.clone(), &info.supported_versions)?;
                Ok(Taken::Dra { driver, endpoint })
            }
            _ => Ok(Taken::No),
        }
    }
}

fn sockets(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sockets = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        meta.file_type().is_socket().then(|| (entry.path(), meta.ino()))
    });
    sockets.take(MAX_PLUGINS).collect()
}

async fn within<T>(
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(status.to_string()),
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    }
}
