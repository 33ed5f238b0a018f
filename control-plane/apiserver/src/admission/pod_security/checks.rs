//! The controls of the Pod Security Standards, one function each, with the versions from which they hold.
//!
//! Names, order, reasons and details are upstream's: baseline controls first, each group by name; a restricted control
//! takes the place of the baseline control that it contains.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    SECCOMP_CONTAINER, SECCOMP_POD,
    policy::{Level, Standard, Version},
};
use crate::admission::elements;

const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Sysctls that only concern the pod, with the minor version that first allowed them.
const SYSCTLS: [(u32, &str); 12] = [
    (0, "kernel.shm_rmid_forced"),
    (0, "net.ipv4.ip_local_port_range"),
    (0, "net.ipv4.tcp_syncookies"),
    (0, "net.ipv4.ping_group_range"),
    (0, "net.ipv4.ip_unprivileged_port_start"),
    (27, "net.ipv4.ip_local_reserved_ports"),
    (29, "net.ipv4.tcp_keepalive_time"),
    (29, "net.ipv4.tcp_fin_timeout"),
    (29, "net.ipv4.tcp_keepalive_intvl"),
    (29, "net.ipv4.tcp_keepalive_probes"),
    (32, "net.ipv4.tcp_rmem"),
    (32, "net.ipv4.tcp_wmem"),
];

/// Volumes that reach nothing of the node's, or only what an administrator made.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// The version from which pods with a user namespace of their own may run as whom they like.
const USER_NAMESPACES: u32 = 35;

/// Rules that a pod breaks: the reason and, in some, the detail.
#[derive(Debug, Default)]
pub(super) struct Broken(Vec<(String, String)>);

impl Broken {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `host namespaces, privileged`.
    pub(super) fn reasons(&self) -> String {
        let reasons: Vec<&str> = self.0.iter().map(|(reason, _)| reason.as_str()).collect();
        reasons.join(", ")
    }

    /// `host namespaces (hostNetwork=true), ...`.
    pub(super) fn detail(&self) -> String {
        let parts: Vec<String> =
            self.0.iter().map(|(reason, detail)| format!("{reason} ({detail})")).collect();
        parts.join(", ")
    }
}

/// What of the standard a pod, or a template of one, breaks.
pub(super) fn evaluate(standard: Standard, metadata: &Value, spec: &Value) -> Broken {
    let pod = Pod { annotations: &metadata["annotations"], spec, version: standard.version };
    let has = |minor: u32| standard.version.has(minor);
    let mut broken = Broken::default();
    let mut check = |rule: fn(&Pod<'_>) -> Option<(String, String)>| broken.0.extend(rule(&pod));
    if standard.level == Level::Privileged {
        return broken;
    }
    let restricted = standard.level == Level::Restricted;
    check(apparmor_profile);
    if !(restricted && has(22)) {
        check(capabilities_baseline);
    }
    check(host_namespaces);
    if !restricted {
        check(host_path_volumes);
    }
    check(host_ports);
    if has(34) {
        check(host_probes);
    }
    check(privileged);
    if !(restricted && has(USER_NAMESPACES)) {
        check(proc_mount_baseline);
    }
    check(selinux_options);
    if !has(19) {
        check(seccomp_annotations);
    } else if !restricted {
        check(seccomp_baseline);
    }
    check(sysctls);
    check(windows_host_process);
    if !restricted {
        return broken;
    }
    if has(8) {
        check(allow_privilege_escalation);
    }
    if has(22) {
        check(capabilities_restricted);
    }
    if has(USER_NAMESPACES) {
        check(proc_mount);
    }
    check(restricted_volumes);
    check(run_as_non_root);
    if has(23) {
        check(run_as_user);
    }
    if has(19) {
        check(seccomp_restricted);
    }
    broken
}

struct Pod<'a> {
    annotations: &'a Value,
    spec: &'a Value,
    version: Version,
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |list| elements(&spec[list]))
    }

    /// Names of the containers for which `is_bad` holds.
    fn which(&self, is_bad: impl Fn(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|container| is_bad(container)).map(name_of).collect()
    }

    /// Windows has no such thing, and says so from 1.25 on.
    fn is_windows(&self) -> bool {
        self.version.has(25) && self.spec["os"]["name"] == "windows"
    }

    /// The users of the pod are nobody on the node.
    fn has_user_namespace(&self) -> bool {
        self.version.has(USER_NAMESPACES) && self.spec["hostUsers"] == false
    }

    fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let entries = self.annotations.as_object().into_iter().flatten();
        entries.map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
    }

    /// The pod and the containers whose field breaks a rule, as the subject of a sentence; `None` where there are none.
    fn setters(&self, is_bad: impl Fn(&'a Value) -> bool) -> Option<String> {
        let mut setters = Vec::new();
        if is_bad(&self.spec["securityContext"]) {
            setters.push("pod".to_owned());
        }
        let containers = self.which(|container| is_bad(&container["securityContext"]));
        if !containers.is_empty() {
            setters.push(named("container", &containers));
        }
        (!setters.is_empty()).then(|| setters.join(" and "))
    }

    /// What the pod and its containers have in a field that breaks a rule, sorted.
    fn values(&self, field: impl Fn(&'a Value) -> Option<&'a str>) -> BTreeSet<&'a str> {
        let contexts = self.containers().map(|container| &container["securityContext"]);
        std::iter::once(&self.spec["securityContext"]).chain(contexts).filter_map(field).collect()
    }
}

