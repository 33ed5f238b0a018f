//! The suite `kernel`: the tests of the datapath on Debian 12's kernel, 6.1, booted in an emulator.
//!
//! It takes the executables that the suite `datapath` runs, puts them into an initramfs together with the kernel's own
//! modules and the programs that the tests call, and boots that without KVM. Every test has to come back with a
//! result: a panic, a guest that hangs and a test that was not run are failures. What was made stays in
//! `target/kernel`, with the guest's console.

mod debian;
mod emulator;
mod initramfs;
mod plan;
mod report;

use anyhow::{Context, bail};

use crate::{build::target_dir, command::say};
use emulator::Machine;
use report::Report;

/// Runs the tests that `filter` selects, in nextest's language, on the older kernel.
pub(crate) fn run(filter: &str) -> anyhow::Result<()> {
    let folder = target_dir().join("kernel");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let kernel = debian::kernel(&folder)?;
    let plan = plan::tests(filter)?;
    let initramfs = initramfs::pack(&folder, &kernel, &plan)?;
    say(format!("{} tests on {}, emulated", plan.tests().count(), kernel.release));
    let machine =
        Machine { kernel: &kernel.image, initramfs: &initramfs, console: &folder.join("console.log") };
    let mut report = Report::new(plan.tests());
    let end = machine.run(|line| {
        if let Some(message) = report.take(line) {
            println!("{message}");
        }
    });
    println!("{}", report.summary());
    if report.is_good() && end.is_ok() {
        return Ok(());
    }
    // A panic is the last that the console shows.
    eprintln!("{}", machine.console_tail());
    end?;
    bail!("not all tests passed on {}; the console is in {}", kernel.release, machine.console.display())
}
