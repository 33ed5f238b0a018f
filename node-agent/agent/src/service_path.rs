//! The thread that owns the service proxy.
//!
//! Kernel writes block, so the proxy lives on a thread of its own. What it has to do is merged while it works: any
//! number of changes of a service and its slices are one, each pod has one newest readiness. News of the node's own
//! pods goes first. A failed sync is repeated after a second, and whenever something changes.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use hawser_kubelet::{LocalEndpoints, LocalPod};
use hawser_proxy::{Config, HostPort, Proxy, ServiceObjects, Skipped, SyncReport};
use hawser_services::{Change, Directory, Key};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::metrics::Metrics;

const RETRY: Duration = Duration::from_secs(1);
/// How often clients whose affinity has ended are forgotten.
const SWEEP: Duration = Duration::from_secs(60);

/// The way to the thread. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ServicePath {
    shared: Arc<Shared>,
    metrics: Metrics,
    /// What the last sync left out: latest wins.
    skipped: watch::Sender<Vec<Skipped>>,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
    /// Set once the caches and the node's own pods are known: a sync before would remove what is merely unheard of.
    is_open: AtomicBool,
    on_open: Notify,
}

/// What is to be done; bounded by the node's pods and the cluster's services.
#[derive(Default)]
struct Pending {
    sync: bool,
    /// The sync looks at all services, not at those that are named alone.
    all: bool,
    services: HashSet<Key>,
    readiness: HashMap<IpAddr, bool>,
    attach: HashMap<u32, PodLink>,
    detach: HashSet<u32>,
    host_ports: Vec<HostPort>,
    /// The node's zone, where it may have changed.
    zone: Option<Option<String>>,
    stop: bool,
}

/// What a pod's interface leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodLink {
    /// Link-layer address of the pod's own end.
    pub(crate) mac: [u8; 6],
    pub(crate) ips: Vec<IpAddr>,
    /// The pod's network namespace, where its sockets are to be left alone.
    pub(crate) unserved_netns: Option<PathBuf>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        !self.sync
            && self.readiness.is_empty()
            && self.attach.is_empty()
            && self.detach.is_empty()
            && self.zone.is_none()
            && !self.stop
    }
}

