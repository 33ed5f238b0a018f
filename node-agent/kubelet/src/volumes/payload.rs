//! The files of ConfigMap, Secret, downward API and projected volumes, computed from objects.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume,
};

use super::VolumeError;
use super::atomic_writer::{Payload, PayloadFile};
use super::pod_certificate::Bundles;
use super::trust_bundle::Roots;
use crate::container::downward::Fields;
use crate::container::env::Lookup;

const DEFAULT_MODE: i32 = 0o644;

/// The tokens that projections ask for. `None`: there is none as long as the API is away, and no file.
pub type Tokens = BTreeMap<TokenKey, Option<String>>;

/// What was read from the API for a volume, so that computing its files does no I/O.
#[derive(Debug, Default)]
pub struct Fetched {
    pub tokens: Tokens,
    pub roots: Roots,
    pub bundles: Bundles,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenKey {
    pub audience: Option<String>,
    pub expiration_seconds: i64,
}

impl TokenKey {
    pub fn of(projection: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: projection.audience.clone().filter(|a| !a.is_empty()),
            expiration_seconds: projection.expiration_seconds.unwrap_or(3600),
        }
    }
}

/// The tokens that a pod's volumes need.
pub fn tokens_of(volume: &Volume) -> Vec<TokenKey> {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    sources.filter_map(|s| s.service_account_token.as_ref()).map(TokenKey::of).collect()
}

/// The token in the volume as it is, if there is one.
pub fn token_in(dir: &Path, volume: &Volume, key: &TokenKey) -> Option<String> {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    let mut projections = sources.filter_map(|s| s.service_account_token.as_ref());
    let projection = projections.find(|projection| TokenKey::of(projection) == *key)?;
    std::fs::read_to_string(dir.join(&projection.path)).ok()
}

/// The volume's files; `None` for volumes that are not made of objects.
pub fn payload(
    volume: &Volume,
    fields: &Fields<'_>,
    lookup: &dyn Lookup,
    fetched: &Fetched,
) -> Result<Option<Payload>, VolumeError> {
    let mut out = Payload::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional == Some(true);
        let data = config_map(fields, lookup, &source.name, optional)?;
        project("configmap", &source.name, data, source.items.as_deref(), mode, optional, &mut out)?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional == Some(true);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let data = secret(fields, lookup, name, optional)?;
        project("secret", name, data, source.items.as_deref(), mode, optional, &mut out)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        downward(fields, source.items.as_deref().unwrap_or_default(), mode, &mut out)?;
    } else if let Some(source) = &volume.projected {
        projected(fields, lookup, fetched, source, &mut out)?;
    } else {
        return Ok(None);
    }
    Ok(Some(out))
}

type Data = BTreeMap<String, Vec<u8>>;

fn config_map(
    fields: &Fields<'_>,
    lookup: &dyn Lookup,
    name: &str,
    optional: bool,
) -> Result<Data, VolumeError> {
    let Some(object) = lookup.config_map(fields.pod.namespace(), name) else {
        return absent("configmap", name, optional);
    };
    let texts = object.data.iter().flatten().map(|(key, text)| (key.clone(), text.clone().into_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone()));
    Ok(texts.chain(binary).collect())
}

fn secret(fields: &Fields<'_>, lookup: &dyn Lookup, name: &str, optional: bool) -> Result<Data, VolumeError> {
    let Some(object) = lookup.secret(fields.pod.namespace(), name) else {
        return absent("secret", name, optional);
    };
    Ok(object.data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone())).collect())
}

fn absent(kind: &'static str, name: &str, optional: bool) -> Result<Data, VolumeError> {
    if optional {
        return Ok(Data::new());
    }
    Err(VolumeError::ObjectMissing { kind, name: name.to_owned() })
}

