//! `bench program`: how fast the kernel hears of what changes, from the objects to the first right connection.
//!
//! A change is measured as the agent makes it: one object is new, what there is of its service is handed to
//! [`Proxy::sync_services`], and a client that connects afterwards must be answered by the new backend. Each size runs in a process of
//! its own, so that resident memory is that size's.

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hawser_proxy::{Config, Proxy, ServiceObjects};
use hawser_services::{Directory, EndpointSlice, Key, Service};
use serde_json::json;

use crate::{
    lab::{self, Cluster, Machine, Place},
    measure::{Spread, Watchdog},
    memory,
    objects::{self, Port, Spec, TCP_PORT},
    report::{Format, Record},
};

const TARGET_PORT: u16 = 8080;
const ENDPOINTS: u32 = 4;
/// Cold starts of one size.
const STARTS: usize = 3;
/// Changes of one endpoint that are measured.
const CHANGES: usize = 200;
/// Changes a second of other services, and for how long.
const BUSY_RATE: u32 = 100;
const BUSY_SECONDS: u32 = 3;

/// Runs every size in a child process.
pub(crate) fn run(services: &[u32], format: Format) -> Result<()> {
    for count in services {
        let mut command = Command::new("/proc/self/exe");
        command.args(["program-of", "--services", &count.to_string()]);
        if format == Format::Json {
            command.arg("--json");
        }
        let status = command.status().context("start a process of its own")?;
        ensure!(status.success(), "{count} services: {status}");
        Watchdog::pat();
    }
    Ok(())
}

/// Measures one size.
pub(crate) fn run_size(machine: &Machine, services: u32, format: Format) -> Result<()> {
    let cluster = Cluster::new()?;
    let mut bench = Bench::new(machine, &cluster, services, format)?;
    let listeners: Vec<TcpListener> = bench.backends()?;
    thread::scope(|scope| {
        for (listener, address) in listeners.iter().zip(lab::BACKENDS) {
            // Ends with the process, or when the listener is shut down.
            scope.spawn(move || serve(listener, address));
        }
        let outcome = bench.measure();
        for listener in &listeners {
            crate::load::stop_accepting(listener);
        }
        outcome
    })
}

fn serve(listener: &TcpListener, address: Ipv4Addr) {
    while let Ok((mut stream, _)) = listener.accept() {
        let _ = std::io::Write::write_all(&mut stream, &address.octets());
    }
}

struct Bench<'a> {
    node: Place<'a>,
    client: Place<'a>,
    backend: Place<'a>,
    config: Config,
    bpffs: PathBuf,
    count: u32,
    format: Format,
    /// As the agent has them, for their memory; what changes is passed to the proxy alone.
    _directory: Directory,
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
    /// The measured service: the last.
    measured: Spec,
    /// Resident memory before there were objects, and with them.
    resident: [u64; 2],
}

impl<'a> Bench<'a> {
    fn new(machine: &'a Machine, cluster: &'a Cluster, count: u32, format: Format) -> Result<Self> {
        let before = memory::resident()?;
        let mut specs = objects::specs(count, ENDPOINTS, TARGET_PORT);
        let measured = specs.last_mut().context("no services")?;
        measured.ports = vec![Port::new("tcp", "TCP", TCP_PORT, TARGET_PORT)];
        measured.endpoints.truncate(1);
        let measured = measured.clone();
        let directory = Directory::default();
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        for spec in &specs {
            directory.put_service(&objects::api_service(spec));
            directory.put_slice(&objects::api_slice(spec));
            let key = Key::new("default", &spec.name);
            services.extend(directory.get(&key));
            slices.extend(directory.slices(&key));
        }
        drop(specs);
        let cgroup = machine.node_cgroup("hawser")?;
        let bpffs = machine.bpffs("hawser")?;
        let mut config = Config::new(bpffs.clone(), cgroup.clone(), "node-a".to_owned());
        config.uplinks = vec!["up0".to_owned(), "up1".to_owned()];
        config.node_addresses = vec![lab::NODE.into()];
        // The proxy keeps the path for as long as the process runs.
        let cgroup: &'static std::path::Path = Box::leak(cgroup.into_boxed_path());
        Ok(Self {
            node: Place { namespace: &cluster.node, cgroup: machine.unserved() },
            client: Place { namespace: &cluster.client, cgroup },
            backend: Place { namespace: &cluster.backend, cgroup },
            config,
            bpffs,
            count,
            format,
            _directory: directory,
            services,
            slices,
            measured,
            resident: [before, memory::resident()?],
        })
    }

    fn backends(&self) -> Result<Vec<TcpListener>> {
        let bind = |address| self.backend.run(|| TcpListener::bind((address, TARGET_PORT)));
        lab::BACKENDS.into_iter().map(|address| bind(address).context("listen")).collect()
    }

