//! logind: it is asked to wait with a shutdown until what we hold is given back, and tells when one begins.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bus::{BUS, Bus, Fd};
use super::message::Value;

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const SIGNAL: &str = "PrepareForShutdown";
const OWNER_CHANGED: &str = "NameOwnerChanged";

/// Where the bus is, and where its settings are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    pub bus: PathBuf,
    /// Where logind looks for settings of others.
    pub logind_conf: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { bus: "/run/dbus/system_bus_socket".into(), logind_conf: "/etc/systemd/logind.conf.d".into() }
    }
}

/// Upstream's name, so that one takes the place of the other's.
const CONF_FILE: &str = "99-kubelet.conf";

pub(super) struct Logind {
    bus: Bus,
    /// logind's connection: nobody else's signals count.
    owner: String,
    /// Whether a shutdown had begun when it was connected to.
    pub(super) goes_down: bool,
}

/// While it is held a shutdown waits, as long as logind's settings say.
pub(super) struct Inhibitor(#[expect(dead_code, reason = "held, and closed in the end")] Fd);

impl Logind {
    pub(super) async fn connect(places: &Places) -> Result<Self, String> {
        let mut bus = Bus::connect(&places.bus).await?;
        let rules = [
            format!("type='signal',sender='{SERVICE}',interface='{MANAGER}',member='{SIGNAL}',path='{PATH}'"),
            format!(
                "type='signal',sender='{BUS}',interface='{BUS}',member='{OWNER_CHANGED}',arg0='{SERVICE}'"
            ),
        ];
        for rule in rules {
            bus.ask("AddMatch", vec![Value::Text(rule)]).await?;
        }
        let mut logind = Self { bus, owner: String::new(), goes_down: false };
        // After the rules: what begins from now on is told. It starts logind, where that does not run yet.
        logind.goes_down = match logind.property("PreparingForShutdown").await? {
            Value::Bool(goes_down) => goes_down,
            other => return Err(format!("PreparingForShutdown is {other:?}")),
        };
        let answer = logind.bus.ask("GetNameOwner", vec![Value::Text(SERVICE.to_owned())]).await?;
        match answer.message.body.into_iter().next() {
            Some(Value::Text(owner)) => logind.owner = owner,
            other => return Err(format!("GetNameOwner gave {other:?}")),
        }
        Ok(logind)
    }

    /// Sees to it that logind waits for that long. Its settings are changed once: `is_asked` says that they were.
    ///
    /// # Errors
    /// It does not, whatever its settings.
    pub(super) async fn allow(
        &mut self,
        places: &Places,
        wanted: Duration,
        is_asked: &mut bool,
    ) -> Result<(), String> {
        if self.delay().await? >= wanted {
            return Ok(());
        }
        if !*is_asked {
            self.change_settings(places, wanted).await?;
            *is_asked = true;
        }
        // It reads them after a signal, which is not answered.
        let mut current = Duration::ZERO;
        for _ in 0..20 {
            current = self.delay().await?;
            if current >= wanted {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(format!(
            "node shutdown manager was unable to update logind InhibitDelayMaxSec to {wanted:?} \
             (ShutdownGracePeriod), current value of InhibitDelayMaxSec ({current:?}) is less than requested \
             ShutdownGracePeriod"
        ))
    }

    async fn change_settings(&mut self, places: &Places, wanted: Duration) -> Result<(), String> {
        write_conf(&places.logind_conf, wanted)
            .map_err(|error| format!("{}: {error}", places.logind_conf.display()))?;
        // Makes it read its settings.
        let arguments = vec![
            Value::Text("systemd-logind.service".to_owned()),
            Value::Text("all".to_owned()),
            Value::I32(nix::sys::signal::Signal::SIGHUP as i32),
        ];
        let systemd = "org.freedesktop.systemd1";
        let manager = "org.freedesktop.systemd1.Manager";
        self.bus.call(systemd, "/org/freedesktop/systemd1", manager, "KillUnit", arguments).await?;
        Ok(())
    }

    async fn delay(&mut self) -> Result<Duration, String> {
        match self.property("InhibitDelayMaxUSec").await? {
            Value::U64(micros) => Ok(Duration::from_micros(micros)),
            other => Err(format!("InhibitDelayMaxUSec is {other:?}")),
        }
    }

    async fn property(&mut self, name: &str) -> Result<Value, String> {
        let arguments = vec![Value::Text(MANAGER.to_owned()), Value::Text(name.to_owned())];
        let answer =
            self.bus.call(SERVICE, PATH, "org.freedesktop.DBus.Properties", "Get", arguments).await?;
        match answer.message.body.into_iter().next() {
            Some(Value::Variant(value)) => Ok(*value),
            _ => Err(format!("{name} is not told")),
        }
    }

    pub(super) async fn inhibit(&mut self) -> Result<Inhibitor, String> {
        let arguments = ["shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay"];
        let arguments = arguments.map(|text| Value::Text(text.to_owned()));
        let mut answer = self.bus.call(SERVICE, PATH, MANAGER, "Inhibit", arguments.into()).await?;
        answer.fds.pop().map(Inhibitor).ok_or_else(|| "logind gave no inhibitor".to_owned())
    }

    /// Waits until a shutdown begins (true), or is called off. Cancel-safe.
    ///
    /// # Errors
    /// The bus is gone, or logind is another one now.
    pub(super) async fn prepares_for_shutdown(&mut self) -> Result<bool, String> {
        loop {
            let signal = self.bus.signal().await?;
            match (signal.interface.as_str(), signal.member.as_str(), &signal.body[..]) {
                (MANAGER, SIGNAL, [Value::Bool(begins)]) if signal.sender == self.owner => {
                    return Ok(*begins);
                }
                (BUS, OWNER_CHANGED, [Value::Text(name), _, Value::Text(owner)])
                    if signal.sender == BUS && name == SERVICE && *owner != self.owner =>
                {
                    return Err("logind was started anew".to_owned());
                }
                _ => {}
            }
        }
    }
}

fn write_conf(dir: &Path, wanted: Duration) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let seconds = wanted.as_secs_f64().ceil();
    std::fs::write(
        dir.join(CONF_FILE),
        format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={seconds:.0}\n"),
    )
}