fn project(
    kind: &'static str,
    name: &str,
    data: Data,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
    out: &mut Payload,
) -> Result<(), VolumeError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        out.extend(data.into_iter().map(|(key, content)| (PathBuf::from(key), file(content, mode))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(content) => {
                out.insert(PathBuf::from(&item.path), file(content.clone(), item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => {
                let (name, key) = (name.to_owned(), item.key.clone());
                return Err(VolumeError::KeyMissing { kind, name, key });
            }
        }
    }
    Ok(())
}

fn file(content: Vec<u8>, mode: i32) -> PayloadFile {
    PayloadFile { content, mode: mode.unsigned_abs(), uid: None }
}

fn downward(
    fields: &Fields<'_>,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    out: &mut Payload,
) -> Result<(), VolumeError> {
    let nobody = Container::default();
    for item in items {
        let text = if let Some(selector) = &item.field_ref {
            fields.field(&selector.field_path)
        } else if let Some(selector) = &item.resource_field_ref {
            fields.resource(&nobody, selector)
        } else {
            continue;
        };
        let text = text.map_err(VolumeError::Field)?;
        out.insert(PathBuf::from(&item.path), file(text.into_bytes(), item.mode.unwrap_or(mode)));
    }
    Ok(())
}

fn projected(
    fields: &Fields<'_>,
    lookup: &dyn Lookup,
    fetched: &Fetched,
    volume: &ProjectedVolumeSource,
    out: &mut Payload,
) -> Result<(), VolumeError> {
    let mode = volume.default_mode.unwrap_or(DEFAULT_MODE);
    for (index, source) in volume.sources.iter().flatten().enumerate() {
        if let Some(source) = &source.config_map {
            let optional = source.optional == Some(true);
            let data = config_map(fields, lookup, &source.name, optional)?;
            project("configmap", &source.name, data, source.items.as_deref(), mode, optional, out)?;
        }
        if let Some(source) = &source.secret {
            let optional = source.optional == Some(true);
            let data = secret(fields, lookup, &source.name, optional)?;
            project("secret", &source.name, data, source.items.as_deref(), mode, optional, out)?;
        }
        if let Some(source) = &source.downward_api {
            downward(fields, source.items.as_deref().unwrap_or_default(), mode, out)?;
        }
        if let Some(source) = &source.service_account_token {
            let key = TokenKey::of(source);
            if let Some(token) = fetched.tokens.get(&key).ok_or(VolumeError::NoToken)? {
                out.insert(PathBuf::from(&source.path), own_file(fields, token.clone(), mode));
            }
        }
        if let Some(source) = &source.cluster_trust_bundle {
            let roots = fetched.roots.get(&source.path).cloned().unwrap_or_default();
            out.insert(PathBuf::from(&source.path), file(roots.into_bytes(), mode));
        }
        if let Some(source) = &source.pod_certificate {
            let Some(bundle) = fetched.bundles.get(&index) else { continue };
            for (path, content) in [
                (&source.credential_bundle_path, bundle.key.clone() + &bundle.chain),
                (&source.key_path, bundle.key.clone()),
                (&source.certificate_chain_path, bundle.chain.clone()),
            ] {
                if let Some(path) = path.as_deref().filter(|path| !path.is_empty()) {
                    out.insert(PathBuf::from(path), own_file(fields, content, mode));
                }
            }
        }
    }
    Ok(())
}

/// Readable by the pod's user alone where all its containers run as one, as upstream does.
fn own_file(fields: &Fields<'_>, text: String, mode: i32) -> PayloadFile {
    let content = text.into_bytes();
    let spec = fields.pod.spec();
    if spec.security_context.as_ref().and_then(|c| c.fs_group).is_some() {
        return PayloadFile { content, mode: 0o600, uid: None };
    }
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = fields.pod.containers.iter().map(|c| {
        let own = c.spec.security_context.as_ref().and_then(|s| s.run_as_user);
        own.or(of_pod)
    });
    let first = users.next().flatten();
    match first.and_then(|user| u32::try_from(user).ok()) {
        Some(uid) if users.all(|user| user == first) => PayloadFile { content, mode: 0o600, uid: Some(uid) },
        _ => file(content, mode),
    }
}