fn name_of(object: &Value) -> &str {
    object["name"].as_str().unwrap_or_default()
}

fn plural(word: &str, count: usize) -> String {
    if count == 1 { word.to_owned() } else { format!("{word}s") }
}

fn uses(count: usize) -> &'static str {
    if count == 1 { "uses" } else { "use" }
}

fn quoted<'a>(texts: impl IntoIterator<Item = &'a &'a str>) -> String {
    let quoted: Vec<String> = texts.into_iter().map(|text| format!("{text:?}")).collect();
    quoted.join(", ")
}

/// `container "a"`, `containers "a", "b"`.
fn named(word: &str, names: &[&str]) -> String {
    format!("{} {}", plural(word, names.len()), quoted(names))
}

fn broken(reason: &str, detail: String) -> Option<(String, String)> {
    Some((reason.to_owned(), detail))
}

fn apparmor_profile(pod: &Pod<'_>) -> Option<(String, String)> {
    fn bad(context: &Value) -> Option<&str> {
        let kind = context["appArmorProfile"]["type"].as_str()?;
        (!matches!(kind, "" | "RuntimeDefault" | "Localhost")).then_some(kind)
    }
    let is_allowed = |profile: &str| {
        profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/")
    };
    let annotations: Vec<String> = pod
        .annotations()
        .filter(|(key, profile)| key.starts_with(APPARMOR) && !is_allowed(profile))
        .map(|(key, profile)| format!("{key}={profile:?}"))
        .collect();
    let setters = pod.setters(|context| bad(context).is_some());
    let annotated = (!annotations.is_empty()).then(|| plural("annotation", annotations.len()));
    let setters: Vec<String> = setters.into_iter().chain(annotated).collect();
    if setters.is_empty() {
        return None;
    }
    let values = pod.values(bad);
    let values: Vec<&str> = values.into_iter().chain(annotations.iter().map(String::as_str)).collect();
    let reason = plural("forbidden AppArmor profile", values.len());
    let detail =
        format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(&values));
    Some((reason, detail))
}

/// Containers that add capabilities that are not allowed, and which.
fn added<'a>(pod: &Pod<'a>, is_allowed: impl Fn(&str) -> bool) -> Option<String> {
    let bad = |container: &'a Value| {
        let added =
            elements(&container["securityContext"]["capabilities"]["add"]).iter().filter_map(Value::as_str);
        added.filter(|capability| !is_allowed(capability)).collect::<BTreeSet<&'a str>>()
    };
    let containers = pod.which(|container| !bad(container).is_empty());
    if containers.is_empty() {
        return None;
    }
    let values: BTreeSet<&str> = pod.containers().flat_map(bad).collect();
    let containers = named("container", &containers);
    Some(format!("{containers} must not include {} in securityContext.capabilities.add", quoted(&values)))
}

fn capabilities_baseline(pod: &Pod<'_>) -> Option<(String, String)> {
    broken("non-default capabilities", added(pod, |capability| CAPABILITIES.contains(&capability))?)
}

fn capabilities_restricted(pod: &Pod<'_>) -> Option<(String, String)> {
    if pod.is_windows() {
        return None;
    }
    let keeps = |container: &Value| {
        !elements(&container["securityContext"]["capabilities"]["drop"])
            .iter()
            .any(|capability| capability == "ALL")
    };
    let keepers = pod.which(keeps);
    let kept = (!keepers.is_empty()).then(|| {
        format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named("container", &keepers))
    });
    let details: Vec<String> =
        kept.into_iter().chain(added(pod, |capability| capability == "NET_BIND_SERVICE")).collect();
    if details.is_empty() { None } else { broken("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(pod: &Pod<'_>) -> Option<(String, String)> {
    let fields = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| pod.spec[*field] == true);
    let shared: Vec<String> = fields.map(|field| format!("{field}=true")).collect();
    if shared.is_empty() { None } else { broken("host namespaces", shared.join(", ")) }
}

