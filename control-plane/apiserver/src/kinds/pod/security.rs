//! As whom and how shut off containers run: the security contexts of pods and containers, and what each operating
//! system has of them.

use std::collections::HashSet;

use hawser_api::{FieldError, error::FieldErrorKind};
use serde_json::Value;

use super::{each_container, resources, volumes::descends};
use crate::kinds::{
    meta::invalid_all,
    names::dns_subdomain,
    rules::{no_longer, one_of},
    value::{Fields, Path},
};

/// The longest name of a sysctl, and how it is written (as the kernel's, with slashes or dots).
const MAX_SYSCTL: usize = 253;
const SYSCTL: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
/// The longest path that the kernel takes.
const MAX_PATH: usize = 4095;
/// Bytes of a credential for Windows' group managed accounts, and of the parts of a user's name there.
const MAX_CREDENTIAL_KIB: usize = 64;
const MAX_DOMAIN: usize = 256;
const MAX_USER: usize = 104;

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

/// Fields that a pod for Windows has none of: of its context, of itself, of its containers' contexts.
const NOT_IN_WINDOWS_CONTEXT: [&str; 11] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seLinuxChangePolicy",
];
const NOT_IN_WINDOWS_POD: [&str; 4] = ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"];
const NOT_IN_WINDOWS_CONTAINER: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// The context of a pod as a whole.
pub(super) fn of_pod(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let context = spec.at("securityContext");
    let of = path.field("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(errors, &of.field(field), context.at(field));
    }
    let list = of.field("supplementalGroups");
    for (index, group) in context.list("supplementalGroups").iter().enumerate() {
        id(errors, &list.index(index), group);
    }
    sysctls(errors, &of.field("sysctls"), spec);
    for (field, known) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
        ("seLinuxChangePolicy", ["MountOption", "Recursive"]),
    ] {
        if context.has(field) {
            one_of(errors, &of.field(field), context.text(field), &known);
        }
    }
    profiles(errors, &of, context);
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(path.field("shareProcessNamespace"), true, detail));
    }
}

/// The context of one container.
pub(super) fn of_container(errors: &mut Vec<FieldError>, path: &Path<'_>, context: &Value, spec: &Value) {
    for field in ["runAsUser", "runAsGroup"] {
        id(errors, &path.field(field), context.at(field));
    }
    if context.has("procMount") {
        let (path, mount) = (path.field("procMount"), context.text("procMount"));
        one_of(errors, &path, mount, &["Default", "Unmasked"]);
        if mount == "Unmasked" && !has_own_users(spec) {
            errors.push(FieldError::invalid(path, mount, "`hostUsers` must be false to use `Unmasked`"));
        }
    }
    if context.at("allowPrivilegeEscalation") == &Value::Bool(false) {
        let mut refuse = |what: &str| {
            let detail = format!("cannot set `allowPrivilegeEscalation` to false and {what}");
            errors.push(FieldError::invalid(path, context.clone(), detail));
        };
        if context.flag("privileged") {
            refuse("`privileged` to true");
        }
        if context.list("capabilities.add").iter().any(|name| name == "CAP_SYS_ADMIN") {
            refuse("`capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    profiles(errors, path, context);
}

fn has_own_users(spec: &Value) -> bool {
    spec.at("hostUsers") == &Value::Bool(false)
}

fn id(errors: &mut Vec<FieldError>, path: &Path<'_>, id: &Value) {
    if id.as_i64().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
        let detail = "must be between 0 and 2147483647, inclusive";
        errors.push(FieldError::invalid(path, id.clone(), detail));
    }
}

/// What pods and containers have alike: what confines them, and Windows' own options.
fn profiles(errors: &mut Vec<FieldError>, path: &Path<'_>, context: &Value) {
    if context.has("seccompProfile") {
        seccomp(errors, &path.field("seccompProfile"), context.at("seccompProfile"));
    }
    if context.has("windowsOptions") {
        windows_options(errors, &path.field("windowsOptions"), context.at("windowsOptions"));
    }
    if context.has("appArmorProfile") {
        app_armor(errors, &path.field("appArmorProfile"), context.at("appArmorProfile"));
    }
}

fn seccomp(errors: &mut Vec<FieldError>, path: &Path<'_>, profile: &Value) {
    profile_type(errors, path, profile, "seccomp");
    let file = profile.at("localhostProfile");
    let path = path.field("localhostProfile");
    match (profile.text("type"), file.as_str()) {
        ("Localhost", None) => {
            errors.push(FieldError::required(path, "must be set when seccomp type is Localhost"));
        }
        ("Localhost", Some(file)) => descends(errors, &path, file),
        (_, Some(_)) => {
            let detail = "can only be set when seccomp type is Localhost";
            errors.push(FieldError::invalid(path, profile.clone(), detail));
        }
        _ => (),
    }
}

fn app_armor(errors: &mut Vec<FieldError>, path: &Path<'_>, profile: &Value) {
    profile_type(errors, path, profile, "appArmor");
    let path = path.field("localhostProfile");
    let name = profile.at("localhostProfile").as_str();
    match (profile.text("type"), name) {
        ("Localhost", None | Some("")) => {
            errors.push(FieldError::required(path, "must be set when AppArmor type is Localhost"));
        }
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                errors.push(FieldError::invalid(path, name, "must not be padded with whitespace"));
            }
            no_longer(errors, &path, name, MAX_PATH);
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            let detail = "can only be set when AppArmor type is Localhost";
            errors.push(FieldError::invalid(path, name, detail));
        }
        _ => (),
    }
}

