use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};
use hawser_kubelet::{
    eviction::thresholds::{Amount, Signal},
    rate::Rate,
};

use super::*;
use crate::options::{CpuManagerPolicy, TopologyManagerScope, TopologyOption};

#[derive(Parser)]
struct Agent {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Run(Box<Options>),
}

fn read_file(text: &str, flags: &[&str]) -> anyhow::Result<(Options, Config, Vec<&'static str>)> {
    let always = "agent run --node-name n1 --node-ip 10.0.0.1 --api-server https://10.0.0.9:6443 --ca-file ca \
                  --client-cert-file c --client-key-file k --cluster-cidr 10.1.0.0/16 \
                  --service-cluster-ip-range 10.2.0.0/16 --config file";
    let matches = Agent::command().get_matches_from(always.split_whitespace().chain(flags.iter().copied()));
    let Command::Run(mut options) = Agent::from_arg_matches(&matches)?.command;
    let mut config = Config::new("n1", options.node_ip, "/var/lib/hawser");
    let ignored = apply_text(text, &Given::of(&matches), &mut options, &mut config)?;
    Ok((*options, config, ignored))
}

fn with(fields: &str) -> String {
    format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}")
}

#[test]
fn a_file_sets_what_flags_do_not() {
    let text = with(
        r#"
maxPods: 40
podPidsLimit: 500
port: 10350
clusterDNS: [10.2.0.10]
clusterDomain: a.test
staticPodPath: /etc/manifests
kubeReserved: {cpu: 200m, memory: 100Mi}
evictionHard: {memory.available: 200Mi, nodefs.available: 0%}
evictionSoft: {memory.available: 300Mi}
evictionSoftGracePeriod: {memory.available: 1m30s}
evictionMinimumReclaim: {memory.available: 50Mi}
cpuManagerPolicy: static
topologyManagerScope: pod
topologyManagerPolicyOptions: {prefer-closest-numa-nodes: "true", max-allowable-numa-nodes: "8"}
tlsCipherSuites: [TLS_AES_128_GCM_SHA256, TLS_RSA_WITH_AES_128_CBC_SHA]
memoryManagerPolicy: Static
reservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}]
registerWithTaints: [{key: a, value: b, effect: NoSchedule}, {key: c, effect: NoExecute}]
shutdownGracePeriod: 30s
shutdownGracePeriodCriticalPods: 10s
nodeStatusUpdateFrequency: 5s
imageMaximumGCAge: 24h
registryPullQPS: 0
userNamespaces: {idsPerPod: 131072}
serializeImagePulls: true
tlsMinVersion: VersionTLS13
authentication: {x509: {clientCAFile: /ca}, webhook: {enabled: false, cacheTTL: 10s}}
authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 1s}}
"#,
    );
    let (options, config, ignored) =
        read_file(&text, &["--max-pods", "50", "--cluster-domain=b.test"]).unwrap();
    assert_eq!((options.max_pods, options.cluster_domain.as_str()), (50, "b.test"), "flags win");
    assert_eq!((options.pod_max_pids, options.port), (Some(500), 10350));
    assert_eq!(options.cluster_dns, ["10.2.0.10".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(options.pod_manifest_path.as_deref(), Some(Path::new("/etc/manifests")));
    assert_eq!((options.kube_reserved.cpu_millis, options.kube_reserved.memory_bytes), (200, 100 << 20));
    assert_eq!(options.cpu_manager_policy, CpuManagerPolicy::Static);
    assert_eq!(options.topology_manager_scope, TopologyManagerScope::Pod);
    let chosen = [TopologyOption::MaxAllowableNumaNodes, TopologyOption::PreferClosestNumaNodes(true)];
    assert_eq!(options.topology_manager_policy_options, chosen);
    assert_eq!(config.server.tls.missing(), ["TLS_RSA_WITH_AES_128_CBC_SHA"]);
    assert_eq!(options.reserved_memory, [(0, [("memory".to_owned(), 1 << 30)].into())]);
    assert_eq!(options.register_with_taints, ["a=b:NoSchedule", "c:NoExecute"]);
    assert_eq!(options.shutdown_grace_period, Some(Duration::from_secs(30)));
    let thresholds = options.eviction().unwrap().thresholds;
    let shown: Vec<_> = thresholds.iter().map(|t| (t.signal, t.value, t.grace.as_secs())).collect();
    let memory = |mib: u64, grace| (Signal::MemoryAvailable, Amount::Absolute(mib << 20), grace);
    assert_eq!(shown, [memory(200, 0), memory(300, 90)], "0% is no threshold");
    assert!(thresholds.iter().all(|t| t.minimum_reclaim == Amount::Absolute(50 << 20)));
    assert_eq!(config.status_interval, Duration::from_secs(5));
    assert_eq!(config.status_report_interval, Duration::from_secs(5), "as often as it is looked at");
    assert_eq!(config.image_gc.max_age, Some(Duration::from_secs(86400)));
    assert_eq!(config.registry_rate, Rate { per_second: 0, burst: 10 });
    assert_eq!(config.max_parallel_pulls, 1);
    assert_eq!(config.users.ids_per_pod(), 131072);
    assert!(config.server.tls.only_tls13 && !config.server.reviews.tokens);
    assert_eq!(config.server.reviews.allowed_ttl, Duration::from_secs(300), "zero says nothing");
    assert_eq!(config.server.reviews.refused_ttl, Duration::from_secs(1));
    assert_eq!(options.client_ca_file.as_deref(), Some(Path::new("/ca")));
    assert!(ignored.is_empty());
}

#[test]
fn a_file_of_kubeadm_is_taken_and_what_means_nothing_is_named() {
    let text = with(
        r#"
authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization:
  mode: Webhook
  webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}
cgroupDriver: systemd
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: ""
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}}, verbosity: 0}
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
"#,
    );
    let (options, config, ignored) = read_file(&text, &[]).unwrap();
    let named = ["rotateCertificates", "healthzPort", "healthzBindAddress", "cgroupDriver", "logging"];
    assert_eq!(ignored, named);
    assert_eq!(config.status_report_interval, Duration::from_secs(300));
    assert_eq!(options.eviction_pressure_transition_period, 300);
    assert_eq!(options.shutdown_grace_period, None);
}

