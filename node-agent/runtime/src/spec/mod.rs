//! The OCI runtime specification of a container, decided from pod, container and image: pure.
//!
//! The result is the JSON that containerd stores and runc reads. Files, devices and users are looked up
//! by the caller and passed in, so that every rule here is tested as a table.

pub(crate) mod apparmor;
mod capabilities;
mod defaults;
pub(crate) mod devices;
pub(crate) mod labels;
mod mounts;
mod privilege;
pub(crate) mod seccomp;
pub(crate) mod user;

use std::path::Path;

use serde_json::{Value, json};

use crate::image::config::ProcessConfig;
use crate::sandbox::SharedNamespaces;
use crate::{ContainerConfig, Error, PodSandboxConfig, Resources, Result};

/// Everything that a specification is made from.
pub(crate) struct SpecInput<'a> {
    pub(crate) id: &'a str,
    pub(crate) pod: &'a PodSandboxConfig,
    pub(crate) container: &'a ContainerConfig,
    pub(crate) image: &'a ProcessConfig,
    pub(crate) user: user::User,
    pub(crate) namespaces: &'a SharedNamespaces,
    /// Process namespace of another container to join.
    pub(crate) join_pid: Option<&'a Path>,
    /// Devices of the node that the container has.
    pub(crate) devices: &'a [devices::Device],
    pub(crate) seccomp: Option<Value>,
    pub(crate) apparmor: Option<String>,
    /// Labels of the process and of its mounts.
    pub(crate) selinux: Option<(String, String)>,
    /// The unified hierarchy carries the controllers (cgroup v2).
    pub(crate) unified_cgroup: bool,
}

/// The group that tells the shim which containers it serves together: one shim a pod.
pub(crate) const SHIM_GROUP_ANNOTATION: &str = "io.containerd.runc.v2.group";

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) fn build(input: &SpecInput<'_>) -> Result<Value> {
    let SpecInput { pod, container, .. } = input;
    let security = &container.security;
    let capabilities =
        capabilities::resolve(security.privileged, &security.add_capabilities, &security.drop_capabilities)?;
    let mut process = json!({
        "terminal": container.tty,
        "user": { "uid": input.user.uid, "gid": input.user.gid, "additionalGids": input.user.groups },
        "args": arguments(container, input.image)?,
        "env": environment(input),
        "cwd": working_dir(container, input.image),
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
        "noNewPrivileges": security.no_new_privileges,
    });
    if let Some(score) = container.resources.oom_score_adj {
        process["oomScoreAdj"] = json!(privilege::allowed_oom_score_adj(score));
    }

    if let Some(profile) = &input.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    if let Some((label, _)) = &input.selinux {
        process["selinuxLabel"] = json!(label);
    }

    let unmasked = security.privileged || security.unmasked_proc;
    let mut linux = json!({
        "namespaces": namespaces(input),
        "cgroupsPath": format!("{}/{}", pod.cgroup_parent, input.id),
        "resources": resources(input),
        "sysctl": pod.sysctls,
        "maskedPaths": if unmasked { &[][..] } else { defaults::MASKED_PATHS },
        "readonlyPaths": if unmasked { &[][..] } else { defaults::READ_ONLY_PATHS },
    });
    if let Some(ids) = pod.users {
        // Beside the namespace's path: containerd reads from it whose the container's directory is.
        let mapping = json!([{ "containerID": 0, "hostID": ids.first, "size": ids.count }]);
        linux["uidMappings"] = mapping.clone();
        linux["gidMappings"] = mapping;
    }
    if !input.devices.is_empty() {
        linux["devices"] = json!(input.devices);
    }
    if let Some(profile) = &input.seccomp {
        linux["seccomp"] = profile.clone();
    }
    if let Some((_, label)) = &input.selinux {
        linux["mountLabel"] = json!(label);
    }
    if let Some(propagation) = mounts::root_propagation(&container.mounts) {
        linux["rootfsPropagation"] = json!(propagation);
    }

    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": "rootfs", "readonly": security.read_only_root },
        "mounts": mounts::resolve(&container.mounts, &input.namespaces.shm, security.privileged),
        "annotations": { SHIM_GROUP_ANNOTATION: pod.pod_uid },
        "linux": linux,
    }))
}

/// The specification of a further process in a container: its own process's user, environment and
/// rights, with other arguments.
pub(crate) fn exec_process(own: &Value, command: &[String], tty: bool) -> Result<Value> {
    if command.is_empty() {
        return Err(Error::Invalid {
            field: "command",
            message: "you must specify at least 1 command".into(),
        });
    }
    let mut process = own.clone();
    process["args"] = json!(command);
    process["terminal"] = json!(tty);
    if let (true, Some(env)) = (tty, process["env"].as_array_mut()) {
        let has_term = env.iter().any(|e| e.as_str().is_some_and(|e| e.starts_with("TERM=")));
        if !has_term {
            env.push(json!("TERM=xterm"));
        }
    }
    Ok(process)
}