    fn measure(&mut self) -> Result<()> {
        let mut proxy = self.cold_starts()?;
        self.memory()?;
        self.restart(&mut proxy)?;
        self.one_change(&mut proxy)?;
        self.local_change(&mut proxy)?;
        self.busy(&mut proxy)?;
        self.large_services(&mut proxy)?;
        drop(proxy);
        Proxy::remove_all(&self.bpffs)?;
        Ok(())
    }

    /// From nothing: programs loaded and attached, maps made and filled, and a connection that reaches its backend.
    fn cold_starts(&self) -> Result<Proxy> {
        let (mut total, mut sync) = (Vec::new(), Vec::new());
        let mut last = None;
        for _ in 0..STARTS {
            drop(last.take());
            Proxy::remove_all(&self.bpffs)?;
            let started = Instant::now();
            let mut proxy = self.start()?;
            let synced = Instant::now();
            proxy.sync(&self.services, &self.slices, &[])?;
            sync.push(synced.elapsed());
            self.expect(lab::BACKENDS[0])?;
            total.push(started.elapsed());
            last = Some(proxy);
        }
        self.print("cold_start", "total", &total);
        self.print("cold_start", "sync", &sync);
        last.context("no start")
    }

    /// The same with everything in the kernel already, as after an upgrade.
    fn restart(&self, proxy: &mut Proxy) -> Result<()> {
        let started = Instant::now();
        *proxy = self.start()?;
        let report = proxy.sync(&self.services, &self.slices, &[])?;
        self.print("restart", "total", &[started.elapsed()]);
        ensure!(report.frontends_written == 0, "a restart wrote {} frontends", report.frontends_written);
        Ok(())
    }

    /// One endpoint of one service changes, and nothing else happens.
    fn one_change(&mut self, proxy: &mut Proxy) -> Result<()> {
        let (mut total, mut sync) = (Vec::new(), Vec::new());
        for change in 0..CHANGES {
            let address = lab::BACKENDS[(change + 1) % 2];
            let slice = self.moved_to(address);
            let started = Instant::now();
            self.replace_last(slice);
            proxy
                .sync_services(vec![objects_of(&self.services, &self.slices, self.slices.len() - 1)], &[])?;
            sync.push(started.elapsed());
            self.expect(address)?;
            total.push(started.elapsed());
            Watchdog::pat();
        }
        self.print("endpoint_change", "total", &total);
        self.print("endpoint_change", "sync", &sync);
        Ok(())
    }

    /// One pod of this node becomes ready, or stops to be.
    fn local_change(&mut self, proxy: &mut Proxy) -> Result<()> {
        let mut both = self.measured.clone();
        both.endpoints = lab::BACKENDS.to_vec();
        self.replace_last(objects::slice(&both));
        proxy.sync(&self.services, &self.slices, &[])?;
        let mut times = Vec::new();
        for change in 0..CHANGES {
            let started = Instant::now();
            proxy.local_endpoint_changed(lab::BACKENDS[1].into(), change % 2 == 1)?;
            times.push(started.elapsed());
        }
        self.replace_last(self.moved_to(lab::BACKENDS[0]));
        proxy.sync(&self.services, &self.slices, &[])?;
        self.print("local_change", "kernel", &times);
        Ok(())
    }

