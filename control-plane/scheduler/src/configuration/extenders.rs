//! `extenders` of a KubeSchedulerConfiguration: where they are, and what they have a say in.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use hawser_api::AnyCertificate;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde::Deserialize;

use crate::{
    extender::{Address, Extender, Http, MOST_EXTENDERS, Settings},
    profile::Profile,
};

/// As upstream.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExtenderFile {
    #[serde(default)]
    url_prefix: String,
    #[serde(default)]
    filter_verb: String,
    #[serde(default)]
    preempt_verb: String,
    #[serde(default)]
    prioritize_verb: String,
    #[serde(default)]
    weight: i64,
    #[serde(default)]
    bind_verb: String,
    #[serde(default, rename = "enableHTTPS")]
    enable_https: bool,
    tls_config: Option<TlsFile>,
    http_timeout: Option<String>,
    #[serde(default)]
    node_cache_capable: bool,
    #[serde(default)]
    managed_resources: Vec<ManagedResource>,
    #[serde(default)]
    ignorable: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TlsFile {
    insecure: bool,
    server_name: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    ca_file: Option<String>,
    cert_data: Option<String>,
    key_data: Option<String>,
    ca_data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ManagedResource {
    name: String,
    #[serde(default)]
    ignored_by_scheduler: bool,
}

/// The extenders of a file. Resources that they alone account for are taken off the profiles' checks.
pub(super) fn extenders(
    files: Vec<ExtenderFile>,
    profiles: &mut [Arc<Profile>],
) -> anyhow::Result<Vec<Arc<Extender>>> {
    ensure!(files.len() <= MOST_EXTENDERS, "extenders: {} are more than {MOST_EXTENDERS}", files.len());
    let binders = files.iter().filter(|file| !file.bind_verb.is_empty()).count();
    ensure!(
        binders < 2,
        "extenders: found {binders} extenders implementing bind, only one can implement bind"
    );
    let mut all = Vec::new();
    let mut managed: Vec<String> = Vec::new();
    for (index, file) in files.into_iter().enumerate() {
        let path = format!("extenders[{index}]");
        for (index, resource) in file.managed_resources.iter().enumerate() {
            let path = format!("{path}.managedResources[{index}].name");
            ensure!(resource.name.contains('/'), "{path}: {:?} is no extended resource", resource.name);
            ensure!(
                !managed.contains(&resource.name),
                "{path}: {:?} is managed by another extender",
                resource.name
            );
            managed.push(resource.name.clone());
        }
        let ignored = file.managed_resources.iter().filter(|resource| resource.ignored_by_scheduler);
        for resource in ignored {
            profiles.iter_mut().for_each(|profile| {
                Arc::make_mut(profile).ignored_resources.push(resource.name.clone());
            });
        }
        all.push(Arc::new(extender(file).context(path)?));
    }
    Ok(all)
}

fn extender(file: ExtenderFile) -> anyhow::Result<Extender> {
    let address = Address::parse(&file.url_prefix).context("urlPrefix")?;
    ensure!(
        file.prioritize_verb.is_empty() || file.weight > 0,
        "weight: must be positive with a prioritizeVerb"
    );
    let timeout = match file.http_timeout.as_deref() {
        None => DEFAULT_TIMEOUT,
        Some(text) => duration(text).context("httpTimeout")?,
    };
    let timeout = if timeout.is_zero() { DEFAULT_TIMEOUT } else { timeout };
    let tls_file = file.tls_config.unwrap_or_default();
    let tls = match address.https {
        true => Some(tls(&tls_file, file.enable_https).context("tlsConfig")?),
        false => None,
    };
    let settings = Settings {
        filter_verb: file.filter_verb,
        prioritize_verb: file.prioritize_verb,
        preempt_verb: file.preempt_verb,
        bind_verb: file.bind_verb,
        weight: file.weight,
        node_cache_capable: file.node_cache_capable,
        managed_resources: file.managed_resources.into_iter().map(|resource| resource.name).collect(),
        ignorable: file.ignorable,
    };
    let server_name = tls_file.server_name.filter(|name| !name.is_empty());
    Ok(Extender { settings, http: Http::new(address, server_name, tls, timeout) })
}

fn tls(file: &TlsFile, enabled: bool) -> anyhow::Result<Arc<ClientConfig>> {
    let authority = pem(file.ca_data.as_ref(), file.ca_file.as_ref()).context("caFile")?;
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match authority {
        // As upstream: with enableHTTPS and no authority, any certificate will do.
        None if file.insecure || enabled => {
            let anyone = Arc::new(AnyCertificate::new(&provider));
            builder.dangerous().with_custom_certificate_verifier(anyone)
        }
        None => {
            bail!("caFile: is missing, and so is insecure: the extender's certificate could not be checked")
        }
        Some(_) if file.insecure => bail!("insecure: is no use with a caFile"),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&authority) {
                roots.add(certificate.context("caFile: not PEM")?).context("caFile: no certificate")?;
            }
            ensure!(!roots.is_empty(), "caFile: holds no certificate");
            builder.with_root_certificates(roots)
        }
    };
    let certificate = pem(file.cert_data.as_ref(), file.cert_file.as_ref()).context("certFile")?;
    let key = pem(file.key_data.as_ref(), file.key_file.as_ref()).context("keyFile")?;
    let config = match (certificate, key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificate)
                .collect::<Result<_, _>>()
                .context("certFile: not PEM")?;
            let key = PrivateKeyDer::from_pem_slice(&key).context("keyFile: not PEM")?;
            builder.with_client_auth_cert(chain, key).context("certFile")?
        }
        _ => bail!("certFile: certificate and key go together"),
    };
    Ok(Arc::new(config))
}

/// Data, in base64, comes before a file.
fn pem(data: Option<&String>, file: Option<&String>) -> anyhow::Result<Option<Vec<u8>>> {
    let given = |text: &&String| !text.is_empty();
    if let Some(data) = data.filter(given) {
        return Ok(Some(STANDARD.decode(data).context("not base64")?));
    }
    let Some(file) = file.filter(given) else {
        return Ok(None);
    };
    Ok(Some(fs::read(file).with_context(|| format!("cannot read {file}"))?))
}

/// Reads a duration as Go writes it: `1m30s`, `1.5s`, `100ms`.
pub(super) fn duration(text: &str) -> anyhow::Result<Duration> {
    let (mut sum, mut rest) = (Duration::ZERO, text);
    ensure!(!text.is_empty(), "is empty");
    while !rest.is_empty() && rest != "0" {
        let digits =
            rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|letter: char| letter.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => bail!("{text:?} is no duration"),
        };
        let number: f64 = number.parse().with_context(|| format!("{text:?} is no duration"))?;
        let part = Duration::try_from_secs_f64(number * seconds);
        sum = part
            .ok()
            .and_then(|part| sum.checked_add(part))
            .with_context(|| format!("{text:?} is too long"))?;
        rest = after;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let millis = |text: &str| duration(text).map(|duration| duration.as_millis());
        for (text, expected) in
            [("100ms", 100), ("1m30s", 90_000), ("1.5s", 1500), ("0", 0), ("0s", 0), ("1h", 3_600_000)]
        {
            assert_eq!(millis(text).unwrap(), expected, "{text}");
        }
        for text in ["", "5", "s", "5 s", "-5s", "5x"] {
            assert!(millis(text).is_err(), "{text}");
        }
    }
}