/// Kubernetes' rule: a command replaces entrypoint and command of the image, arguments alone replace the
/// image's command.
fn arguments(container: &ContainerConfig, image: &ProcessConfig) -> Result<Vec<String>> {
    let (entrypoint, command) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => (&container.command, &container.args),
        (true, false) => (&image.entrypoint, &container.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let arguments: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if arguments.is_empty() {
        return Err(Error::Invalid { field: "command", message: "no command specified".into() });
    }
    Ok(arguments)
}

fn environment(input: &SpecInput<'_>) -> Vec<String> {
    let mut variables: Vec<String> = vec![DEFAULT_PATH.to_owned()];
    variables.push(format!("HOSTNAME={}", input.pod.hostname));
    if input.container.tty {
        variables.push("TERM=xterm".to_owned());
    }
    let own = input.container.env.iter().map(|(name, value)| format!("{name}={value}"));
    for variable in input.image.env.iter().cloned().chain(own) {
        let name_length = variable.find('=').unwrap_or(variable.len());
        let same_name = |v: &&mut String| {
            v.len() >= name_length
                && v[..name_length] == variable[..name_length]
                && v[name_length..].starts_with('=')
        };
        match variables.iter_mut().find(same_name) {
            Some(earlier) => *earlier = variable,
            None => variables.push(variable),
        }
    }
    variables
}

fn working_dir(container: &ContainerConfig, image: &ProcessConfig) -> String {
    let own = container.working_dir.as_deref().filter(|dir| !dir.is_empty());
    let of_image = image.working_dir.as_deref().filter(|dir| !dir.is_empty());
    own.or(of_image).unwrap_or("/").to_owned()
}

fn namespaces(input: &SpecInput<'_>) -> Vec<Value> {
    let shared = input.namespaces;
    let mut namespaces = vec![json!({ "type": "mount" })];
    if let Some(users) = &shared.users {
        namespaces.push(json!({ "type": "user", "path": users }));
    }
    if !input.pod.host_pid {
        namespaces.push(match input.join_pid.or(shared.pid.as_deref()) {
            Some(path) => json!({ "type": "pid", "path": path }),
            None => json!({ "type": "pid" }),
        });
    }
    namespaces.push(json!({ "type": "network", "path": shared.network }));
    namespaces.push(json!({ "type": "uts", "path": shared.uts }));
    if let Some(ipc) = &shared.ipc {
        namespaces.push(json!({ "type": "ipc", "path": ipc }));
    }
    if input.unified_cgroup {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    namespaces
}

fn resources(input: &SpecInput<'_>) -> Value {
    let container = input.container;
    let mut resources = limits(&container.resources, input.unified_cgroup);
    // runc itself allows the usual devices (null, zero, tty, ...) after this.
    let mut rules = vec![json!({ "allow": container.security.privileged, "access": "rwm" })];
    if !container.security.privileged {
        rules.extend(input.devices.iter().map(devices::Device::rule));
    }
    resources["devices"] = Value::Array(rules);
    if input.unified_cgroup && container.oom_group {
        resources["unified"] = json!({ "memory.oom.group": "1" });
    }
    resources
}

/// The limits of a container, made or changed, as runc takes them.
pub(crate) fn limits(limits: &Resources, unified_cgroup: bool) -> Value {
    let mut resources = json!({});
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = limits.cpu_shares {
        cpu.insert("shares".into(), json!(shares));
    }
    if let Some(quota) = limits.cpu_quota_us {
        cpu.insert("quota".into(), json!(quota));
        cpu.insert("period".into(), json!(limits.cpu_period_us.unwrap_or(100_000)));
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        cpu.insert("cpus".into(), json!(cpus));
    }
    if let Some(mems) = &limits.cpuset_mems {
        cpu.insert("mems".into(), json!(mems));
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(limit) = limits.memory_limit_bytes {
        resources["memory"] = json!({ "limit": limit });
        if unified_cgroup {
            // Memory and swap together: the same number means no swap.
            resources["memory"]["swap"] = json!(limit);
        }
    }
    if let Some(limit) = limits.pids_limit {
        resources["pids"] = json!({ "limit": limit });
    }
    if !limits.hugepage_limits.is_empty() {
        let pages = limits.hugepage_limits.iter();
        resources["hugepageLimits"] =
            pages.map(|(size, bytes)| json!({ "pageSize": size, "limit": bytes })).collect();
    }
    resources
}

#[cfg(test)]
mod tests;
