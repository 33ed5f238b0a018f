//! Settings of the controllers; the names follow kube-controller-manager's flags.

use std::{sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use hawser_api::AddressRange;
use ipnet::IpNet;

use crate::Signer;

#[derive(Clone, Debug)]
pub struct Config {
    /// `--controllers`: `*` enables all, `name` one, `-name` disables one.
    pub controllers: Vec<String>,
    /// Loops per controller that works on many objects (`--concurrent-*-syncs`); claims of devices have upstream's fifty at least.
    pub workers: usize,
    /// `--cluster-cidr`: where nodes get their pod addresses from, at most one range of each family.
    /// Empty: nodes get none.
    pub cluster_cidrs: Vec<IpNet>,
    /// `--node-cidr-mask-size-ipv4`.
    pub node_cidr_mask_size_ipv4: u8,
    /// `--node-cidr-mask-size-ipv6`.
    pub node_cidr_mask_size_ipv6: u8,
    /// `--node-monitor-period`: how often nodes are looked at.
    pub node_monitor_period: Duration,
    /// `--node-monitor-grace-period`: without a heartbeat for that long a node is Unknown.
    pub node_monitor_grace_period: Duration,
    /// `--node-startup-grace-period`: the same, for a node that never reported.
    pub node_startup_grace_period: Duration,
    /// `--node-eviction-rate`: nodes of a zone given up in a second.
    pub node_eviction_rate: f64,
    /// `--secondary-node-eviction-rate`: the same, while most of a large zone is lost; of a small one none is given up.
    pub secondary_node_eviction_rate: f64,
    /// `--unhealthy-zone-threshold`: the share of a zone's nodes that is most of it.
    pub unhealthy_zone_threshold: f64,
    /// `--large-cluster-size-threshold`: nodes beyond which a zone is large.
    pub large_cluster_size_threshold: usize,
    /// `--terminated-pod-gc-threshold`: more ended pods than this are deleted, the oldest first; 0 keeps all.
    pub terminated_pod_gc_threshold: usize,
    /// How often pods without a node are looked for.
    pub pod_gc_period: Duration,
    /// How long a node must be gone before its pods are deleted.
    pub pod_gc_quarantine: Duration,
    /// `--resource-quota-sync-period`: how often all quotas are counted, whatever was heard.
    pub resource_quota_sync_period: Duration,
    /// The cluster's CA certificates, in PEM, for the ConfigMap `kube-root-ca.crt` of each namespace.
    /// Empty: no ConfigMap is written.
    pub root_ca_pem: String,
    /// Where Services of type LoadBalancer get their addresses from, in order. Empty: another implementation's matter.
    pub load_balancer_ranges: Vec<AddressRange>,
    /// Who issues the certificates that CertificateSigningRequests ask the cluster's own signers for. None: nobody.
    pub signer: Option<Arc<dyn Signer>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controllers: vec!["*".to_owned()],
            workers: 5,
            cluster_cidrs: Vec::new(),
            node_cidr_mask_size_ipv4: 24,
            node_cidr_mask_size_ipv6: 64,
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(40),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            unhealthy_zone_threshold: 0.55,
            large_cluster_size_threshold: 50,
            terminated_pod_gc_threshold: 12_500,
            pod_gc_period: Duration::from_secs(20),
            pod_gc_quarantine: Duration::from_secs(40),
            resource_quota_sync_period: Duration::from_secs(300),
            root_ca_pem: String::new(),
            load_balancer_ranges: Vec::new(),
            signer: None,
        }
    }
}

impl Config {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.workers > 0, "workers must be at least 1");
        ensure!(!self.node_monitor_period.is_zero(), "node-monitor-period must be more than 0");
        ensure!(!self.pod_gc_period.is_zero(), "pod garbage collection needs a period of more than 0");
        let families: Vec<bool> = self.cluster_cidrs.iter().map(|cidr| cidr.addr().is_ipv4()).collect();
        if families.len() > 2 || families.first() == families.get(1) && families.len() == 2 {
            bail!("cluster-cidr takes at most one range of each family");
        }
        ensure!(!self.resource_quota_sync_period.is_zero(), "resource-quota-sync-period must be more than 0");
        for (name, rate) in [
            ("node-eviction-rate", self.node_eviction_rate),
            ("secondary-node-eviction-rate", self.secondary_node_eviction_rate),
        ] {
            ensure!(rate.is_finite() && rate >= 0.0, "{name} must not be negative");
        }
        ensure!(
            (0.0..=1.0).contains(&self.unhealthy_zone_threshold),
            "unhealthy-zone-threshold must be between 0 and 1"
        );
        for cidr in &self.cluster_cidrs {
            let mask = self.node_mask(cidr);
            ensure!(
                cidr.prefix_len() <= mask && mask <= cidr.max_prefix_len(),
                "cluster-cidr {cidr} has no room for node blocks of /{mask}"
            );
            ensure!(
                mask - cidr.prefix_len() <= 20,
                "cluster-cidr {cidr} with node blocks of /{mask} makes more than 2^20 blocks"
            );
        }
        Ok(())
    }

    /// Prefix length of a node's block in `cidr`.
    pub(crate) fn node_mask(&self, cidr: &IpNet) -> u8 {
        if cidr.addr().is_ipv4() { self.node_cidr_mask_size_ipv4 } else { self.node_cidr_mask_size_ipv6 }
    }

    pub(crate) fn enables(&self, name: &str) -> bool {
        let listed = |wanted: &str| self.controllers.iter().any(|entry| entry == wanted);
        !listed(&format!("-{name}")) && (listed(name) || listed("*"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, change: impl FnOnce(&mut Config), expected: bool) {
        let mut config = Config::default();
        change(&mut config);
        assert_eq!(config.check().is_ok(), expected, "{name}");
    }

    #[test]
    fn impossible_settings_are_refused() {
        check("defaults", |_| {}, true);
        check("dual stack", |c| c.cluster_cidrs = nets(&["10.0.0.0/16", "fd00::/56"]), true);
        check("two of a family", |c| c.cluster_cidrs = nets(&["10.0.0.0/16", "10.1.0.0/16"]), false);
        check("smaller than a block", |c| c.cluster_cidrs = nets(&["10.0.0.0/25"]), false);
        check("no worker", |c| c.workers = 0, false);
        check("nobody is ever given up", |c| c.node_eviction_rate = 0.0, true);
        check("a rate below nothing", |c| c.node_eviction_rate = -1.0, false);
        check("a share beyond all", |c| c.unhealthy_zone_threshold = 1.5, false);
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn controllers_are_chosen_by_name() {
        let config = Config { controllers: vec!["*".into(), "-podgc".into()], ..Config::default() };
        assert!(config.enables("deployment"));
        assert!(!config.enables("podgc"));
        let config = Config { controllers: vec!["deployment".into()], ..Config::default() };
        assert!(config.enables("deployment"));
        assert!(!config.enables("replicaset"));
    }
}