impl ServicePath {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { shared: Arc::default(), metrics, skipped: watch::Sender::default() }
    }

    /// What the API asks for and the node does not do, as of each sync.
    pub(crate) fn skipped(&self) -> watch::Receiver<Vec<Skipped>> {
        self.skipped.subscribe()
    }

    /// Loads or adopts the datapath and starts to follow the caches. To be called in the node's network
    /// namespace. Syncs wait for [`ServicePath::open`], so that an agent that starts removes nothing.
    ///
    /// What is returned resolves when the thread has ended, also by a panic.
    pub(crate) fn start(
        &self,
        config: Config,
        services: &Directory,
    ) -> anyhow::Result<oneshot::Receiver<()>> {
        let proxy = Proxy::start(config).context("the service path cannot be set up")?;
        let wake = self.clone();
        services.on_change(move |key, change| {
            match change {
                Change::Service { .. } => wake.metrics.service_changed(),
                Change::Slice { trigger_time } => {
                    wake.metrics.endpoints_changed(trigger_time.and_then(|text| text.parse().ok()));
                }
            }
            wake.service_changed(key);
        });
        let worker = Worker {
            proxy,
            path: self.clone(),
            services: services.clone(),
            unserved: HashMap::new(),
            opted_out: None,
        };
        let (running, ended) = oneshot::channel();
        let work = move || {
            // Dropped when the thread ends, however it does.
            let _running = running;
            worker.run();
        };
        let thread = thread::Builder::new().name("service-path".into()).spawn(work);
        thread.context("cannot start the service path's thread")?;
        Ok(ended)
    }

    /// Lets syncs through: the caches are complete, and the node's own pods are known.
    pub(crate) fn open(&self) {
        self.shared.is_open.store(true, Ordering::Release);
        self.shared.on_open.notify_waiters();
        self.metrics.queued();
        self.change(|pending| {
            pending.all = true;
            pending.sync = true;
        });
    }

    /// Waits until syncs are let through.
    pub(crate) async fn opened(&self) {
        loop {
            let notified = self.shared.on_open.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.shared.is_open.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }

    /// Until the path is open nothing is noted: its opening looks at all services.
    fn service_changed(&self, key: &Key) {
        if self.shared.is_open.load(Ordering::Acquire) {
            self.change(|pending| {
                pending.services.insert(key.clone());
                pending.sync = true;
            });
        }
    }

    pub(crate) fn attach_pod(&self, ifindex: u32, link: PodLink) {
        self.change(|pending| {
            pending.detach.remove(&ifindex);
            pending.attach.insert(ifindex, link);
        });
    }

    pub(crate) fn detach_pod(&self, ifindex: u32) {
        self.change(|pending| {
            pending.attach.remove(&ifindex);
            pending.detach.insert(ifindex);
        });
    }

    pub(crate) fn set_host_ports(&self, host_ports: Vec<HostPort>) {
        self.change(|pending| {
            if pending.host_ports != host_ports {
                pending.host_ports = host_ports;
                pending.sync = true;
            }
        });
    }

    /// Takes the node's zone, for services whose endpoints have hints.
    pub(crate) fn set_zone(&self, zone: Option<String>) {
        self.change(|pending| pending.zone = Some(zone));
    }

    pub(crate) fn stop(&self) {
        self.change(|pending| pending.stop = true);
    }

    fn change(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.shared.pending.lock());
        self.shared.wake.notify_one();
    }

    fn set_ready(&self, pod: &LocalPod, ready: bool) {
        self.change(|pending| {
            for ip in &pod.ips {
                pending.readiness.insert(*ip, ready);
            }
        });
    }
}

impl LocalEndpoints for ServicePath {
    fn pod_ready(&self, pod: &LocalPod, ready: bool) {
        self.set_ready(pod, ready);
    }

    fn pod_terminating(&self, pod: &LocalPod) {
        self.set_ready(pod, false);
    }
}

struct Worker {
    proxy: Proxy,
    path: ServicePath,
    services: Directory,
    /// Cookies of the network namespaces whose sockets are left alone, by the interface of their pod.
    unserved: HashMap<u32, u64>,
    /// What of it the kernel knows; `None` before it was told.
    opted_out: Option<HashMap<u32, u64>>,
}