fn profile_type(errors: &mut Vec<FieldError>, path: &Path<'_>, profile: &Value, what: &str) {
    let path = path.field("type");
    match profile.text("type") {
        "" => {
            let detail = format!("type is required when {what}Profile is set");
            errors.push(FieldError::required(path, detail));
        }
        kind => one_of(errors, &path, kind, &PROFILES),
    }
}

/// Parts of small letters, digits, `-` and `_`, parted by dots or slashes; none of a namespace that is the host's.
fn sysctls(errors: &mut Vec<FieldError>, list: &Path<'_>, spec: &Value) {
    let is_edge = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let is_part = |part: &str| {
        part.starts_with(is_edge)
            && part.ends_with(is_edge)
            && part.chars().all(|letter| is_edge(letter) || matches!(letter, '-' | '_'))
    };
    let mut names = HashSet::new();
    for (index, sysctl) in spec.list("securityContext.sysctls").iter().enumerate() {
        let path = list.index(index);
        let path = path.field("name");
        let name = sysctl.text("name");
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if name.len() > MAX_SYSCTL || !name.split(['.', '/']).all(is_part) {
            let detail = format!("must have at most {MAX_SYSCTL} characters and match regex {SYSCTL}");
            errors.push(FieldError::invalid(path, name, detail));
        } else if !names.insert(name) {
            errors.push(FieldError::duplicate(path, name));
        }
        if let Some(field) = host_namespace(name).filter(|field| spec.flag(field)) {
            let detail = format!("may not be specified when '{field}' is true");
            errors.push(FieldError::invalid(path, name, detail));
        }
    }
}

/// The pod's field by which the sysctl would be the host's.
fn host_namespace(name: &str) -> Option<&'static str> {
    let name = if name.find('/') < name.find('.') || !name.contains('.') {
        name.replace('/', ".")
    } else {
        name.to_owned()
    };
    let begins = |begins: &[&str]| begins.iter().any(|begin| name.starts_with(begin));
    match () {
        () if begins(&["net."]) => Some("hostNetwork"),
        () if name == "kernel.sem" || begins(&["kernel.shm", "kernel.msg", "fs.mqueue."]) => Some("hostIPC"),
        () => None,
    }
}

/// Users of its own go with no other namespace of the host, but its network's.
pub(super) fn users(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    if !has_own_users(spec) {
        return;
    }
    // The names are upstream's: of Go's fields.
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.flag(field) {
            errors.push(FieldError::forbidden(path.field(shown), "when `hostUsers` is false"));
        }
    }
    resources::devices_of_users(errors, path, spec);
}

/// Fields of another operating system than the pod's.
pub(super) fn os(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    if !spec.has("os") {
        return;
    }
    let of = path.field("os");
    match spec.text("os.name") {
        "" => errors.push(FieldError::required(of.field("name"), "cannot be empty")),
        "linux" => {
            const DETAIL: &str = "windows options cannot be set for a linux pod";
            if spec.has("securityContext.windowsOptions") {
                errors.push(FieldError::forbidden(path.field("securityContext.windowsOptions"), DETAIL));
            }
            each_container(spec, path, |path, container| {
                if container.has("securityContext.windowsOptions") {
                    errors.push(FieldError::forbidden(path.field("securityContext.windowsOptions"), DETAIL));
                }
            });
        }
        "windows" => windows(errors, path, spec),
        name => one_of(errors, &of, name, &["linux", "windows"]),
    }
}

fn windows(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    // A false flag of the pod, and an empty list, are none.
    let is_set = |value: &Value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
    let mut refuse = |path: Path<'_>, parent: &Value, fields: &[&str]| {
        for field in fields.iter().filter(|field| is_set(parent.at(field))) {
            errors.push(FieldError::forbidden(path.field(field), "cannot be set for a windows pod"));
        }
    };
    refuse(path.field("securityContext"), spec.at("securityContext"), &NOT_IN_WINDOWS_CONTEXT);
    let of_pod = NOT_IN_WINDOWS_POD.iter().filter(|field| match **field {
        "hostPID" | "hostIPC" => spec.flag(field),
        _ => true,
    });
    refuse(*path, spec, &of_pod.copied().collect::<Vec<_>>());
    each_container(spec, path, |path, container| {
        refuse(path.field("securityContext"), container.at("securityContext"), &NOT_IN_WINDOWS_CONTAINER);
    });
}

