//! Counters of network interfaces, from the kernel's `net/dev`.

use std::fs;
use std::path::Path;

/// What went through one interface since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// The interfaces that a process sees in its `net/dev`, loopback left out. Empty when it is gone.
pub fn interfaces(net_dev: &Path) -> Vec<Interface> {
    parse(&fs::read_to_string(net_dev).unwrap_or_default())
}

fn parse(text: &str) -> Vec<Interface> {
    text.lines().filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

/// `eth0: bytes packets errs drop fifo frame compressed multicast bytes packets errs drop ...`
fn interface(line: &str) -> Option<Interface> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let &[
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = counters.as_slice()
    else {
        return None;
    };
    Some(Interface {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes    packets errs\n    \
                    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                    eth0: 100 5 1 2 0 0 0 0 200 6 3 4 0 0 0 0\n";
        let expected = Interface {
            name: "eth0".into(),
            rx_bytes: 100,
            rx_packets: 5,
            rx_errors: 1,
            rx_dropped: 2,
            tx_bytes: 200,
            tx_packets: 6,
            tx_errors: 3,
            tx_dropped: 4,
        };
        assert_eq!(parse(text), [expected]);
        assert_eq!(parse("eth0: 1 2"), []);
    }
}
