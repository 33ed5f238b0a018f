//! The Container Device Interface: devices by name, and what files of their vendors say that a container needs for them.
//!
//! A file (JSON or YAML) describes the devices of one kind (`vendor.com/class`). Files are read when a container asks for
//! a device, so a driver may write them just before. In one directory no two files may describe the same device; what a
//! later directory says wins over an earlier one. Format: cncf-tags/container-device-interface, SPEC.md.

mod edits;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

pub(crate) use edits::apply;

use crate::paths::io_error;
use crate::{Error, Result};

/// Files and bytes of one that are read; more has no vendor, and would hold up every start.
const MAX_FILES: usize = 1024;
const MAX_FILE_BYTES: u64 = 16 << 20;

const MAJOR_VERSIONS: [&str; 2] = ["0.", "1."];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// What a container gets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Edits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
    intel_rdt: Option<Value>,
    net_devices: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeviceNode {
    path: PathBuf,
    host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<u64>,
    minor: Option<u64>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    host_path: PathBuf,
    container_path: PathBuf,
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hook {
    hook_name: String,
    path: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<u64>,
}

/// What the devices of these names need: of each file that describes some of them its own part once, and each device's.
/// Blocks.
///
/// # Errors
/// Names that no file describes, or two in one directory.
pub(crate) fn edits_of(dirs: &[PathBuf], names: &[String]) -> Result<Vec<Edits>> {
    let files = read_all(dirs)?;
    let mut places: BTreeMap<String, Option<(usize, usize)>> = BTreeMap::new();
    let mut levels: BTreeMap<String, usize> = BTreeMap::new();
    for (index, (level, spec)) in files.iter().enumerate() {
        for (device, described) in spec.devices.iter().enumerate() {
            let name = format!("{}={}", spec.kind, described.name);
            let is_conflict = levels.get(&name) == Some(level);
            levels.insert(name.clone(), *level);
            places.insert(name, (!is_conflict).then_some((index, device)));
        }
    }
    let (mut edits, mut seen, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    let mut done: Vec<&String> = Vec::new();
    for name in names {
        if done.contains(&name) {
            continue;
        }
        done.push(name);
        let Some(Some((index, device))) = places.get(name) else {
            missing.push(name.as_str());
            continue;
        };
        let spec = &files[*index].1;
        if !seen.contains(index) {
            seen.push(*index);
            edits.push(spec.container_edits.clone());
        }
        edits.push(spec.devices[*device].container_edits.clone());
    }
    match missing.is_empty() {
        true => Ok(edits),
        false => Err(Error::Invalid {
            field: "cdiDevices",
            message: format!("unresolvable CDI devices {}", missing.join(", ")),
        }),
    }
}

/// What all files say, with the number of their directory. One that makes no sense is passed over: its devices are
/// missing then.
fn read_all(dirs: &[PathBuf]) -> Result<Vec<(usize, Spec)>> {
    let mut found = Vec::new();
    for (level, dir) in dirs.iter().enumerate() {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(io_error("list", dir))?,
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if found.len() >= MAX_FILES {
                let message = format!("there are more than {MAX_FILES} files of CDI devices");
                return Err(Error::Invalid { field: "cdiDevices", message });
            }
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json" | "yaml") => {}
                _ => continue,
            }
            match read(&path) {
                Ok(spec) => found.push((level, spec)),
                Err(error) => tracing::warn!(path = %path.display(), error, "CDI devices are not read"),
            }
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Spec, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("it has more than {MAX_FILE_BYTES} bytes"));
    }
    // JSON is YAML, but is read faster as what it is.
    let spec: Spec = match path.extension().is_some_and(|extension| extension == "json") {
        true => serde_json::from_slice(&bytes).map_err(|error| error.to_string())?,
        false => serde_yaml_ng::from_slice(&bytes).map_err(|error| error.to_string())?,
    };
    if !MAJOR_VERSIONS.iter().any(|major| spec.cdi_version.starts_with(major)) {
        return Err(format!("cdiVersion {:?} is not known", spec.cdi_version));
    }
    match spec.kind.split_once('/') {
        Some((vendor, class)) if !vendor.is_empty() && !class.is_empty() => Ok(spec),
        _ => Err(format!("kind {:?} is not <vendor>/<class>", spec.kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dirs(tempfile::TempDir);

    impl Dirs {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["etc", "run"] {
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            Self(dir)
        }

        fn write(&self, path: &str, text: &str) {
            fs::write(self.0.path().join(path), text).unwrap();
        }

        fn env_of(&self, names: &[&str]) -> std::result::Result<Vec<String>, String> {
            // The third is not there.
            let dirs = ["etc", "run", "none"].map(|dir| self.0.path().join(dir));
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let edits = edits_of(&dirs, &names).map_err(|error| error.to_string())?;
            Ok(edits.into_iter().flat_map(|edits| edits.env).collect())
        }
    }

    fn json(kind: &str, device: &str, env: &str) -> String {
        format!(
            r#"{{"cdiVersion":"0.6.0","kind":"{kind}","devices":[{{"name":"{device}","containerEdits":{{"env":["{env}"]}}}}]}}"#
        )
    }

    #[test]
    fn devices_are_found_in_json_and_yaml() {
        let dirs = Dirs::new();
        dirs.write("etc/one.json", &json("test.com/gpu", "a", "ONE=1"));
        dirs.write(
            "run/two.yaml",
            "cdiVersion: 0.5.0\nkind: test.com/net\ncontainerEdits: {env: [ALL=1]}\ndevices:\n- name: x\n  containerEdits: {env: [X=1]}\n- name: y\n  containerEdits: {env: [Y=1]}\n",
        );
        dirs.write("run/notes.txt", "not read");
        let both = ["test.com/net=x", "test.com/gpu=a", "test.com/net=y", "test.com/net=x"];
        assert_eq!(dirs.env_of(&both).unwrap(), ["ALL=1", "X=1", "ONE=1", "Y=1"], "a file's own part once");
        assert_eq!(dirs.env_of(&[]).unwrap(), [""; 0]);
    }

    #[test]
    fn later_directory_wins_and_doubt_is_an_error() {
        let dirs = Dirs::new();
        dirs.write("etc/one.json", &json("test.com/gpu", "a", "FROM=etc"));
        dirs.write("run/one.json", &json("test.com/gpu", "a", "FROM=run"));
        assert_eq!(dirs.env_of(&["test.com/gpu=a"]).unwrap(), ["FROM=run"]);
        dirs.write("run/two.json", &json("test.com/gpu", "a", "FROM=another"));
        let told = "invalid cdiDevices: unresolvable CDI devices test.com/gpu=a, test.com/gpu=b";
        assert_eq!(dirs.env_of(&["test.com/gpu=a", "test.com/gpu=b"]).unwrap_err(), told);
    }

    #[test]
    fn file_that_makes_no_sense_hides_only_its_own_devices() {
        let dirs = Dirs::new();
        dirs.write("etc/bad.json", "{");
        dirs.write("etc/kind.json", &json("gpu", "a", "X=1"));
        dirs.write("etc/version.json", &json("test.com/gpu", "v", "X=1").replace("0.6.0", "9.0.0"));
        dirs.write("etc/good.json", &json("test.com/gpu", "a", "GOOD=1"));
        assert_eq!(dirs.env_of(&["test.com/gpu=a"]).unwrap(), ["GOOD=1"]);
        assert!(dirs.env_of(&["test.com/gpu=v"]).is_err());
        assert!(dirs.env_of(&["gpu=a"]).is_err());
    }
}
