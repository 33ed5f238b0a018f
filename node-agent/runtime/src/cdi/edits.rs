//! What CDI devices need, put into a container's OCI runtime specification.

use std::path::Path;

use nix::sys::stat::{SFlag, major, minor, stat};
use serde_json::{Value, json};

use super::{DeviceNode, Edits, Hook, Mount};
use crate::paths::io_error;
use crate::{Error, Result};

const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Looks device nodes up on this machine where their file does not say what they are.
pub(crate) fn apply(edits: &[Edits], spec: &mut Value) -> Result<()> {
    for edits in edits {
        for variable in &edits.env {
            set_env(spec, variable)?;
        }
        for node in &edits.device_nodes {
            add_device(spec, node)?;
        }
        for mount in &edits.mounts {
            add_mount(spec, mount);
        }
        for hook in &edits.hooks {
            add_hook(spec, hook)?;
        }
        let groups = list(&mut spec["process"]["user"]["additionalGids"]);
        for group in &edits.additional_gids {
            if *group != 0 && !groups.contains(&json!(group)) {
                groups.push(json!(group));
            }
        }
        if edits.intel_rdt.is_some() {
            tracing::warn!("a CDI device asks for Intel RDT classes, which are not set");
        }
        if edits.net_devices.is_some() {
            return Err(invalid("netDevices of CDI devices cannot be given to containers here".to_owned()));
        }
    }
    // Parents before what is mounted inside them.
    let destination =
        |mount: &Value| Path::new(mount["destination"].as_str().unwrap_or_default()).components().count();
    list(&mut spec["mounts"]).sort_by_key(destination);
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::Invalid { field: "cdiDevices", message }
}

/// The list there, made where there is none.
fn list(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it was just made one"),
    }
}

fn set_env(spec: &mut Value, variable: &str) -> Result<()> {
    let Some((name, _)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        return Err(invalid(format!("env {variable:?} is not <name>=<value>")));
    };
    let prefix = format!("{name}=");
    let variables = list(&mut spec["process"]["env"]);
    variables.retain(|known| !known.as_str().is_some_and(|known| known.starts_with(&prefix)));
    variables.push(json!(variable));
    Ok(())
}

fn add_device(spec: &mut Value, node: &DeviceNode) -> Result<()> {
    let host_path = node.host_path.as_ref().unwrap_or(&node.path);
    let (kind, major, minor) = match (&node.kind, node.major, node.minor) {
        (Some(kind), Some(major), Some(minor)) if kind != "p" => (kind.clone(), major, minor),
        (Some(kind), ..) if kind == "p" => (kind.clone(), 0, 0),
        _ => {
            let found = stat(host_path).map_err(|error| io_error("look at", host_path)(error.into()))?;
            let kind = match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFBLK => "b",
                SFlag::S_IFCHR => "c",
                SFlag::S_IFIFO => "p",
                _ => return Err(invalid(format!("{} is no device", host_path.display()))),
            };
            if node.kind.as_ref().is_some_and(|said| said != kind && !(said == "u" && kind == "c")) {
                return Err(invalid(format!("{} is of type {kind}", host_path.display())));
            }
            (kind.to_owned(), major(found.st_rdev), minor(found.st_rdev))
        }
    };
    let user = &spec["process"]["user"];
    let id = |said: Option<u32>, of: &str| said.map(u64::from).or(user[of].as_u64().filter(|id| *id > 0));
    let mut device = json!({ "path": node.path, "type": kind, "major": major, "minor": minor });
    if let Some(mode) = node.file_mode {
        device["fileMode"] = json!(mode);
    }
    for (field, said) in [("uid", node.uid), ("gid", node.gid)] {
        if let Some(id) = id(said, field) {
            device[field] = json!(id);
        }
    }
    let devices = list(&mut spec["linux"]["devices"]);
    devices.retain(|known| known["path"] != device["path"]);
    devices.push(device);
    if kind != "p" {
        let access = node.permissions.as_deref().unwrap_or("rwm");
        let rule = json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access });
        list(&mut spec["linux"]["resources"]["devices"]).push(rule);
    }
    Ok(())
}

