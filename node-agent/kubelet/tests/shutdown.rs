//! Graceful node shutdown, with a system bus and a logind of the test's own.

mod common;

use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{Node, container, spec, uid};
use hawser_kubelet::shutdown::logind::Places;
use hawser_kubelet::shutdown::message::{Kind, Message, Value, decode, encode, length};
use hawser_kubelet::shutdown::plan::Graces;
use hawser_runtime::ContainerState;
use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use parking_lot::Mutex;

/// The connection of the one that is logind.
const LOGIND: &str = ":1.2";

#[derive(Clone)]
struct FakeBus(Arc<State>);

struct State {
    _dir: tempfile::TempDir,
    places: Places,
    /// `PreparingForShutdown`
    goes_down: Mutex<bool>,
    /// `InhibitDelayMaxUSec`
    delay_us: Mutex<u64>,
    calls: Mutex<Vec<String>>,
    clients: Mutex<Vec<UnixStream>>,
    /// Our ends of what was given out as inhibitors.
    inhibitors: Mutex<Vec<UnixStream>>,
}

impl FakeBus {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let places = Places { bus: at("bus.sock"), logind_conf: at("logind.conf.d") };
        let listener = UnixListener::bind(&places.bus).expect("bound");
        let bus = Self(Arc::new(State {
            _dir: dir,
            places,
            goes_down: Mutex::default(),
            delay_us: Mutex::new(1_000_000),
            calls: Mutex::default(),
            clients: Mutex::default(),
            inhibitors: Mutex::default(),
        }));
        let serving = bus.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let bus = serving.clone();
                std::thread::spawn(move || bus.serve(stream));
            }
        });
        bus
    }

    /// Until the client is gone.
    fn serve(&self, mut stream: UnixStream) -> Option<()> {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        for (word, answer) in
            [("AUTH EXTERNAL ", "OK 1234\r\n"), ("NEGOTIATE_UNIX_FD", "AGREE_UNIX_FD\r\n"), ("BEGIN", "")]
        {
            let mut line = String::new();
            while !line.ends_with("\r\n") {
                stream.read_exact(&mut byte).ok()?;
                line.push(char::from(byte[0]));
            }
            assert!(line.starts_with(word), "{line:?}");
            stream.write_all(answer.as_bytes()).ok()?;
        }
        self.0.clients.lock().push(stream.try_clone().ok()?);
        loop {
            let mut bytes = vec![0; 16];
            stream.read_exact(&mut bytes).ok()?;
            let whole = length(&bytes).expect("a message").expect("its length").whole;
            bytes.resize(whole, 0);
            stream.read_exact(&mut bytes[16..]).ok()?;
            self.answer(&stream, &decode(&bytes).expect("a message"));
        }
    }

    fn answer(&self, stream: &UnixStream, call: &Message) {
        self.0.calls.lock().push(call.member.clone());
        let mut answer =
            Message { kind: Kind::Return, serial: 1, reply_serial: Some(call.serial), ..Message::default() };
        let mut given = None;
        match call.member.as_str() {
            "Hello" => answer.body = vec![Value::Text(":1.5".into())],
            "GetNameOwner" => answer.body = vec![Value::Text(LOGIND.into())],
            "AddMatch" => {
                let told = Message {
                    kind: Kind::Signal,
                    serial: 2,
                    path: "/org/freedesktop/DBus".into(),
                    interface: "org.freedesktop.DBus".into(),
                    member: "NameAcquired".into(),
                    sender: "org.freedesktop.DBus".into(),
                    body: vec![Value::Text(":1.5".into())],
                    ..Message::default()
                };
                send(stream, &told, None);
            }
            "Get" => {
                let value = match &call.body[1] {
                    Value::Text(name) if name == "PreparingForShutdown" => {
                        Value::Bool(*self.0.goes_down.lock())
                    }
                    _ => Value::U64(*self.0.delay_us.lock()),
                };
                answer.body = vec![Value::Variant(Box::new(value))];
            }
            "KillUnit" => {
                let conf = self.0.places.logind_conf.join("99-kubelet.conf");
                let text = std::fs::read_to_string(conf).expect("written");
                let seconds =
                    text.lines().find_map(|line| line.strip_prefix("InhibitDelayMaxSec=")).expect("told");
                *self.0.delay_us.lock() = seconds.parse::<u64>().expect("seconds") * 1_000_000;
            }
            "Inhibit" => {
                let texts = ["shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay"];
                assert_eq!(call.body, texts.map(|text| Value::Text(text.into())));
                let (ours, theirs) = UnixStream::pair().expect("a pair");
                ours.set_nonblocking(true).expect("set");
                self.0.inhibitors.lock().push(ours);
                (answer.body, answer.fds) = (vec![Value::Fd(0)], 1);
                given = Some(theirs);
            }
            other => panic!("{other} is not called"),
        }
        send(stream, &answer, given);
    }

    fn prepare_for_shutdown(&self, begins: bool) {
        *self.0.goes_down.lock() = begins;
        self.signal(LOGIND, begins, None);
    }

    /// What looks like logind's signal.
    fn signal(&self, sender: &str, begins: bool, given: Option<UnixStream>) {
        let signal = Message {
            kind: Kind::Signal,
            serial: 3,
            sender: sender.into(),
            fds: u32::from(given.is_some()),
            path: "/org/freedesktop/login1".into(),
            interface: "org.freedesktop.login1.Manager".into(),
            member: "PrepareForShutdown".into(),
            body: vec![Value::Bool(begins)],
            ..Message::default()
        };
        let client = self.0.clients.lock().last().expect("connected").try_clone().expect("a stream");
        send(&client, &signal, given);
    }

    /// The connection ends.
    fn hang_up(&self) {
        let client = self.0.clients.lock().pop().expect("connected");
        client.shutdown(std::net::Shutdown::Both).expect("ended");
    }

    /// Waits until the other side has read most of it.
    async fn write(&self, bytes: Vec<u8>) {
        let mut client = self.0.clients.lock().last().expect("connected").try_clone().expect("a stream");
        let written = tokio::task::spawn_blocking(move || client.write_all(&bytes));
        written.await.expect("no panic").expect("written");
    }

    /// For each inhibitor that was given out, whether it is held.
    fn held(&self) -> Vec<bool> {
        let is_held = |ours: &UnixStream| {
            let mut ours = ours;
            ours.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        self.0.inhibitors.lock().iter().map(is_held).collect()
    }
}

