//! Parts of a KubeletConfiguration that have fields of their own below them, or belong together.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use hawser_kubelet::{
    Config, images::access::Verification, server::TlsLimits, shutdown::plan::Grace, users::IdPool,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;
use tracing::warn;

use super::{
    Given, choose_path,
    fields::{Fields, time},
};
use crate::options::{Options, bytes};

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Authentication {
    x509: X509,
    webhook: TokenReviews,
    anonymous: Anonymous,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct X509 {
    #[serde(rename = "clientCAFile")]
    client_ca_file: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TokenReviews {
    enabled: Option<bool>,
    #[serde(rename = "cacheTTL")]
    cache_ttl: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Anonymous {
    enabled: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Authorization {
    mode: Option<String>,
    webhook: AccessReviews,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AccessReviews {
    #[serde(rename = "cacheAuthorizedTTL")]
    cache_authorized_ttl: Option<String>,
    #[serde(rename = "cacheUnauthorizedTTL")]
    cache_unauthorized_ttl: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PriorityGrace {
    priority: i32,
    shutdown_grace_period_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Taint {
    key: String,
    value: Option<String>,
    effect: String,
    #[serde(rename = "timeAdded")]
    _time_added: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MemoryReservation {
    numa_node: u32,
    limits: BTreeMap<String, Quantity>,
}

pub(super) fn server(
    fields: &mut Fields<'_>,
    options: &mut Options,
    config: &mut Config,
) -> anyhow::Result<()> {
    if let Some(address) = fields.text("address")? {
        let address: IpAddr = address.parse().with_context(|| format!("address: {address:?}"))?;
        config.server.address = Some(address);
    }
    choose_path(fields, "tls_cert_file", "tlsCertFile", &mut options.tls_cert_file)?;
    choose_path(fields, "tls_private_key_file", "tlsPrivateKeyFile", &mut options.tls_private_key_file)?;
    let only_tls13 = match fields.text("tlsMinVersion")?.as_deref() {
        // Older ones than TLS 1.2 are never spoken.
        None | Some("VersionTLS10" | "VersionTLS11" | "VersionTLS12") => false,
        Some("VersionTLS13") => true,
        Some(other) => bail!("tlsMinVersion: {other:?} is none of VersionTLS12, VersionTLS13"),
    };
    let suites = fields.take("tlsCipherSuites")?.unwrap_or_default();
    config.server.tls =
        TlsLimits::new(only_tls13, suites).map_err(|error| anyhow::anyhow!("tlsCipherSuites: {error}"))?;
    let missing = config.server.tls.missing();
    if !missing.is_empty() {
        warn!(?missing, "tlsCipherSuites: these are not here, and nobody is served with them");
    }

    let Authentication { x509, webhook, anonymous } = fields.take("authentication")?.unwrap_or_default();
    if let Some(file) = x509.client_ca_file.filter(|file| !file.is_empty())
        && !fields.has_flag("client_ca_file")
    {
        options.client_ca_file = Some(file.into());
    }
    let reviews = &mut config.server.reviews;
    reviews.tokens = webhook.enabled.unwrap_or(reviews.tokens);
    lasting("authentication.webhook.cacheTTL", webhook.cache_ttl, &mut reviews.token_ttl)?;
    if anonymous.enabled == Some(true) {
        warn!("authentication.anonymous.enabled has no meaning here: nobody is served without a name");
    }
    let Authorization { mode, webhook } = fields.take("authorization")?.unwrap_or_default();
    let mode = mode.unwrap_or_default();
    ensure!(
        mode.is_empty() || mode == "Webhook",
        "authorization.mode: {mode:?} is not supported: the API server says who may do what (Webhook)"
    );
    let (allowed, refused) = (webhook.cache_authorized_ttl, webhook.cache_unauthorized_ttl);
    lasting("authorization.webhook.cacheAuthorizedTTL", allowed, &mut reviews.allowed_ttl)?;
    lasting("authorization.webhook.cacheUnauthorizedTTL", refused, &mut reviews.refused_ttl)
}

fn lasting(name: &str, text: Option<String>, target: &mut Duration) -> anyhow::Result<()> {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        let given = time(&text).with_context(|| name.to_owned())?;
        if !given.is_zero() {
            *target = given;
        }
    }
    Ok(())
}

/// After `maxPods`. What the machine says of its users is read later.
pub(super) fn users(fields: &mut Fields<'_>, options: &Options, config: &mut Config) -> anyhow::Result<()> {
    let Some(users) = fields.take::<UserNamespaces>("userNamespaces")? else { return Ok(()) };
    if let Some(each) = users.ids_per_pod {
        let pool = IdPool::new(each, options.max_pods, "", "");
        config.users = pool.map_err(|why| anyhow::anyhow!("userNamespaces.{why}"))?;
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UserNamespaces {
    ids_per_pod: Option<u32>,
}

pub(super) fn shutdown(fields: &mut Fields<'_>, given: &Given, options: &mut Options) -> anyhow::Result<()> {
    let total = fields.time("shutdownGracePeriod")?;
    let critical = fields.time("shutdownGracePeriodCriticalPods")?;
    let by_priority: Vec<PriorityGrace> =
        fields.take("shutdownGracePeriodByPodPriority")?.unwrap_or_default();
    ensure!(
        by_priority.is_empty() || total.or(critical).is_none(),
        "shutdownGracePeriodByPodPriority: cannot be set with shutdownGracePeriod"
    );
    let flags = [
        "shutdown_grace_period",
        "shutdown_grace_period_critical_pods",
        "shutdown_grace_period_by_pod_priority",
    ];
    // They say one thing together.
    if flags.iter().any(|flag| given.has(flag)) {
        return Ok(());
    }
    options.shutdown_grace_period = total;
    options.shutdown_grace_period_critical_pods = critical;
    let grace = |grace: PriorityGrace| Grace {
        priority: grace.priority,
        time: Duration::from_secs(grace.shutdown_grace_period_seconds),
    };
    options.shutdown_grace_period_by_pod_priority = by_priority.into_iter().map(grace).collect();
    options.shutdown_graces().map(drop).context("shutdownGracePeriod")
}

pub(super) fn images(
    fields: &mut Fields<'_>,
    options: &mut Options,
    config: &mut Config,
) -> anyhow::Result<()> {
    fields.set(
        "image_gc_high_threshold",
        "imageGCHighThresholdPercent",
        &mut options.image_gc_high_threshold,
    )?;
    fields.set(
        "image_gc_low_threshold",
        "imageGCLowThresholdPercent",
        &mut options.image_gc_low_threshold,
    )?;
    ensure!(options.image_gc_high_threshold <= 100, "imageGCHighThresholdPercent: is more than 100");
    ensure!(
        options.image_gc_low_threshold < options.image_gc_high_threshold,
        "imageGCLowThresholdPercent: must be less than imageGCHighThresholdPercent"
    );
    let collecting = &mut config.image_gc;
    collecting.min_age = fields.time("imageMinimumGCAge")?.unwrap_or(collecting.min_age);
    collecting.max_age = fields.time("imageMaximumGCAge")?;
    ensure!(
        collecting.max_age.is_none_or(|age| age > collecting.min_age),
        "imageMaximumGCAge: must be greater than imageMinimumGCAge"
    );
    if let Some(rate) = fields.take("registryPullQPS")? {
        config.registry_rate.per_second = rate;
    }
    if let Some(burst) = fields.take::<u32>("registryBurst")?.filter(|burst| *burst > 0) {
        config.registry_rate.burst = burst;
    }
    let policy = fields.text("imagePullCredentialsVerificationPolicy")?.unwrap_or_default();
    let listed = fields.take("preloadedImagesVerificationAllowlist")?.unwrap_or_default();
    config.image_verification = Verification::parse(&policy, listed).map_err(anyhow::Error::msg)?;
    let one_by_one: Option<bool> = fields.take("serializeImagePulls")?;
    let most: Option<usize> = fields.take("maxParallelImagePulls")?;
    ensure!(most != Some(0), "maxParallelImagePulls: must be more than 0");
    ensure!(
        one_by_one != Some(true) || most.unwrap_or(1) == 1,
        "maxParallelImagePulls: cannot be larger than 1 unless serializeImagePulls is false"
    );
    config.max_parallel_pulls = match (one_by_one, most) {
        (Some(true), _) => 1,
        (_, Some(most)) => most,
        // No bound is asked for: more at a time than there are pods would be of no use.
        (Some(false), None) => options.max_pods as usize,
        (None, None) => config.max_parallel_pulls,
    };
    Ok(())
}

pub(super) fn memory(fields: &mut Fields<'_>, options: &mut Options) -> anyhow::Result<()> {
    if let Some(policy) = fields.text_unless("memory_manager_policy", "memoryManagerPolicy")? {
        options.memory_manager_policy = choice("memoryManagerPolicy", &policy.to_lowercase())?;
    }
    let reservations: Option<Vec<MemoryReservation>> = fields.unless("reserved_memory", "reservedMemory")?;
    let Some(reservations) = reservations else { return Ok(()) };
    let amounts = |reservation: MemoryReservation| {
        let limits = reservation.limits.into_iter().map(|(name, amount)| {
            ensure!(
                name == "memory" || name.starts_with("hugepages-"),
                "{name:?} cannot be reserved; memory and hugepages-<size> can"
            );
            Ok((name, bytes(&amount.0)?))
        });
        Ok((reservation.numa_node, limits.collect::<anyhow::Result<_>>()?))
    };
    let reserved: anyhow::Result<_> = reservations.into_iter().map(amounts).collect();
    options.reserved_memory = reserved.context("reservedMemory")?;
    Ok(())
}

/// As the flag spells them.
pub(super) fn taints(taints: Vec<Taint>) -> anyhow::Result<Vec<String>> {
    let text = |(index, taint): (usize, Taint)| {
        let Taint { key, value, effect, .. } = taint;
        ensure!(!key.is_empty(), "registerWithTaints[{index}].key: is empty");
        ensure!(
            ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect.as_str()),
            "registerWithTaints[{index}].effect: {effect:?} is none of NoSchedule, PreferNoSchedule, NoExecute"
        );
        let value = value.filter(|value| !value.is_empty()).map(|value| format!("={value}"));
        Ok(format!("{key}{}:{effect}", value.unwrap_or_default()))
    };
    taints.into_iter().enumerate().map(text).collect()
}

/// One of the values that the flag of that meaning has.
pub(super) fn choice<T: ValueEnum>(name: &str, text: &str) -> anyhow::Result<T> {
    T::from_str(text, false).map_err(|_| {
        let all: Vec<String> = T::value_variants()
            .iter()
            .filter_map(|value| Some(value.to_possible_value()?.get_name().to_owned()))
            .collect();
        anyhow::anyhow!("{name}: {text:?} is none of {}", all.join(", "))
    })
}
