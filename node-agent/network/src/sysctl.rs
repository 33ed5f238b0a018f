//! Settings of the network namespace that the process runs in (`/proc/sys/net`, Documentation/networking/ip-sysctl).

use std::{fs, io, path::PathBuf};

use crate::Error;

/// Lets the node pass packets between pods and the outside.
pub(crate) fn enable_forwarding(ipv6: bool) -> Result<(), Error> {
    set("ipv4/ip_forward", "1")?;
    if ipv6 {
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// For the node's end of a pod's link: packets come from addresses that no local network covers.
pub(crate) fn prepare_pod_link(name: &str) -> Result<(), Error> {
    set(&format!("ipv4/conf/{name}/rp_filter"), "0")?;
    set(&format!("ipv4/conf/{name}/accept_local"), "1")
}

/// For the tunnel: the answer to a packet may leave another way. Loose, not off: of this setting and the one for all
/// interfaces the kernel takes the larger, and loose is the largest.
pub(crate) fn prepare_tunnel(name: &str) -> Result<(), Error> {
    set(&format!("ipv4/conf/{name}/rp_filter"), "2")
}

fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = PathBuf::from("/proc/sys/net").join(name);
    let write = || -> io::Result<()> {
        // Written only where it differs: in a container /proc/sys may be read-only and right already.
        if fs::read_to_string(&path)?.trim() == value { Ok(()) } else { fs::write(&path, value) }
    };
    write().map_err(Error::file("cannot write", &path))
}