fn host_path_volumes(pod: &Pod<'_>) -> Option<(String, String)> {
    let volumes = elements(&pod.spec["volumes"]).iter().filter(|volume| volume["hostPath"].is_object());
    let names: Vec<&str> = volumes.map(name_of).collect();
    if names.is_empty() { None } else { broken("hostPath volumes", named("volume", &names)) }
}

fn host_ports(pod: &Pod<'_>) -> Option<(String, String)> {
    let ports = |container: &Value| {
        let ports = elements(&container["ports"]).iter().filter_map(|port| port["hostPort"].as_i64());
        ports.filter(|port| *port != 0).map(|port| port.to_string()).collect::<BTreeSet<String>>()
    };
    let containers = pod.which(|container| !ports(container).is_empty());
    if containers.is_empty() {
        return None;
    }
    let all: Vec<String> =
        pod.containers().flat_map(ports).collect::<BTreeSet<String>>().into_iter().collect();
    let detail = format!(
        "{} {} {} {}",
        named("container", &containers),
        uses(containers.len()),
        plural("hostPort", all.len()),
        all.join(", ")
    );
    broken("hostPort", detail)
}

fn host_probes(pod: &Pod<'_>) -> Option<(String, String)> {
    fn hosts(container: &Value) -> BTreeSet<&str> {
        let lifecycle = &container["lifecycle"];
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &lifecycle["postStart"],
            &lifecycle["preStop"],
        ];
        let hosts = handlers.into_iter().flat_map(|handler| [&handler["httpGet"], &handler["tcpSocket"]]);
        hosts.filter_map(|action| action["host"].as_str()).filter(|host| !host.is_empty()).collect()
    }
    let containers: BTreeSet<&str> =
        pod.which(|container| !hosts(container).is_empty()).into_iter().collect();
    if containers.is_empty() {
        return None;
    }
    let containers: Vec<&str> = containers.into_iter().collect();
    let all: BTreeSet<&str> = pod.containers().flat_map(hosts).collect();
    let detail = format!(
        "{} {} {} {}",
        named("container", &containers),
        uses(containers.len()),
        plural("probe or lifecycle host", all.len()),
        quoted(&all)
    );
    broken("probe or lifecycle host", detail)
}

fn privileged(pod: &Pod<'_>) -> Option<(String, String)> {
    let containers = pod.which(|container| container["securityContext"]["privileged"] == true);
    if containers.is_empty() {
        return None;
    }
    broken(
        "privileged",
        format!("{} must not set securityContext.privileged=true", named("container", &containers)),
    )
}

fn proc_mount_baseline(pod: &Pod<'_>) -> Option<(String, String)> {
    if pod.has_user_namespace() { None } else { proc_mount(pod) }
}

fn proc_mount(pod: &Pod<'_>) -> Option<(String, String)> {
    fn bad(container: &Value) -> Option<&str> {
        container["securityContext"]["procMount"].as_str().filter(|mount| *mount != "Default")
    }
    let containers = pod.which(|container| bad(container).is_some());
    if containers.is_empty() {
        return None;
    }
    let values: BTreeSet<&str> = pod.containers().filter_map(bad).collect();
    let containers = named("container", &containers);
    broken("procMount", format!("{containers} must not set securityContext.procMount to {}", quoted(&values)))
}

fn selinux_options(pod: &Pod<'_>) -> Option<(String, String)> {
    let version = pod.version;
    let bad_type = |context: &Value| {
        let kind = context["seLinuxOptions"]["type"].as_str().unwrap_or_default();
        let is_allowed = matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || kind == "container_engine_t" && version.has(31);
        !is_allowed
    };
    let sets = |context: &Value, field: &str| {
        context["seLinuxOptions"][field].as_str().is_some_and(|value| !value.is_empty())
    };
    let setters =
        pod.setters(|context| bad_type(context) || sets(context, "user") || sets(context, "role"))?;
    let types =
        pod.values(|context| bad_type(context).then(|| context["seLinuxOptions"]["type"].as_str()).flatten());
    let mut details = Vec::new();
    if !types.is_empty() {
        details.push(format!("{} {}", plural("type", types.len()), quoted(&types)));
    }
    for field in ["user", "role"] {
        if pod.setters(|context| sets(context, field)).is_some() {
            details.push(format!("{field} may not be set"));
        }
    }
    let details = details.join("; ");
    broken("seLinuxOptions", format!("{setters} set forbidden securityContext.seLinuxOptions: {details}"))
}

