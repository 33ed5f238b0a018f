//! logind: it is asked to wait with a shutdown until what we hold is given back, and tells when one begins.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bus::{Bus, Fd};
use super::message::Value;

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const SIGNAL: &str = "PrepareForShutdown";

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
}

/// While it is held a shutdown waits, as long as logind's settings say.
pub(super) struct Inhibitor(#[expect(dead_code, reason = "held, and closed in the end")] Fd);

impl Logind {
    pub(super) async fn connect(places: &Places) -> Result<Self, String> {
        let mut bus = Bus::connect(&places.bus).await?;
        let rule = format!("type='signal',interface='{MANAGER}',member='{SIGNAL}',path='{PATH}'");
        let (name, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        bus.call(name, path, name, "AddMatch", vec![Value::Text(rule)]).await?;
        Ok(Self { bus })
    }

    /// Sees to it that logind waits for that long.
    ///
    /// # Errors
    /// It does not, whatever its settings.
    pub(super) async fn allow(&mut self, places: &Places, wanted: Duration) -> Result<(), String> {
        if self.delay().await? >= wanted {
            return Ok(());
        }
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
        // It reads them after the signal, which is not answered.
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

    async fn delay(&mut self) -> Result<Duration, String> {
        let arguments = vec![Value::Text(MANAGER.to_owned()), Value::Text("InhibitDelayMaxUSec".to_owned())];
        let properties = "org.freedesktop.DBus.Properties";
        let answer = self.bus.call(SERVICE, PATH, properties, "Get", arguments).await?;
        match answer.first() {
            Some(Value::Variant(value)) => match **value {
                Value::U64(micros) => Ok(Duration::from_micros(micros)),
                _ => Err("InhibitDelayMaxUSec is no number".to_owned()),
            },
            _ => Err("InhibitDelayMaxUSec is not told".to_owned()),
        }
    }

    pub(super) async fn inhibit(&mut self) -> Result<Inhibitor, String> {
        let arguments = ["shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay"];
        let arguments = arguments.map(|text| Value::Text(text.to_owned()));
        self.bus.call(SERVICE, PATH, MANAGER, "Inhibit", arguments.into()).await?;
        self.bus.take_fd().map(Inhibitor).ok_or_else(|| "logind gave no inhibitor".to_owned())
    }

    /// Waits until a shutdown begins (true), or is called off. Cancel-safe.
    pub(super) async fn prepares_for_shutdown(&mut self) -> Result<bool, String> {
        loop {
            let signal = self.bus.signal().await?;
            if signal.interface == MANAGER
                && signal.member == SIGNAL
                && let Some(Value::Bool(begins)) = signal.body.first()
            {
                return Ok(*begins);
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
