//! Plugins that come and go: each has a socket below `<root>/plugins_registry`, over which it is asked what it is.
//!
//! The directory is looked at every second. Each socket is followed by a task of its own, so that a plugin which does not
//! answer holds up no other; what fails is tried again with back-off. CSI drivers go to [`crate::csi`], drivers of dynamic
//! resource allocation to [`crate::dra`]; any other kind is told that nobody is there for it.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::csi::{Csi, registration as csi_registration};
use crate::dra::Dra;
use crate::sockets::{connect, within};
use proto::registration_client::RegistrationClient;
use proto::{InfoRequest, PluginInfo, RegistrationStatus};

/// The generated code of `proto/plugin_registration.proto`.
#[expect(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated")]
pub mod proto {
    tonic::include_proto!("pluginregistration");
}

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Upstream's back-off.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(122);
/// Plugins of one node, more than any has; sockets beyond are passed over until others are gone.
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

/// Who follows one socket.
struct Follower {
    /// Tells the socket from another one at the same path; `None` once it is gone.
    inode: watch::Sender<Option<u64>>,
    task: AbortOnDropHandle<()>,
}

impl Plugins {
    /// Follows plugins until the token is cancelled.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let plugins = Arc::new(self);
        let mut followers = BTreeMap::new();
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => plugins.look(&mut followers),
            }
        }
    }

    fn look(self: &Arc<Self>, followers: &mut BTreeMap<PathBuf, Follower>) {
        followers.retain(|_, follower| !follower.task.is_finished());
        let found = sockets(&self.dir);
        for (path, follower) in followers.iter() {
            let inode = found.get(path).copied();
            // One that is gone stays so until its task has ended; what has come in its place is followed after that.
            follower
                .inode
                .send_if_modified(|known| known.is_some() && std::mem::replace(known, inode) != inode);
        }
        for (path, inode) in found {
            if followers.len() >= MAX_PLUGINS || followers.contains_key(&path) {
                continue;
            }
            let (inode, changes) = watch::channel(Some(inode));
            let task = tokio::spawn(self.clone().follow(path.clone(), changes));
            followers.insert(path, Follower { inode, task: AbortOnDropHandle::new(task) });
        }
    }

    /// Registers what is behind the socket, and what takes its place, until it is gone.
    async fn follow(self: Arc<Self>, socket: PathBuf, mut inode: watch::Receiver<Option<u64>>) {
        let mut taken = None;
        loop {
            let is_there = inode.borrow_and_update().is_some();
            match taken.take() {
                // Another socket in its place enters the driver anew.
                Some(Taken::Csi { driver }) if !is_there => {
                    csi_registration::remove_driver(&self.csi, &driver).await;
                }
                Some(Taken::Dra { driver, endpoint }) => self.dra.remove_driver(&driver, &endpoint),
                _ => {}
            }
            if !is_there {
                return;
            }
            let registered = async {
                self.register(&socket, &mut taken).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = registered => {}
                changed = inode.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Returns once the plugin has heard that it is taken. What `taken` holds when this is cut short is to be undone.
    async fn register(&self, socket: &Path, taken: &mut Option<Taken>) {
        let mut delay = RETRY_FIRST;
        while let Err(error) = self.try_register(socket, taken).await {
            warn!(socket = %socket.display(), error, ?delay, "plugin was not registered, trying again");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_LAST);
        }
    }

    /// Asks a plugin what it is, and tells it what became of that.
    async fn try_register(&self, socket: &Path, taken: &mut Option<Taken>) -> Result<(), String> {
        let channel = connect(socket.to_owned()).await.map_err(|error| error.to_string())?;
        let mut plugin = RegistrationClient::new(channel);
        let info = within(TIMEOUT, plugin.get_info(InfoRequest {})).await?;
        // One that was taken, and did not hear of it, is told once more.
        let outcome = match taken {
            Some(_) => Ok(()),
            None => self.take(&info, taken).await,
        };
        let error = match (&outcome, &taken) {
            (Err(error), _) => error.clone(),
            (Ok(()), Some(Taken::No)) => format!("no handler registered for plugin type: {}", info.r#type),
            (Ok(()), _) => String::new(),
        };
        let status = RegistrationStatus { plugin_registered: error.is_empty(), error };
        within(TIMEOUT, plugin.notify_registration_status(status)).await?;
        outcome
    }

    async fn take(&self, info: &PluginInfo, taken: &mut Option<Taken>) -> Result<(), String> {
        let driver = info.name.clone();
        match info.r#type.as_str() {
            "CSIPlugin" => {
                // Before it is entered: that may be cut short half-way.
                *taken = Some(Taken::Csi { driver });
                let entered = csi_registration::enter_driver(&self.csi, info).await;
                if entered.is_err() {
                    *taken = None;
                }
                entered
            }
            "DRAPlugin" => {
                let endpoint = PathBuf::from(info.endpoint.trim_start_matches("unix://"));
                self.dra.add_driver(&driver, endpoint.clone(), &info.supported_versions)?;
                *taken = Some(Taken::Dra { driver, endpoint });
                Ok(())
            }
            _ => {
                *taken = Some(Taken::No);
                Ok(())
            }
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
