use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::Security;

fn pod() -> PodSandboxConfig {
    PodSandboxConfig {
        pod_uid: "uid-1".into(),
        pod_name: "web".into(),
        hostname: "web-host".into(),
        cgroup_parent: "/hawser/n1/pod-1".into(),
        sysctls: BTreeMap::from([("net.core.somaxconn".into(), "1024".into())]),
        ..PodSandboxConfig::default()
    }
}

fn container() -> ContainerConfig {
    ContainerConfig { name: "main".into(), image: "img".into(), ..ContainerConfig::default() }
}

fn image() -> ProcessConfig {
    ProcessConfig {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["serve".into()],
        env: vec!["A=image".into(), "PATH=/bin".into()],
        working_dir: Some("/srv".into()),
        ..Default::default()
    }
}

fn shared() -> SharedNamespaces {
    SharedNamespaces {
        users: None,
        network: "/ns/net".into(),
        uts: "/ns/uts".into(),
        ipc: Some(PathBuf::from("/ns/ipc")),
        pid: None,
        shm: "/shm".into(),
    }
}

fn build_for(pod: &PodSandboxConfig, container: &ContainerConfig, unified_cgroup: bool) -> Value {
    let input = SpecInput {
        id: "cid",
        pod,
        container,
        image: &image(),
        user: user::User { uid: 1, gid: 2, groups: vec![2, 3] },
        namespaces: &shared(),
        join_pid: None,
        devices: &[],
        seccomp: None,
        apparmor: Some("profile".into()),
        selinux: Some(("process".into(), "mounts".into())),
        unified_cgroup,
    };
    build(&input).unwrap()
}

#[test]
fn command_and_args_follow_the_table_of_kubernetes() {
    #[track_caller]
    fn check(name: &str, command: &[&str], args: &[&str], expected: &[&str]) {
        let own = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        let container = ContainerConfig { command: own(command), args: own(args), ..container() };
        assert_eq!(arguments(&container, &image()).unwrap(), own(expected), "{name}");
    }
    check("neither", &[], &[], &["/entry", "serve"]);
    check("args only", &[], &["-v"], &["/entry", "-v"]);
    check("command only", &["/bin/sh"], &[], &["/bin/sh"]);
    check("both", &["/bin/sh"], &["-c", "x"], &["/bin/sh", "-c", "x"]);
    let nothing = arguments(&container(), &ProcessConfig::default());
    assert!(nothing.unwrap_err().to_string().contains("no command specified"));
}

#[test]
fn own_environment_wins_over_the_image() {
    let env = vec![("A".to_owned(), "pod".to_owned()), ("B".to_owned(), "x=y".to_owned())];
    let spec = build_for(&pod(), &ContainerConfig { env, ..container() }, false);
    assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "HOSTNAME=web-host", "A=pod", "B=x=y"]));
}

#[test]
fn working_directory_is_the_pods_then_the_images_then_root() {
    let dir = |own: Option<&str>, image: &ProcessConfig| {
        working_dir(&ContainerConfig { working_dir: own.map(Into::into), ..container() }, image)
    };
    assert_eq!(dir(Some("/own"), &image()), "/own");
    assert_eq!(dir(None, &image()), "/srv");
    assert_eq!(dir(Some(""), &ProcessConfig::default()), "/");
}