    /// Other services change all the time. As in the agent, what comes while a sync runs is in the next one.
    fn busy(&mut self, proxy: &mut Proxy) -> Result<()> {
        // Bounded by the length of the run: three seconds of events.
        let (events, pending) = mpsc::sync_channel::<Instant>((BUSY_RATE * BUSY_SECONDS) as usize);
        let producer = thread::spawn(move || {
            let started = Instant::now();
            for event in 0..BUSY_RATE * BUSY_SECONDS {
                let due = started + Duration::from_secs(1) * event / BUSY_RATE;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if events.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        let mut times = Vec::new();
        let mut next = 0;
        while let Ok(first) = pending.recv() {
            let happened: Vec<Instant> = std::iter::once(first).chain(pending.try_iter()).collect();
            let mut changed = BTreeSet::new();
            for _ in &happened {
                // Any step that is coprime to the number of services visits them all.
                next = (next + 7919) % (self.slices.len() - 1);
                let mut slice = (*self.slices[next]).clone();
                if let [first, _, ..] = &mut *slice.endpoints {
                    let number = next as u32 * objects::MAX_ENDPOINTS + times.len() as u32 % 4 + 4;
                    first.address = objects::nowhere(number).into();
                }
                self.slices[next] = Arc::new(slice);
                changed.insert(next);
            }
            let changed = changed.into_iter().map(|index| objects_of(&self.services, &self.slices, index));
            proxy.sync_services(changed.collect(), &[])?;
            times.extend(happened.into_iter().map(|event| event.elapsed()));
        }
        if producer.join().is_err() {
            bail!("the producer of events panicked");
        }
        self.expect(lab::BACKENDS[0])?;
        self.print("endpoint_change_busy", "sync", &times);
        Ok(())
    }

    /// One service with very many endpoints, and one with very many ports, beside all the others.
    fn large_services(&mut self, proxy: &mut Proxy) -> Result<()> {
        let endpoints: Vec<Ipv4Addr> =
            (0..5000).map(|n| objects::nowhere(n + objects::MAX_SERVICES * objects::MAX_ENDPOINTS)).collect();
        let ports: Vec<Port> =
            (0..400).map(|n| Port::new(&format!("p{n}"), "TCP", 1000 + n, 8000 + n)).collect();
        let spec = |name: &str, number, ports: &[Port], endpoints: &[Ipv4Addr]| Spec {
            name: name.to_owned(),
            address: objects::service_address(objects::MAX_SERVICES + number),
            ports: ports.to_vec(),
            endpoints: endpoints.to_vec(),
        };
        let many_endpoints = spec("many-endpoints", 1, &[Port::new("tcp", "TCP", 80, 8080)], &endpoints);
        let many_ports = spec("many-ports", 2, &ports, &endpoints[..4]);
        for (case, spec) in [("5000_endpoints", many_endpoints), ("400_ports", many_ports)] {
            let (mut services, mut slices) = (self.services.clone(), self.slices.clone());
            services.push(objects::service(&spec));
            slices.push(objects::slice(&spec));
            let started = Instant::now();
            let report = proxy.sync(&services, &slices, &[])?;
            self.print(case, "first_sync", &[started.elapsed()]);
            ensure!(report.skipped.is_empty(), "{case}: {:?}", report.skipped);
            let mut times = Vec::new();
            for change in 0..20 {
                let mut changed = spec.clone();
                changed.endpoints[0] =
                    objects::nowhere(objects::MAX_SERVICES * objects::MAX_ENDPOINTS + 6000 + change % 2);
                if let Some(last) = slices.last_mut() {
                    *last = objects::slice(&changed);
                }
                let started = Instant::now();
                proxy.sync_services(vec![objects_of(&services, &slices, slices.len() - 1)], &[])?;
                times.push(started.elapsed());
            }
            self.print(case, "change", &times);
            Watchdog::pat();
        }
        Ok(())
    }

    fn memory(&self) -> Result<()> {
        let [before, with_objects] = self.resident;
        let now = memory::resident()?;
        let values = [
            ("objects", with_objects - before),
            ("proxy", now.saturating_sub(with_objects)),
            ("resident", now),
            ("maps", memory::maps(&self.bpffs)?),
        ];
        for (metric, bytes) in values {
            let mib = bytes as f64 / f64::from(1 << 20);
            let spread = Spread { median: mib, low: mib, high: mib };
            self.record("memory", metric, "MiB", spread).print(self.format);
        }
        Ok(())
    }

    fn start(&self) -> Result<Proxy> {
        self.node.run(|| Proxy::start(self.config.clone())).context("start the proxy")
    }

    /// The measured service's slice, with one endpoint.
    fn moved_to(&self, address: Ipv4Addr) -> Arc<EndpointSlice> {
        let mut spec = self.measured.clone();
        spec.endpoints = vec![address];
        objects::slice(&spec)
    }

    fn replace_last(&mut self, slice: Arc<EndpointSlice>) {
        if let Some(last) = self.slices.last_mut() {
            *last = slice;
        }
    }

    /// Connects to the measured service; `address` must answer.
    fn expect(&self, address: Ipv4Addr) -> Result<()> {
        let service = SocketAddr::new(self.measured.address.into(), TCP_PORT);
        let found = self.client.run(|| -> Result<[u8; 4]> {
            let mut stream = TcpStream::connect(service).context("connect")?;
            let mut found = [0; 4];
            stream.read_exact(&mut found)?;
            Ok(found)
        })?;
        ensure!(found == address.octets(), "{} answers, not {address}", Ipv4Addr::from(found));
        Ok(())
    }

    /// Prints p50 and p99 of more than a few times, and the median of few.
    fn print(&self, case: &'static str, what: &str, times: &[Duration]) {
        let ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        let Some(spread) = Spread::of(ms.iter().copied()) else { return };
        if ms.len() < 20 {
            self.record(case, what, "ms", spread).print(self.format);
            return;
        }
        let mut sorted = ms;
        sorted.sort_by(f64::total_cmp);
        let p99 = sorted[(sorted.len() - 1) * 99 / 100];
        self.record(case, &format!("{what}_p50"), "ms", spread).print(self.format);
        let at_p99 = Spread { median: p99, ..spread };
        self.record(case, &format!("{what}_p99"), "ms", at_p99).print(self.format);
    }

    fn record<'r>(&self, case: &'r str, metric: &'r str, unit: &'r str, spread: Spread) -> Record<'r> {
        Record { case, labels: vec![("services", json!(self.count))], metric, unit, spread, cpu: None }
    }
}

/// What the agent passes of one service that has changed. Each service has one slice, at the same place.
fn objects_of(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>], index: usize) -> ServiceObjects {
    ServiceObjects {
        key: services[index].key.clone(),
        service: Some(services[index].clone()),
        slices: vec![slices[index].clone()],
    }
}
