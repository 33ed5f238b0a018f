//! KubeSchedulerConfiguration (`kubescheduler.config.k8s.io/v1`): profiles, plugins with weights, and their arguments.
//!
//! Read once into [`Profile`]s and extenders. Errors name the field. Unknown fields and plugins are refused; settings of
//! upstream's process that mean nothing here are read and have no effect.

mod args;
mod extenders;
mod plugins;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{config::Config, extender::Extender, profile::Profile};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
    profiles: Option<Vec<ProfileFile>>,
    #[serde(default)]
    extenders: Vec<extenders::ExtenderFile>,
    /// About upstream's process, not about where pods go.
    #[serde(rename = "parallelism")]
    _parallelism: Option<Value>,
    #[serde(rename = "leaderElection")]
    _leader_election: Option<Value>,
    #[serde(rename = "clientConnection")]
    _client_connection: Option<Value>,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: Option<bool>,
    #[serde(rename = "enableContentionProfiling")]
    _enable_contention_profiling: Option<bool>,
    #[serde(rename = "delayCacheUntilActive")]
    _delay_cache_until_active: Option<bool>,
    /// All nodes are scored here, whatever it says.
    #[serde(rename = "percentageOfNodesToScore")]
    _percentage_of_nodes_to_score: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProfileFile {
    scheduler_name: Option<String>,
    #[serde(rename = "percentageOfNodesToScore")]
    _percentage_of_nodes_to_score: Option<i32>,
    #[serde(default)]
    plugins: plugins::Plugins,
    #[serde(default)]
    plugin_config: Vec<args::PluginConfig>,
}

/// The profiles of a scheduler; one with upstream's defaults unless a file says otherwise.
#[derive(Clone, Debug)]
pub struct Profiles(pub(crate) Vec<Arc<Profile>>);

/// Programs outside that have a say, in their order; none unless a file says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Extenders(pub(crate) Vec<Arc<Extender>>);

impl Default for Profiles {
    fn default() -> Self {
        Self(vec![Arc::new(Profile::default())])
    }
}

impl Config {
    /// Takes over what a KubeSchedulerConfiguration (YAML or JSON) says. The error names the field.
    pub fn with_file(self, text: &str) -> anyhow::Result<Self> {
        let file: File = serde_yaml_ng::from_str(text).context("no KubeSchedulerConfiguration")?;
        let version = &file.api_version;
        ensure!(version == "kubescheduler.config.k8s.io/v1", "apiVersion: {version:?} is not supported");
        ensure!(file.kind == "KubeSchedulerConfiguration", "kind: {:?} is no configuration", file.kind);
        let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
        let backoff_first = seconds(file.pod_initial_backoff_seconds, self.backoff_first);
        let backoff_last = seconds(file.pod_max_backoff_seconds, self.backoff_last);
        ensure!(!backoff_first.is_zero(), "podInitialBackoffSeconds: must be greater than 0");
        ensure!(
            backoff_last >= backoff_first,
            "podMaxBackoffSeconds: must be greater than or equal to podInitialBackoffSeconds"
        );
        let mut profiles = match file.profiles {
            Some(files) => profiles(files)?,
            None => self.profiles,
        };
        let extenders = Extenders(extenders::extenders(file.extenders, &mut profiles.0)?);
        Ok(Self { backoff_first, backoff_last, profiles, extenders, ..self })
    }
}

fn profiles(files: Vec<ProfileFile>) -> anyhow::Result<Profiles> {
    ensure!(!files.is_empty(), "profiles: at least one is required");
    let mut profiles: Vec<Arc<Profile>> = Vec::new();
    for (index, file) in files.into_iter().enumerate() {
        let path = format!("profiles[{index}]");
        let profile = profile(file).with_context(|| path.clone())?;
        let name = &profile.scheduler_name;
        ensure!(!name.is_empty(), "{path}.schedulerName: is empty");
        let known = profiles.iter().any(|other| other.scheduler_name == *name);
        ensure!(!known, "{path}.schedulerName: {name:?} is taken by another profile");
        profiles.push(Arc::new(profile));
    }
    Ok(Profiles(profiles))
}

fn profile(file: ProfileFile) -> anyhow::Result<Profile> {
    let mut profile = Profile::default();
    if let Some(name) = file.scheduler_name {
        profile.scheduler_name = name;
    }
    file.plugins.apply(&mut profile).context("plugins")?;
    for (index, config) in file.plugin_config.into_iter().enumerate() {
        config.apply(&mut profile).with_context(|| format!("pluginConfig[{index}]"))?;
    }
    Ok(profile)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
