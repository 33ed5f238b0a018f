//! Configuration files, as users write them.

use super::*;
use crate::profile::{Plugin, StrategyKind};

const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

fn read(text: &str) -> anyhow::Result<Config> {
    Config::default().with_file(&format!("{HEAD}{text}"))
}

#[track_caller]
fn refused(text: &str, error: &str) {
    let found = read(text).err().map(|error| format!("{error:#}"));
    assert_eq!(found.as_deref(), Some(error));
}

#[test]
fn profiles_switch_plugins_and_set_weights() {
    let config = read(
        "podInitialBackoffSeconds: 2
percentageOfNodesToScore: 50
profiles:
- schedulerName: packing
  plugins:
    score:
      disabled:
      - name: NodeResourcesBalancedAllocation
      enabled:
      - name: NodeResourcesFit
        weight: 7
    filter:
      disabled: [{name: NodePorts}]
    postFilter:
      disabled: [{name: '*'}]
  pluginConfig:
  - name: NodeResourcesFit
    args:
      apiVersion: kubescheduler.config.k8s.io/v1
      kind: NodeResourcesFitArgs
      scoringStrategy:
        type: RequestedToCapacityRatio
        resources: [{name: cpu, weight: 3}, {name: example.com/gpu}]
        requestedToCapacityRatio:
          shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]
  - name: InterPodAffinity
    args: {hardPodAffinityWeight: 5}
- schedulerName: bare
  plugins: {multiPoint: {disabled: [{name: '*'}], enabled: [{name: NodeResourcesFit, weight: 2}]}}
",
    )
    .unwrap();
    assert_eq!(config.backoff_first, Duration::from_secs(2));
    let [packing, bare] = &config.profiles.0[..] else { panic!("two profiles") };
    assert_eq!(packing.scheduler_name, "packing");
    assert_eq!((packing.weights.balanced_allocation, packing.weights.resources_fit), (0, 7));
    assert!(!packing.filters.contains(Plugin::NodePorts) && packing.filters.contains(Plugin::NodeAffinity));
    assert!(!packing.preempts);
    assert_eq!(packing.hard_pod_affinity_weight, 5);
    assert_eq!(packing.fit.kind, StrategyKind::RequestedToCapacityRatio(vec![(0, 0), (100, 100)]));
    assert_eq!(packing.fit.resources, [("cpu".to_owned(), 3), ("example.com/gpu".to_owned(), 1)]);
    assert!(
        bare.filters.contains(Plugin::NodeResourcesFit) && !bare.filters.contains(Plugin::InterPodAffinity)
    );
    assert_eq!((bare.weights.resources_fit, bare.weights.taint_toleration), (2, 0));
    assert!(!bare.preempts);
}

#[test]
fn extenders_are_read_and_take_their_resources_off_the_checks() {
    let config = read(
        "extenders:
- urlPrefix: https://127.0.0.1:8443/gpu
  filterVerb: filter
  prioritizeVerb: score
  weight: 2
  bindVerb: bind
  enableHTTPS: true
  httpTimeout: 100ms
  nodeCacheCapable: true
  managedResources: [{name: example.com/gpu, ignoredByScheduler: true}, {name: example.com/nic}]
  ignorable: true
",
    )
    .unwrap();
    let settings = &config.extenders.0[0].settings;
    assert_eq!(
        (settings.filter_verb.as_str(), settings.preempt_verb.as_str(), settings.weight),
        ("filter", "", 2)
    );
    assert!(settings.node_cache_capable && settings.ignorable);
    assert_eq!(settings.managed_resources, ["example.com/gpu", "example.com/nic"]);
    assert!(
        config.profiles.0[0].ignores("example.com/gpu") && !config.profiles.0[0].ignores("example.com/nic")
    );
}

#[test]
fn errors_name_the_field() {
    let plugins = |plugins: &str| format!("profiles: [{{plugins: {plugins}}}]");
    let args =
        |name: &str, args: &str| format!("profiles: [{{pluginConfig: [{{name: {name}, args: {args}}}]}}]");
    let extender = |fields: &str| format!("extenders: [{{urlPrefix: 'http://127.0.0.1', {fields}}}]");
    refused(
        &extender("prioritizeVerb: score"),
        "extenders[0]: weight: must be positive with a prioritizeVerb",
    );
    refused(&extender("httpTimeout: 5"), "extenders[0]: httpTimeout: \"5\" is no duration");
    refused(
        &extender("managedResources: [{name: cpu}]"),
        "extenders[0].managedResources[0].name: \"cpu\" is no extended resource",
    );
    refused(
        "extenders: [{urlPrefix: 'http://a', bindVerb: b}, {urlPrefix: 'http://b', bindVerb: b}]",
        "extenders: found 2 extenders implementing bind, only one can implement bind",
    );
    refused(
        "extenders: [{urlPrefix: 'https://a'}]",
        "extenders[0]: tlsConfig: caFile: is missing, and so is insecure: the extender's certificate could not be checked",
    );
    refused("extenders: [{}]", "extenders[0]: urlPrefix: \"\" is no URL: empty string");
    refused("podInitialBackoffSeconds: 0", "podInitialBackoffSeconds: must be greater than 0");
    refused(
        "profiles: [{schedulerName: a}, {schedulerName: a}]",
        "profiles[1].schedulerName: \"a\" is taken by another profile",
    );
    refused(
        &plugins("{filter: {enabled: [{name: Coscheduling}]}}"),
        "profiles[0]: plugins: filter: enabled[0].name: no plugin is named \"Coscheduling\"",
    );
    refused(
        &plugins("{score: {enabled: [{name: NodeAffinity, weight: -1}]}}"),
        "profiles[0]: plugins: score: enabled[0].weight: -1 is out of range",
    );
    refused(
        &args("InterPodAffinity", "{hardPodAffinityWeight: 101}"),
        "profiles[0]: pluginConfig[0]: args.hardPodAffinityWeight: not in valid range [0, 100]",
    );
    refused(
        &args("NodeResourcesFit", "{scoringStrategy: {type: Fullest}}"),
        "profiles[0]: pluginConfig[0]: args.scoringStrategy.type: \"Fullest\" is unknown",
    );
    refused(
        &args("NodeName", "{}"),
        "profiles[0]: pluginConfig[0]: name: no plugin with arguments is named \"NodeName\"",
    );
    let unknown = read("nodes: 3").unwrap_err();
    assert!(format!("{unknown:#}").contains("unknown field `nodes`"), "{unknown:#}");
    let misspelt = read(&args("DefaultPreemption", "{minCandidates: 3}")).unwrap_err();
    assert!(format!("{misspelt:#}").contains("unknown field `minCandidates`"), "{misspelt:#}");
}
