//! qemu without KVM: bounded memory, bounded time, the console in a file, results over a second serial line.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// Emulated, the whole suite takes a fraction of it on two cores.
const LIMIT: Duration = Duration::from_secs(90 * 60);
const MEMORY: &str = "2G";
const PROGRAM: &str = "qemu-system-x86_64";

/// What to boot.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// The file that the guest's console is written to.
    pub(super) console: &'a Path,
}

/// A running qemu, which ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots, hands every line of the second serial line to `take`, and waits until the guest has powered off.
    pub(super) fn run(&self, mut take: impl FnMut(&str)) -> anyhow::Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut running = Running(self.command().spawn().with_context(|| format!("cannot run {PROGRAM}"))?);
        let results = running.0.stdout.take().expect("stdout is piped");
        // Unbounded, and small: what the tests print, whose reader does nothing but print.
        let (sender, receiver) = channel();
        // It ends with qemu, which closes the other end.
        thread::spawn(move || {
            for line in BufReader::new(results).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        loop {
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => take(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => bail!("the guest did not end within {} s", LIMIT.as_secs()),
            }
        }
        let status = running.0.wait()?;
        if !status.success() {
            bail!("{PROGRAM} ended with {status}");
        }
        Ok(())
    }

    fn command(&self) -> Command {
        let mut qemu = Command::new(PROGRAM);
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY]);
        // A reboot is the end, of a panic too.
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initramfs);
        qemu.args(["-append", "console=ttyS0 panic=-1 oops=panic"]);
        qemu.arg("-serial").arg(format!("file:{}", self.console.display())).args(["-serial", "stdio"]);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        qemu
    }

    /// The last lines of the console.
    pub(super) fn console_tail(&self) -> String {
        let text = fs::read(self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}
