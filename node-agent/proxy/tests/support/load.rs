//! Clients that connect all the time, beside what a test does.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use super::{Lab, USUAL_PATIENCE, connect, eventually, patience};

/// Runs `work` while clients, each a namespace and an address, connect again and again; then asserts that none ever
/// failed. `work` gets a function that waits until more connections have been made.
pub(crate) fn under_load<T>(
    lab: &Lab,
    clients: &[(&'static str, &'static str)],
    work: impl FnOnce(&dyn Fn(&str)) -> T,
) -> T {
    let stop = AtomicBool::new(false);
    let (connections, failures) = (AtomicU64::new(0), AtomicU64::new(0));
    // Clients that never pause leave the agent of an emulated machine no time to start.
    let pause = (patience() - USUAL_PATIENCE) / 1000;
    let result = thread::scope(|scope| {
        for (ns, address) in clients.iter().copied() {
            let (stop, connections, failures) = (&stop, &connections, &failures);
            scope.spawn(move || {
                lab.inside(ns, || {
                    // Bounded: the test ends long before a client's ports do.
                    for _ in 0..20_000 {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        match connect(address) {
                            Ok(_) => connections.fetch_add(1, Ordering::Relaxed),
                            Err(error) => {
                                eprintln!("{ns} to {address}: {error}");
                                failures.fetch_add(1, Ordering::Relaxed)
                            }
                        };
                        thread::sleep(pause);
                    }
                });
            });
        }
        // Stops the clients when the test fails, too.
        let _stop = StopAtEnd(&stop);
        work(&|what| {
            let before = connections.load(Ordering::Relaxed);
            eventually(what, || connections.load(Ordering::Relaxed) > before + 20);
        })
    });
    assert_eq!(failures.load(Ordering::Relaxed), 0);
    result
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