#[test]
fn json_is_read_too() {
    let text = r#"{"kind":"KubeletConfiguration","apiVersion":"kubelet.config.k8s.io/v1beta1","maxPods":7}"#;
    assert_eq!(read_file(text, &[]).unwrap().0.max_pods, 7);
}

#[test]
fn an_error_names_the_field() {
    let check = |text: &str, expected: &str| {
        let error = read_file(text, &[]).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(error.contains(expected), "{text}: {error:?} does not say {expected:?}");
    };
    check("kind: Pod\napiVersion: v1", "kind: \"Pod\" is not KubeletConfiguration");
    check("kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1", "apiVersion: ");
    check(&with("maxPod: 5"), "unknown field \"maxPod\"");
    check(&with("maxPods: many"), "maxPods: invalid type");
    check(&with("maxPods: 5\nmaxPods: 6"), "duplicate entry");
    check(&with("authentication: {x509: {file: a}}"), "authentication: unknown field `file`");
    check(
        &with("authorization: {mode: AlwaysAllow}"),
        "authorization.mode: \"AlwaysAllow\" is not supported",
    );
    check(&with("evictionHard: {memory.free: 1Gi}"), "evictionHard: \"memory.free\" is no eviction signal");
    check(&with("evictionSoft: {memory.available: 1Gi}"), "--eviction-soft-grace-period has none");
    check(&with("imageGCLowThresholdPercent: 90"), "imageGCLowThresholdPercent: must be less");
    check(&with("cpuManagerPolicy: dynamic"), "cpuManagerPolicy: \"dynamic\" is none of none, static");
    check(&with("enableDebuggingHandlers: false"), "enableDebuggingHandlers: false is not supported");
    check(&with("topologyManagerScope: node"), "topologyManagerScope: \"node\" is none of container, pod");
    let options = |option: &str| with(&format!("topologyManagerPolicyOptions: {{{option}}}"));
    check(&options("max-allowable-numa-nodes: '9'"), "max-allowable-numa-nodes: \"9\" is not supported");
    check(&options("prefer-closest-numa-nodes: 'yes'"), "true or false is expected");
    check(&options("nearest: 'true'"), "topologyManagerPolicyOptions: \"nearest=true\" is none of");
    check(&with("memorySwap: {swapBehavior: LimitedSwap}"), "memorySwap.swapBehavior: \"LimitedSwap\"");
    check(&with("nodeStatusUpdateFrequency: soon"), "nodeStatusUpdateFrequency: \"soon\" is no time");
    check(&with("tlsCipherSuites: [RC4]"), "tlsCipherSuites: \"RC4\" is none of");
    check(&with("registerWithTaints: [{key: a, effect: Never}]"), "registerWithTaints[0].effect");
    check(&with("registerWithTaints: [{key: a, efect: NoExecute}]"), "registerWithTaints: ");
    let policy = "imagePullCredentialsVerificationPolicy: Sometimes";
    check(&with(policy), "imagePullCredentialsVerificationPolicy: \"Sometimes\" is not known");
    check(&with("enforceNodeAllocatable: [pods, kube-reserved]"), "enforceNodeAllocatable: ");
}