fn windows_options(errors: &mut Vec<FieldError>, path: &Path<'_>, options: &Value) {
    let field = path.field("gmsaCredentialSpecName");
    if let Some(name) = options.at("gmsaCredentialSpecName").as_str() {
        invalid_all(errors, &field, name, dns_subdomain(name));
    }
    let field = path.field("gmsaCredentialSpec");
    if let Some(credential) = options.at("gmsaCredentialSpec").as_str() {
        if credential.is_empty() {
            errors.push(FieldError::invalid(
                field,
                credential,
                "gmsaCredentialSpec cannot be an empty string",
            ));
        } else if credential.len() > MAX_CREDENTIAL_KIB * 1024 {
            let detail = format!("gmsaCredentialSpec size must be under {MAX_CREDENTIAL_KIB} KiB");
            errors.push(FieldError::invalid(field, credential, detail));
        }
    }
    if let Some(name) = options.at("runAsUserName").as_str() {
        let wrong = windows_user(name).into_iter().map(|wrong| format!("runAsUserName{wrong}"));
        invalid_all(errors, &path.field("runAsUserName"), name, wrong.collect());
    }
}

/// What is wrong with `USER` or `DOMAIN\USER`.
fn windows_user(name: &str) -> Vec<String> {
    let is_control = |letter: char| letter.is_ascii_control();
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        _ if name.is_empty() => return vec![" cannot be an empty string".to_owned()],
        _ if name.contains(is_control) => return vec![" cannot contain control characters".to_owned()],
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => return vec![" cannot contain more than one backslash".to_owned()],
    };
    let mut wrong = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= MAX_DOMAIN {
            wrong.push(format!("'s Domain length must be under {MAX_DOMAIN} characters"));
        }
        let is_net_bios = !domain.starts_with('.')
            && (1..=15).contains(&domain.chars().count())
            && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|']);
        let is_dns = dns_subdomain(&domain.to_lowercase()).is_empty();
        if !is_net_bios && !is_dns {
            wrong.push("'s Domain doesn't match the NetBios nor the DNS format".to_owned());
        }
    }
    if user.is_empty() {
        wrong.push("'s User cannot be empty".to_owned());
    } else if user.len() > MAX_USER {
        wrong.push(format!("'s User length must not be longer than {MAX_USER} characters"));
    }
    if !user.is_empty() && user.chars().all(|letter| matches!(letter, '.' | ' ')) {
        wrong.push("'s User cannot contain only periods or spaces".to_owned());
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        wrong.push("'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".to_owned());
    }
    wrong
}

/// Processes of the host under Windows: all of the pod's containers or none, and in the host's network.
pub(super) fn host_process(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    const FIELD: &str = "securityContext.windowsOptions.hostProcess";
    let of_pod = spec.at(FIELD).as_bool();
    let (mut all, mut of_host) = (0, 0);
    each_container(spec, path, |path, container| {
        all += 1;
        let own = container.at(FIELD).as_bool();
        if let (Some(whole), Some(own)) = (of_pod, own)
            && whole != own
        {
            let detail =
                format!("pod hostProcess value must be identical if both are specified, was {whole}");
            errors.push(FieldError::invalid(path.field(FIELD), own, detail));
        }
        of_host += usize::from(own.or(of_pod) == Some(true));
    });
    if of_host == 0 {
        return;
    }
    if of_host != all {
        let detail =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.push(FieldError::invalid(path, "", detail));
    }
    if !spec.flag("hostNetwork") {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.push(FieldError::invalid(path.field("hostNetwork"), false, detail));
    }
}

/// The longest host name that Linux takes.
const MAX_HOSTNAME: usize = 64;

/// A host name that stands above all others (KEP-4762).
pub(super) fn hostname(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let of = path.field("hostnameOverride");
    let Some(name) = spec.at("hostnameOverride").as_str() else { return };
    for field in ["setHostnameAsFQDN", "hostNetwork"] {
        if spec.flag(field) {
            errors.push(FieldError::forbidden(of, format!("may not be specified when {field} is true")));
        }
    }
    if name.len() > MAX_HOSTNAME {
        let detail = format!("may not be more than {MAX_HOSTNAME} bytes");
        errors.push(FieldError::new(FieldErrorKind::TooLong, of, None, detail));
    }
    invalid_all(errors, &of, name, dns_subdomain(name));
}
