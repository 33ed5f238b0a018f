//! `kubelet_volume_stats_*`: space in the volumes behind claims. `kubelet_podcertificate_states`: certificates in volumes.

use std::collections::BTreeMap;

use super::text::{Exposition, Family};
use crate::stats::disk::{FsStats, Measured};

const FAMILIES: [Family<FsStats>; 6] = [
    ("kubelet_volume_stats_capacity_bytes", false, "Capacity in bytes of the volume", |fs| {
        fs.capacity_bytes as f64
    }),
    ("kubelet_volume_stats_available_bytes", false, "Number of available bytes in the volume", |fs| {
        fs.available_bytes as f64
    }),
    ("kubelet_volume_stats_used_bytes", false, "Number of used bytes in the volume", |fs| {
        fs.used_bytes() as f64
    }),
    ("kubelet_volume_stats_inodes", false, "Maximum number of inodes in the volume", |fs| fs.inodes as f64),
    ("kubelet_volume_stats_inodes_free", false, "Number of free inodes in the volume", |fs| {
        fs.inodes_free as f64
    }),
    ("kubelet_volume_stats_inodes_used", false, "Number of used inodes in the volume", |fs| {
        fs.inodes_used() as f64
    }),
];

/// One sample a claim, however many pods use it. `measured`: pods' namespaces, and what was measured of them.
pub(super) fn render<'a>(out: &mut Exposition, measured: impl Iterator<Item = (&'a str, &'a Measured)>) {
    let mut claims: BTreeMap<(&str, &str), FsStats> = BTreeMap::new();
    for (namespace, pod) in measured {
        for volume in pod.volumes.values() {
            if let Some(claim) = &volume.claim {
                claims.insert((namespace, claim), volume.fs);
            }
        }
    }
    for family in FAMILIES {
        if claims.is_empty() {
            return;
        }
        out.family(&family);
        for ((namespace, claim), fs) in &claims {
            out.sample(&[("namespace", namespace), ("persistentvolumeclaim", claim)], family.3(fs), None);
        }
    }
}

/// `states`: how many sources there are, by signer and state.
pub(super) fn render_certificates(out: &mut Exposition, states: &BTreeMap<(String, &'static str), usize>) {
    if states.is_empty() {
        return;
    }
    let help = "Gauge vector reporting the number of pod certificate projected volume sources, faceted by signer_name and state.";
    let family = out.gauge("kubelet_podcertificate_states", help);
    for ((signer, state), count) in states {
        family.sample(&[("signer_name", signer), ("state", state)], *count as f64, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::disk::VolumeDisk;

    #[test]
    fn claim_of_two_pods_is_one_sample() {
        let fs = FsStats { capacity_bytes: 1000, available_bytes: 400, inodes: 10, inodes_free: 7 };
        let volume =
            |claim: Option<&str>| VolumeDisk { fs, claim: claim.map(str::to_owned), ..VolumeDisk::default() };
        let pod = Measured {
            volumes: [("v".to_owned(), volume(Some("data"))), ("w".to_owned(), volume(None))].into(),
            ..Measured::default()
        };
        let mut out = Exposition::default();
        render(&mut out, [("shop", &pod), ("shop", &pod)].into_iter());
        let text = out.finish();
        let labels = "{namespace=\"shop\",persistentvolumeclaim=\"data\"}";
        for (name, value) in
            [("capacity_bytes", 1000), ("available_bytes", 400), ("used_bytes", 600), ("inodes_used", 3)]
        {
            let line = format!("kubelet_volume_stats_{name}{labels} {value}\n");
            assert_eq!(text.matches(&line).count(), 1, "{line} in {text}");
        }
    }
}