impl Worker {
    fn run(mut self) {
        let mut failed = false;
        let mut swept = Instant::now();
        loop {
            let work = self.next(failed);
            if work.stop {
                return;
            }
            for (ip, ready) in work.readiness {
                debug!(%ip, ready, "a pod of this node");
                match self.proxy.local_endpoint_changed(ip, ready) {
                    Ok(report) => self.tell_skipped(report),
                    Err(error) => {
                        error!(%ip, ready, error = &error as &dyn std::error::Error, "readiness did not reach the kernel");
                        failed = true;
                    }
                }
            }
            match work.zone.map(|zone| self.proxy.set_zone(zone)).transpose() {
                Ok(report) => self.tell_skipped(report.flatten()),
                Err(error) => {
                    error!(
                        error = &error as &dyn std::error::Error,
                        "the node's zone did not reach the kernel"
                    );
                    failed = true;
                }
            }
            for (ifindex, link) in work.attach {
                if let Err(error) = self.attach(ifindex, &link) {
                    error!(ifindex, error = &error as &dyn std::error::Error, "pod link has no packet path");
                }
            }
            for ifindex in work.detach {
                self.unserved.remove(&ifindex);
                if let Err(error) = self.proxy.detach_pod_interface(ifindex) {
                    warn!(
                        ifindex,
                        error = &error as &dyn std::error::Error,
                        "packet path of a pod that is gone"
                    );
                }
            }
            // What an earlier run left stays until the node's own pods are known again.
            let is_open = self.path.shared.is_open.load(Ordering::Acquire);
            if is_open && self.opted_out.as_ref() != Some(&self.unserved) {
                match self.proxy.set_opted_out(&self.unserved.values().copied().collect()) {
                    Ok(()) => self.opted_out = Some(self.unserved.clone()),
                    Err(error) => {
                        error!(
                            error = &error as &dyn std::error::Error,
                            "the kernel does not know which pods' sockets to leave alone"
                        );
                        failed = true;
                    }
                }
            }
            if work.sync || failed {
                failed = !self.sync(work.all, &work.services, &work.host_ports);
            }
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                if let Err(error) = self.proxy.sweep_affinity() {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "clients whose affinity has ended stay for now"
                    );
                }
            }
        }
    }

    fn attach(&mut self, ifindex: u32, link: &PodLink) -> Result<(), hawser_proxy::Error> {
        if !self.proxy.attach_pod(ifindex, Some(link.mac), &link.ips)? {
            debug!(ifindex, "no short way to this kind of interface: the host's routes lead to it");
        }
        let cookie = link.unserved_netns.as_deref().map(hawser_proxy::netns_cookie).transpose();
        match cookie {
            Ok(Some(cookie)) => _ = self.unserved.insert(ifindex, cookie),
            Ok(None) => _ = self.unserved.remove(&ifindex),
            Err(error) => error!(
                ifindex,
                error = &error as &dyn std::error::Error,
                "a pod's sockets are translated, although it asks to be left alone"
            ),
        }
        Ok(())
    }

    /// Waits for work, at most as long as until the next sweep, or after a failure until the next try.
    fn next(&self, failed: bool) -> Pending {
        let shared = &self.path.shared;
        let mut pending = shared.pending.lock();
        while pending.is_empty() {
            if shared.wake.wait_for(&mut pending, if failed { RETRY } else { SWEEP }).timed_out() {
                break;
            }
        }
        let kept = pending.host_ports.clone();
        std::mem::replace(&mut *pending, Pending { host_ports: kept, ..Pending::default() })
    }

    /// True where the kernel now holds what the caches say, or they are not complete yet.
    fn sync(&mut self, all: bool, changed: &HashSet<Key>, host_ports: &[HostPort]) -> bool {
        if !self.path.shared.is_open.load(Ordering::Acquire) {
            return true;
        }
        let (pending, begin) = (self.path.metrics.sync_begins(), Instant::now());
        let outcome = if all {
            self.proxy.sync(&self.services.filter(|_| true), &self.services.all_slices(), host_ports)
        } else {
            let objects = changed.iter().map(|key| ServiceObjects {
                key: key.clone(),
                service: self.services.get(key),
                slices: self.services.slices(key),
            });
            self.proxy.sync_services(objects.collect(), host_ports)
        };
        match outcome {
            Ok(report) => {
                self.path.metrics.synced(pending, begin.elapsed(), &report.skipped);
                let (written, removed) = (report.frontends_written, report.frontends_removed);
                if all {
                    info!(frontends = report.frontends, written, removed, "service path is in step");
                } else {
                    debug!(frontends = report.frontends, written, removed, "service path is in step");
                }
                self.tell_skipped(Some(report));
                true
            }
            Err(error) => {
                self.path.metrics.sync_failed(pending);
                error!(error = &error as &dyn std::error::Error, "sync of the service path failed");
                false
            }
        }
    }

    /// Passes on what a report says of ports that are not served; without a report nothing has changed.
    fn tell_skipped(&self, report: Option<SyncReport>) {
        let Some(SyncReport { skipped, .. }) = report else { return };
        self.path.skipped.send_if_modified(|known| {
            let is_new = *known != skipped;
            *known = skipped;
            is_new
        });
    }
}
