//! One volume of a CSI driver, as a pod names it or a PersistentVolume describes it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolume, SecretReference, Volume};
use sha2::{Digest, Sha256};

use super::driver::proto::VolumeCapability;
use super::driver::proto::volume_capability::access_mode::Mode;
use super::driver::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

#[derive(Clone, Debug, PartialEq)]
pub struct CsiVolume {
    /// Of the PersistentVolume, or of the pod's volume.
    pub name: String,
    pub driver: String,
    pub handle: String,
    pub fs_type: String,
    pub read_only: bool,
    pub attributes: BTreeMap<String, String>,
    pub mount_options: Vec<String>,
    pub access_mode: Mode,
    /// A device, not a file system.
    pub is_block: bool,
    /// Named by the pod itself: it lives as long as the pod.
    pub is_inline: bool,
    pub stage_secret: Option<SecretReference>,
    pub publish_secret: Option<SecretReference>,
    pub expand_secret: Option<SecretReference>,
}

impl CsiVolume {
    /// `None` when the PersistentVolume is none of a CSI driver.
    pub fn of_persistent(volume: &PersistentVolume, read_only: bool) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref()?;
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        Some(Self {
            name: volume.metadata.name.clone().unwrap_or_default(),
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            read_only: read_only || source.read_only == Some(true),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            access_mode: access_mode(modes),
            is_block: spec.volume_mode.as_deref() == Some("Block"),
            is_inline: false,
            stage_secret: source.node_stage_secret_ref.clone(),
            publish_secret: source.node_publish_secret_ref.clone(),
            expand_secret: source.node_expand_secret_ref.clone(),
        })
    }

    /// A volume that the pod itself describes. Its handle follows from pod and name.
    pub fn inline(volume: &Volume, source: &CSIVolumeSource, namespace: &str, pod_uid: &str) -> Self {
        let handle = digest(&format!("{namespace}{pod_uid}{}", volume.name));
        let secret = source.node_publish_secret_ref.as_ref().map(|reference| SecretReference {
            name: Some(reference.name.clone()),
            namespace: Some(namespace.to_owned()),
        });
        Self {
            name: volume.name.clone(),
            driver: source.driver.clone(),
            handle: format!("csi-{handle}"),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            read_only: source.read_only == Some(true),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            mount_options: Vec::new(),
            access_mode: Mode::SingleNodeWriter,
            is_block: false,
            is_inline: true,
            stage_secret: None,
            publish_secret: secret,
            expand_secret: None,
        }
    }

    /// As drivers are told of it; `group` owns the files where the driver sees to that.
    pub fn capability(&self, group: Option<i64>) -> VolumeCapability {
        let access_mode = Some(AccessMode { mode: self.access_mode.into() });
        if self.is_block {
            return VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), access_mode };
        }
        let mount = MountVolume {
            fs_type: self.fs_type.clone(),
            mount_flags: self.mount_options.clone(),
            volume_mount_group: group.map(|g| g.to_string()).unwrap_or_default(),
        };
        VolumeCapability { access_type: Some(AccessType::Mount(mount)), access_mode }
    }
}

/// SHA-256 in hexadecimal digits, by which upstream names what has long or odd names.
pub(super) fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn access_mode(modes: &[String]) -> Mode {
    let has = |name: &str| modes.iter().any(|mode| mode == name);
    match () {
        () if has("ReadWriteMany") => Mode::MultiNodeMultiWriter,
        () if has("ReadOnlyMany") && has("ReadWriteOnce") => Mode::MultiNodeSingleWriter,
        () if has("ReadOnlyMany") => Mode::MultiNodeReaderOnly,
        () => Mode::SingleNodeWriter,
    }
}