#[test]
fn containers_join_the_pods_namespaces() {
    let spec = build_for(&pod(), &container(), false);
    let expected = json!([
        { "type": "mount" },
        { "type": "pid" },
        { "type": "network", "path": "/ns/net" },
        { "type": "uts", "path": "/ns/uts" },
        { "type": "ipc", "path": "/ns/ipc" },
    ]);
    assert_eq!(spec["linux"]["namespaces"], expected);
    assert_eq!(spec["annotations"]["io.containerd.runc.v2.group"], "uid-1");
    let host_pid = build_for(&PodSandboxConfig { host_pid: true, ..pod() }, &container(), true);
    let types: Vec<_> =
        host_pid["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].clone()).collect();
    assert_eq!(types, ["mount", "network", "uts", "ipc", "cgroup"]);
}

#[test]
fn limits_are_written_as_asked() {
    let resources = Resources {
        cpu_shares: Some(512),
        cpu_quota_us: Some(50_000),
        memory_limit_bytes: Some(64 << 20),
        pids_limit: Some(100),
        oom_score_adj: Some(500),
        ..Default::default()
    };
    let limited = ContainerConfig { resources, ..container() };
    let spec = build_for(&pod(), &limited, false);
    let written = &spec["linux"]["resources"];
    assert_eq!(written["cpu"], json!({ "shares": 512, "quota": 50_000, "period": 100_000 }));
    assert_eq!(written["memory"], json!({ "limit": 64 << 20 }));
    assert_eq!(written["pids"], json!({ "limit": 100 }));
    assert_eq!(spec["process"]["oomScoreAdj"], 500);
    assert_eq!(spec["linux"]["cgroupsPath"], "/hawser/n1/pod-1/cid");
    let unified = build_for(&pod(), &limited, true);
    assert_eq!(unified["linux"]["resources"]["memory"]["swap"], json!(64 << 20));
    assert_eq!(build_for(&pod(), &container(), false)["linux"]["resources"].get("cpu"), None);
    let together = ContainerConfig { oom_group: true, ..container() };
    let written = build_for(&pod(), &together, true)["linux"]["resources"]["unified"].clone();
    assert_eq!(written, json!({ "memory.oom.group": "1" }));
    assert_eq!(build_for(&pod(), &together, false)["linux"]["resources"].get("unified"), None);
}

#[test]
fn privileged_container_sees_everything() {
    let security = Security { privileged: true, ..Default::default() };
    let spec = build_for(&pod(), &ContainerConfig { security, ..container() }, false);
    assert_eq!(spec["linux"]["maskedPaths"], json!([]));
    assert_eq!(spec["linux"]["resources"]["devices"], json!([{ "allow": true, "access": "rwm" }]));
    assert_eq!(spec["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 41);
}

#[test]
fn exec_keeps_user_and_environment() {
    let spec = build_for(&pod(), &container(), false);
    let process = exec_process(&spec["process"], &["ls".into(), "-l".into()], true).unwrap();
    assert_eq!(process["args"], json!(["ls", "-l"]));
    assert_eq!(process["terminal"], true);
    assert_eq!(process["user"], spec["process"]["user"]);
    assert!(process["env"].as_array().unwrap().contains(&json!("TERM=xterm")));
    assert!(exec_process(&spec["process"], &[], false).is_err());
}

#[test]
fn process_namespace_is_own_shared_or_anothers() {
    let of_pod = SharedNamespaces { pid: Some("/ns/pid".into()), ..shared() };
    let check = |name: &str, namespaces: &SharedNamespaces, join_pid: Option<&Path>, expected: Value| {
        let (pod, container, image) = (pod(), container(), image());
        let user = user::User { uid: 0, gid: 0, groups: vec![] };
        let input = SpecInput {
            id: "cid",
            pod: &pod,
            container: &container,
            image: &image,
            user,
            namespaces,
            join_pid,
            devices: &[],
            seccomp: None,
            apparmor: None,
            selinux: None,
            unified_cgroup: false,
        };
        let spec = build(&input).unwrap();
        assert_eq!(spec["linux"]["namespaces"][1], expected, "{name}");
    };
    let target = Path::new("/proc/7/ns/pid");
    check("own", &shared(), None, json!({ "type": "pid" }));
    check("the pod's", &of_pod, None, json!({ "type": "pid", "path": "/ns/pid" }));
    check("a container's", &shared(), Some(target), json!({ "type": "pid", "path": "/proc/7/ns/pid" }));
}

#[test]
fn huge_pages_are_limited_by_size() {
    let hugepage_limits = BTreeMap::from([("2MB".to_owned(), 4 << 20)]);
    let written = limits(&Resources { hugepage_limits, ..Resources::default() }, false);
    assert_eq!(written, json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 << 20 }] }));
}

#[test]
fn labels_and_profile_are_passed_on() {
    let spec = build_for(&pod(), &container(), false);
    assert_eq!(spec["process"]["apparmorProfile"], "profile");
    assert_eq!(
        (&spec["process"]["selinuxLabel"], &spec["linux"]["mountLabel"]),
        (&json!("process"), &json!("mounts"))
    );
}