fn send(stream: &UnixStream, message: &Message, given: Option<UnixStream>) {
    let bytes = encode(message);
    let raw: Vec<i32> = given.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let ancillary = if raw.is_empty() { &[][..] } else { &rights[..] };
    // A client that is gone hears nothing.
    let _ =
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&bytes)], ancillary, MsgFlags::MSG_NOSIGNAL, None);
}

fn with_priority(name: &str, priority: i32) -> PodSpec {
    PodSpec { priority: Some(priority), ..spec("Always", vec![container(name)]) }
}

fn ended(status: &PodStatus) -> bool {
    status.phase.as_deref() == Some("Failed")
}

/// Status, reason and message of the node's condition.
fn node_ready(node: &Node) -> Option<(String, String, String)> {
    let object = node.api.object("nodes", "n1")?;
    let conditions = object["status"]["conditions"].as_array()?.clone();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready")?;
    let text = |field: &str| ready[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Six seconds for all pods, of which three are for critical ones: more than logind would wait for by itself.
fn start() -> (Node, FakeBus) {
    start_with(1, 6)
}

/// Twenty minutes, and logind would wait for an hour.
fn start_patient() -> (Node, FakeBus) {
    start_with(3600, 1200)
}

fn start_with(delay_seconds: u64, grace_seconds: u64) -> (Node, FakeBus) {
    let bus = FakeBus::start();
    *bus.0.delay_us.lock() = delay_seconds * 1_000_000;
    let node = Node::start_set(|config| {
        let [total, critical] = [grace_seconds, grace_seconds / 2].map(Duration::from_secs);
        config.shutdown_graces = Graces::of_total(total, critical).expect("fits");
        config.logind = bus.0.places.clone();
    });
    (node, bus)
}

#[tokio::test]
async fn pods_end_in_the_order_of_their_priorities_before_the_machine_does() {
    let (node, bus) = start();
    // It takes all of its grace, which is over before its group's time is.
    node.runtime.ignore_stop_signal("plain");
    node.bind("plain", PodSpec { termination_grace_period_seconds: Some(1), ..with_priority("plain", 0) });
    node.bind("critical", with_priority("critical", 2_000_000_000));
    node.wait_ready("plain").await;
    node.wait_ready("critical").await;
    node.wait("the inhibitor", || (bus.held() == [true]).then_some(())).await;
    assert_eq!(*bus.0.delay_us.lock(), 6_000_000, "logind waits long enough");

    bus.prepare_for_shutdown(true);
    let told = ("False".to_owned(), "KubeletNotReady".to_owned(), "node is shutting down".to_owned());
    node.wait("the node to say so", || (node_ready(&node)? == told).then_some(())).await;
    node.bind("late", with_priority("late", 0));
    let late = node.wait_status("late", "the refusal", ended).await;
    assert_eq!(late.reason.as_deref(), Some("NodeShutdown"));
    assert_eq!(late.message.as_deref(), Some("Pod was rejected as the node is shutting down."));
    let critical = node.wait("the last stop", || {
        let critical = node.runtime.find(&uid("critical"), "critical").expect("known");
        let stop = format!("stop_container({})", critical.id);
        node.runtime.calls().contains(&stop).then_some(critical)
    });
    critical.await;
    let plain = node.runtime.find(&uid("plain"), "plain").expect("known");
    assert_eq!(plain.state, ContainerState::Exited, "the one before has ended");
    for name in ["plain", "critical"] {
        let status = node.wait_status(name, "its end", ended).await;
        assert_eq!(status.reason.as_deref(), Some("Terminated"), "{name}");
        let message = "Pod was terminated in response to imminent node shutdown.";
        assert_eq!(status.message.as_deref(), Some(message), "{name}");
        let disrupted = status.conditions.into_iter().flatten().find(|c| c.type_ == "DisruptionTarget");
        let disrupted = disrupted.expect("told");
        assert_eq!(
            (disrupted.status.as_str(), disrupted.reason.as_deref()),
            ("True", Some("TerminationByKubelet"))
        );
    }
    node.wait("the inhibitor to be given back", || (bus.held() == [false]).then_some(())).await;

    // Called off after all: the node takes pods again, and holds up the next shutdown.
    bus.prepare_for_shutdown(false);
    node.wait("the node to be ready", || (node_ready(&node)?.0 == "True").then_some(())).await;
    node.wait("another inhibitor", || (bus.held() == [false, true]).then_some(())).await;
    node.bind("new", with_priority("new", 0));
    node.wait_ready("new").await;
}

#[tokio::test]
async fn shutdown_that_is_called_off_ends_no_more_pods() {
    let (node, bus) = start_patient();
    node.runtime.ignore_stop_signal("plain");
    node.bind("plain", with_priority("plain", 0));
    node.bind("critical", with_priority("critical", 2_000_000_000));
    node.wait_ready("critical").await;
    node.wait_ready("plain").await;
    node.wait("the inhibitor", || (bus.held() == [true]).then_some(())).await;
    assert!(!PathBuf::from(&bus.0.places.logind_conf).exists(), "it waits long enough");
    bus.prepare_for_shutdown(true);
    node.wait("the node to say so", || (node_ready(&node)?.0 == "False").then_some(())).await;
    bus.prepare_for_shutdown(false);
    node.wait("the node to be ready", || (node_ready(&node)?.0 == "True").then_some(())).await;
    assert_eq!(bus.held(), [true]);
    let critical = node.runtime.find(&uid("critical"), "critical").expect("known");
    assert_eq!(critical.state, ContainerState::Running);
    assert!(!ended(&node.status("critical")));
}

#[tokio::test]
async fn messages_of_others_change_nothing() {
    let (node, bus) = start();
    node.bind("plain", with_priority("plain", 0));
    node.wait_ready("plain").await;
    node.wait("the inhibitor", || (bus.held() == [true]).then_some(())).await;
    // With a descriptor, which goes with its message.
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    bus.signal(":1.9", true, Some(theirs));
    // Larger than is read, with what looks like logind's signal in it.
    let text = Value::Text("x".repeat(3 << 20));
    let large = Message { kind: Kind::Signal, serial: 4, body: vec![text], ..Message::default() };
    bus.write(encode(&large)).await;
    // In the other order of bytes: a signal with serial 9 and `true`.
    bus.write(
        b"B\x04\x00\x01\x00\x00\x00\x04\x00\x00\x00\x09\x00\x00\x00\x07\x08\x01g\x00\x01b\x00\x00\x00\x00\x00\x01"
            .to_vec(),
    )
    .await;
    let closed = tokio::task::spawn_blocking(move || ours.read(&mut [0]).expect("no error"));
    assert_eq!(closed.await.expect("read"), 0, "the descriptor was closed");
    // The connection has outlived all that, and nothing has come of it.
    bus.prepare_for_shutdown(false);
    bus.prepare_for_shutdown(true);
    node.wait_status("plain", "its end", ended).await;
    assert_eq!(bus.0.calls.lock().iter().filter(|call| *call == "Hello").count(), 1);
    assert_eq!(bus.0.calls.lock().iter().filter(|call| *call == "Inhibit").count(), 1);
    let told = bus.0.calls.lock().iter().filter(|call| *call == "KillUnit").count();
    assert_eq!(told, 1, "logind read its settings once");
}

#[tokio::test]
async fn shutdown_goes_on_when_it_is_told_again_or_the_bus_is_lost() {
    let (node, bus) = start_patient();
    // It takes all the time that it gets.
    node.runtime.ignore_stop_signal("plain");
    node.bind("plain", PodSpec { termination_grace_period_seconds: Some(3), ..with_priority("plain", 0) });
    node.wait_ready("plain").await;
    node.wait("the inhibitor", || (bus.held() == [true]).then_some(())).await;
    bus.prepare_for_shutdown(true);
    let is_ready = || node_ready(&node).map(|ready| ready.0);
    node.wait("the node to say so", || (is_ready()? == "False").then_some(())).await;
    bus.prepare_for_shutdown(true);
    bus.hang_up();
    let connections = || bus.0.calls.lock().iter().filter(|call| *call == "Hello").count();
    // The pods have their time.
    let plain = node.runtime.find(&uid("plain"), "plain").expect("known");
    let stop = format!("stop_container({})", plain.id);
    node.wait("the stop", || node.runtime.calls().contains(&stop).then_some(())).await;
    assert_eq!((bus.held(), connections()), (vec![true], 1));
    node.wait("the inhibitor to be given back", || (bus.held() == [false]).then_some(())).await;
    node.wait("another connection", || (connections() == 2).then_some(())).await;
    assert_eq!(is_ready().as_deref(), Some("False"), "the machine still goes down");
    node.wait("what it is told", || {
        let calls = bus.0.calls.lock();
        calls.iter().filter(|call| *call == "GetNameOwner").nth(1).map(drop)
    })
    .await;
    assert_eq!(is_ready().as_deref(), Some("False"));
    // Called off after all: the node takes pods again, and holds up the next shutdown.
    bus.prepare_for_shutdown(false);
    node.wait("the node to be ready", || (is_ready()? == "True").then_some(())).await;
    node.wait("another inhibitor", || (bus.held() == [false, true]).then_some(())).await;
}