fn add_mount(spec: &mut Value, mount: &Mount) {
    let kind = mount.kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("bind");
    let mut options = mount.options.clone();
    if kind == "bind" && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.insert(0, "rbind".to_owned());
    }
    let new = json!({
        "destination": mount.container_path, "source": mount.host_path, "type": kind, "options": options,
    });
    let mounts = list(&mut spec["mounts"]);
    mounts.retain(|known| known["destination"] != new["destination"]);
    mounts.push(new);
}

fn add_hook(spec: &mut Value, hook: &Hook) -> Result<()> {
    let name = HOOKS.iter().find(|name| **name == hook.hook_name);
    let name = name.ok_or_else(|| invalid(format!("there is no hook {:?}", hook.hook_name)))?;
    let mut new = json!({ "path": hook.path });
    if !hook.args.is_empty() {
        new["args"] = json!(hook.args);
    }
    if !hook.env.is_empty() {
        new["env"] = json!(hook.env);
    }
    if let Some(timeout) = hook.timeout {
        new["timeout"] = json!(timeout);
    }
    list(&mut spec["hooks"][*name]).push(new);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({
            "process": { "user": { "uid": 7, "gid": 0, "additionalGids": [5] }, "env": ["PATH=/bin", "GPU=none"] },
            "mounts": [{ "destination": "/proc" }, { "destination": "/dev" }, { "destination": "/data/deep/er" }],
            "linux": { "resources": { "devices": [{ "allow": false, "access": "rwm" }] } },
        })
    }

    fn edits(value: Value) -> Edits {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_kind_of_edit_finds_its_place() {
        let mut spec = spec();
        let first = edits(json!({
            "env": ["GPU=a"],
            "deviceNodes": [
                { "path": "/dev/gpu", "hostPath": "/dev/null", "permissions": "rw" },
                { "path": "/dev/given", "type": "b", "major": 8, "minor": 1, "fileMode": 432, "gid": 6, "uid": 0 },
            ],
            "mounts": [{ "hostPath": "/lib/gpu", "containerPath": "/data", "options": ["ro", "nosuid"] }],
            "hooks": [{ "hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "a"], "timeout": 3 }],
            "additionalGids": [44, 5, 0],
            "intelRdt": { "closID": "x" },
        }));
        let second = edits(json!({
            "mounts": [{ "hostPath": "tmpfs", "containerPath": "/scratch", "type": "tmpfs" }],
            "hooks": [{ "hookName": "createContainer", "path": "/bin/other" }],
        }));
        apply(&[first, second], &mut spec).unwrap();
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "GPU=a"]));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([5, 44]));
        let devices = json!([
            { "path": "/dev/gpu", "type": "c", "major": 1, "minor": 3, "uid": 7 },
            { "path": "/dev/given", "type": "b", "major": 8, "minor": 1, "fileMode": 432, "uid": 0, "gid": 6 },
        ]);
        assert_eq!(spec["linux"]["devices"], devices);
        let rules = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw" },
            { "allow": true, "type": "b", "major": 8, "minor": 1, "access": "rwm" },
        ]);
        assert_eq!(spec["linux"]["resources"]["devices"], rules);
        let order: Vec<&str> =
            spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(order, ["/proc", "/dev", "/data", "/scratch", "/data/deep/er"]);
        assert_eq!(spec["mounts"][2]["options"], json!(["rbind", "ro", "nosuid"]));
        assert_eq!(spec["mounts"][3]["type"], "tmpfs");
        let hooks =
            json!([{ "path": "/bin/hook", "args": ["hook", "a"], "timeout": 3 }, { "path": "/bin/other" }]);
        assert_eq!(spec["hooks"]["createContainer"], hooks);
    }

    #[test]
    fn what_cannot_be_given_is_refused() {
        let refused = |value: Value| apply(&[edits(value)], &mut spec()).unwrap_err().to_string();
        let missing = refused(json!({ "deviceNodes": [{ "path": "/dev/no-such" }] }));
        assert!(missing.contains("/dev/no-such"), "{missing}");
        assert!(refused(json!({ "deviceNodes": [{ "path": "/" }] })).contains("/ is no device"));
        assert!(
            refused(json!({ "deviceNodes": [{ "path": "/dev/null", "type": "b" }] })).contains("of type c")
        );
        assert!(refused(json!({ "hooks": [{ "hookName": "later", "path": "/x" }] })).contains("no hook"));
        assert!(refused(json!({ "env": ["=x"] })).contains("<name>=<value>"));
        assert!(refused(json!({ "netDevices": [] })).contains("netDevices"));
    }
}