/// Before 1.19 profiles were annotations.
fn seccomp_annotations(pod: &Pod<'_>) -> Option<(String, String)> {
    let is_allowed = |profile: &str| {
        matches!(profile, "runtime/default" | "docker/default") || profile.starts_with("localhost/")
    };
    let keys: Vec<String> =
        pod.containers().map(|it| format!("{SECCOMP_CONTAINER}{}", name_of(it))).collect();
    let is_read = |key: &str| key == SECCOMP_POD || keys.iter().any(|known| known == key);
    let bad = pod.annotations().filter(|(key, profile)| is_read(key) && !is_allowed(profile));
    let bad: Vec<String> = bad.map(|(key, profile)| format!("{key}={profile:?}")).collect();
    if bad.is_empty() {
        return None;
    }
    broken("seccompProfile", format!("forbidden {} {}", plural("annotation", bad.len()), bad.join(", ")))
}

fn bad_seccomp(context: &Value) -> Option<&str> {
    let profile = context["seccompProfile"].as_object()?;
    let kind = profile.get("type").and_then(Value::as_str).unwrap_or_default();
    (!matches!(kind, "RuntimeDefault" | "Localhost")).then_some(kind)
}

fn seccomp_baseline(pod: &Pod<'_>) -> Option<(String, String)> {
    let setters = pod.setters(|context| bad_seccomp(context).is_some())?;
    let values = pod.values(bad_seccomp);
    broken(
        "seccompProfile",
        format!("{setters} must not set securityContext.seccompProfile.type to {}", quoted(&values)),
    )
}

fn seccomp_restricted(pod: &Pod<'_>) -> Option<(String, String)> {
    if pod.is_windows() {
        return None;
    }
    if let Some(bad) = seccomp_baseline(pod) {
        return Some(bad);
    }
    let silent = |context: &Value| !context["seccompProfile"].is_object();
    if !silent(&pod.spec["securityContext"]) {
        return None;
    }
    let containers = pod.which(|container| silent(&container["securityContext"]));
    if containers.is_empty() {
        return None;
    }
    let containers = named("container", &containers);
    broken(
        "seccompProfile",
        format!(
            "pod or {containers} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
        ),
    )
}

fn sysctls(pod: &Pod<'_>) -> Option<(String, String)> {
    let is_allowed =
        |name: &str| SYSCTLS.iter().any(|(since, known)| *known == name && pod.version.has(*since));
    let names = elements(&pod.spec["securityContext"]["sysctls"]).iter().map(name_of);
    let bad: Vec<&str> = names.filter(|name| !is_allowed(name)).collect();
    if bad.is_empty() { None } else { broken("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(pod: &Pod<'_>) -> Option<(String, String)> {
    let setters = pod.setters(|context| context["windowsOptions"]["hostProcess"] == true)?;
    broken("hostProcess", format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn allow_privilege_escalation(pod: &Pod<'_>) -> Option<(String, String)> {
    let containers = pod.which(|container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    if containers.is_empty() || pod.is_windows() {
        return None;
    }
    broken(
        "allowPrivilegeEscalation != false",
        format!(
            "{} must set securityContext.allowPrivilegeEscalation=false",
            named("container", &containers)
        ),
    )
}

fn restricted_volumes(pod: &Pod<'_>) -> Option<(String, String)> {
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for volume in elements(&pod.spec["volumes"]) {
        let mut fields = volume.as_object().into_iter().flatten().map(|(field, _)| field.as_str());
        let kind = fields.find(|field| *field != "name").unwrap_or("unknown");
        if !VOLUMES.contains(&kind) {
            names.push(name_of(volume));
            kinds.insert(kind);
        }
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {}",
        named("volume", &names),
        uses(names.len()),
        plural("restricted volume type", kinds.len()),
        quoted(&kinds)
    );
    broken("restricted volume types", detail)
}

fn run_as_non_root(pod: &Pod<'_>) -> Option<(String, String)> {
    if pod.has_user_namespace() {
        return None;
    }
    const REASON: &str = "runAsNonRoot != true";
    if let Some(setters) = pod.setters(|context| context["runAsNonRoot"] == false) {
        return broken(REASON, format!("{setters} must not set securityContext.runAsNonRoot=false"));
    }
    if pod.spec["securityContext"]["runAsNonRoot"] == true {
        return None;
    }
    let containers = pod.which(|container| container["securityContext"]["runAsNonRoot"] != true);
    if containers.is_empty() {
        return None;
    }
    broken(
        REASON,
        format!("pod or {} must set securityContext.runAsNonRoot=true", named("container", &containers)),
    )
}

fn run_as_user(pod: &Pod<'_>) -> Option<(String, String)> {
    if pod.has_user_namespace() {
        return None;
    }
    let setters = pod.setters(|context| context["runAsUser"] == 0)?;
    broken("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}
