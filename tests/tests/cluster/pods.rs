//! Life of pods: what a manifest asks for is what runs.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use hawser_tests::{cluster::Namespace, eventually};

const SOON: Duration = Duration::from_secs(40);

#[test]
fn init_containers_run_in_order_before_the_others() {
    let Some(ns) = Namespace::of_shared_cluster("init") else { return };
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: main }
spec:
  restartPolicy: Never
  volumes: [{ name: work, emptyDir: {} }]
  initContainers:
  - { name: one, image: BUSYBOX, command: [sh, -c, "echo one >> /work/log"], volumeMounts: [{ name: work, mountPath: /work }] }
  - { name: two, image: BUSYBOX, command: [sh, -c, "echo two >> /work/log"], volumeMounts: [{ name: work, mountPath: /work }] }
  containers:
  - { name: main, image: BUSYBOX, command: [cat, /work/log], volumeMounts: [{ name: work, mountPath: /work }] }
"#,
    )
    .expect("applied");
    eventually(SOON, "the pod succeeds", || {
        let phase = ns.field("pod/main", "/status/phase")?;
        anyhow::ensure!(phase == "Succeeded", "{phase}");
        Ok(())
    });
    assert_eq!(ns.kubectl("logs main").expect("its log"), "one\ntwo\n");
}

#[test]
fn crashing_container_restarts_with_back_off_and_its_last_log_is_kept() {
    let Some(ns) = Namespace::of_shared_cluster("crash") else { return };
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: crash }
spec:
  containers: [{ name: main, image: BUSYBOX, command: [sh, -c, "echo going down; exit 3"] }]
"#,
    )
    .expect("applied");
    eventually(SOON, "CrashLoopBackOff", || {
        let reason = ns.field("pod/crash", "/status/containerStatuses/0/state/waiting/reason")?;
        anyhow::ensure!(reason == "CrashLoopBackOff", "{reason}");
        Ok(())
    });
    let code = ns.field("pod/crash", "/status/containerStatuses/0/lastState/terminated/exitCode");
    assert_eq!(code.expect("an exit code"), "3");
    assert!(ns.kubectl("logs crash -p").expect("the last log").contains("going down"));
    let events = ns.kubectl("get events").expect("events");
    assert!(events.contains("BackOff"), "{events}");
}

#[test]
fn debugging_container_joins_a_running_pod() {
    let Some(ns) = Namespace::of_shared_cluster("debug") else { return };
    ns.kubectl(&format!("run app --image={}", ns.cluster.demo_image(1))).expect("created");
    ns.wait_for_pod("app");
    let image = format!("--image={}", ns.cluster.busybox_image());
    let look = "wget -qO- 127.0.0.1:8080/healthz; echo";
    ns.kubectl_words(&["debug", "app", "--container=look", &image, "--", "sh", "-c", look])
        .expect("the container is added");
    eventually(SOON, "the container ends", || {
        let code = ns.field("pod/app", "/status/ephemeralContainerStatuses/0/state/terminated/exitCode")?;
        anyhow::ensure!(code == "0", "{code}");
        Ok(())
    });
    assert_eq!(ns.kubectl("logs app -c look").expect("its log").trim_end(), "ok");
    // What it shares a network with runs on as if nothing had been.
    assert_eq!(ns.field("pod/app", "/status/containerStatuses/0/restartCount").expect("a count"), "0");
    assert_eq!(ns.field("pod/app", "/status/phase").expect("a phase"), "Running");
}

#[test]
fn missing_image_backs_off_and_says_why() {
    let Some(ns) = Namespace::of_shared_cluster("noimage") else { return };
    let image = format!("{}/no/such:1", ns.cluster.registry);
    ns.kubectl(&format!("run lost --image={image}")).expect("created");
    eventually(SOON, "ErrImagePull or ImagePullBackOff", || {
        let reason = ns.field("pod/lost", "/status/containerStatuses/0/state/waiting/reason")?;
        anyhow::ensure!(reason == "ErrImagePull" || reason == "ImagePullBackOff", "{reason}");
        Ok(())
    });
    eventually(SOON, "an event with the image", || {
        let described = ns.kubectl("describe pod lost")?;
        anyhow::ensure!(
            described.contains("Failed to pull image") && described.contains(&image),
            "{described}"
        );
        Ok(())
    });
}

/// Gives the demo image of a version to the registry once more, under a name that is this test's alone.
fn push_as_own(ns: &Namespace, version: u8) -> String {
    let own = format!("{}/{}/web:1", ns.cluster.registry, ns.name);
    let status = Command::new("skopeo")
        .args(["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .arg(format!("docker://{}", ns.cluster.demo_image(version)))
        .arg(format!("docker://{own}"))
        .status();
    assert!(status.expect("skopeo runs").success(), "{own} is pushed");
    own
}

/// A pod on the first node: what is present is a matter of each node.
fn run_with_policy(ns: &Namespace, pod: &str, image: &str, policy: &str) {
    let node = ns.cluster.nodes().expect("nodes").remove(0);
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: { name: POD }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: "IMAGE", imagePullPolicy: POLICY }]
"#;
    let manifest = manifest.replace("POD", pod).replace("NODE", &node).replace("IMAGE", image);
    ns.apply(&manifest.replace("POLICY", policy)).expect("applied");
}

#[test]
fn image_is_never_pulled_where_the_policy_forbids_it() {
    let Some(ns) = Namespace::of_shared_cluster("never") else { return };
    let image = push_as_own(&ns, 1);
    run_with_policy(&ns, "refused", &image, "Never");
    eventually(SOON, "ErrImageNeverPull", || {
        let reason = ns.field("pod/refused", "/status/containerStatuses/0/state/waiting/reason")?;
        anyhow::ensure!(reason == "ErrImageNeverPull", "{reason}");
        let events = ns.kubectl("get events")?;
        anyhow::ensure!(events.contains("is not present with pull policy of Never"), "{events}");
        Ok(())
    });
    run_with_policy(&ns, "fetcher", &image, "IfNotPresent");
    ns.wait_for_pod("fetcher");
    run_with_policy(&ns, "present", &image, "Never");
    ns.wait_for_pod("present");
}

#[test]
fn moved_tag_is_pulled_again_where_the_policy_asks_for_it() {
    let Some(ns) = Namespace::of_shared_cluster("moved") else { return };
    let check = |pod: &str, version: u8| {
        let environment = ns.exec(pod, &["env"]).expect("its environment");
        let expected = format!("VERSION={version}");
        assert!(environment.lines().any(|line| line == expected), "{pod}: no {expected} in {environment}");
    };
    let image = push_as_own(&ns, 1);
    run_with_policy(&ns, "first", &image, "Always");
    ns.wait_for_pod("first");
    check("first", 1);
    push_as_own(&ns, 2);
    run_with_policy(&ns, "keeper", &image, "IfNotPresent");
    ns.wait_for_pod("keeper");
    check("keeper", 1);
    run_with_policy(&ns, "fetcher", &image, "Always");
    ns.wait_for_pod("fetcher");
    check("fetcher", 2);
}

/// `kill -9` of the one process whose command line holds all of `parts`.
fn kill(parts: &[&str]) {
    let is_meant = |pid: &String| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        parts.iter().all(|part| command.contains(part))
    };
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let pids: Vec<String> = processes
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.parse::<u32>().is_ok())
        .filter(is_meant)
        .collect();
    assert_eq!(pids.len(), 1, "{pids:?} are {parts:?}");
    let status = Command::new("kill").args(["-KILL", &pids[0]]).status();
    assert!(status.expect("kill runs").success(), "{parts:?} ran");
}

#[test]
fn container_whose_shim_is_killed_has_ended_and_restarts_by_its_policy() {
    let Some(ns) = Namespace::of_shared_cluster("shim") else { return };
    let image = ns.cluster.demo_image(1);
    for (pod, policy) in [("web", "Always"), ("once", "Never")] {
        let grace = r#"{"spec":{"terminationGracePeriodSeconds":1}}"#;
        let words = ["run", pod, "--image", &image, "--restart", policy, "--port=8080", "--overrides", grace];
        ns.kubectl_words(&words).expect("created");
        ns.wait_for_pod(pod);
    }
    ns.kubectl("expose pod web --port=80 --target-port=8080").expect("exposed");
    let node = ns.field("pod/web", "/spec/nodeName").expect("a node");
    let address = format!("{}:80", ns.field("service/web", "/spec/clusterIP").expect("an address"));
    let demo = std::env::var("HAWSER_TEST_DEMO").expect("the path of the demo program");
    let ask = || ns.cluster.on_node(&node, &[&demo, "get", &address, "20"]);
    eventually(SOON, "the service answers", ask);
    let ids = ["web", "once"].map(|pod| {
        let id = ns.field(&format!("pod/{pod}"), "/status/containerStatuses/0/containerID");
        id.expect("its container's id").trim_start_matches("containerd://").to_owned()
    });
    for id in &ids {
        kill(&["containerd-shim", id]);
    }
    for (pod, state, id) in [("web", "lastState", &ids[0]), ("once", "state", &ids[1])] {
        eventually(SOON, "the container's end is reported", || {
            let path = format!("/status/containerStatuses/0/{state}/terminated");
            let ended = ns.field(&format!("pod/{pod}"), &path)?;
            anyhow::ensure!(ended.contains(id) && ended.contains(r#""exitCode":137"#), "{pod}: {ended}");
            Ok(())
        });
    }
    ns.wait_for_pod("web");
    assert_eq!(ns.field("pod/web", "/status/containerStatuses/0/restartCount").expect("a number"), "1");
    eventually(SOON, "the service answers again", ask);
    assert_eq!(ns.field("pod/once", "/status/phase").expect("a phase"), "Failed");
    // Nothing of the killed shims holds up the pods' end.
    ns.kubectl("delete pod web once --timeout=30s").expect("they end");
}

/// Nothing is lost: what the container says meanwhile waits in its pipes.
#[test]
fn log_goes_on_whole_after_its_writer_was_killed() {
    let Some(ns) = Namespace::of_shared_cluster("logwriter") else { return };
    // A writer has three ways to the output.
    let kinds = [("pipes", "stdin: false"), ("fifos", "stdin: true"), ("terminal", "tty: true")];
    for (pod, streams) in kinds {
        let manifest = r#"
apiVersion: v1
kind: Pod
metadata: { name: POD }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - { name: main, image: BUSYBOX, STREAMS, command: [sh, -c, "n=0; while true; do n=$((n+1)); echo $n; sleep 0.1; done"] }
"#;
        ns.apply(&manifest.replace("POD", pod).replace("STREAMS", streams)).expect("applied");
    }
    let lines = |pod: &str| -> anyhow::Result<Vec<usize>> {
        let log = ns.kubectl(&format!("logs {pod}"))?;
        Ok(log.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    };
    let said = kinds.map(|(pod, _)| {
        ns.wait_for_pod(pod);
        let said = eventually(SOON, "its log begins", || {
            let said = lines(pod)?.len();
            anyhow::ensure!(said > 0);
            Ok(said)
        });
        let id = ns.field(&format!("pod/{pod}"), "/status/containerStatuses/0/containerID");
        kill(&["log-writer", id.expect("its container's id").trim_start_matches("containerd://")]);
        said
    });
    for ((pod, _), said) in kinds.iter().zip(said) {
        // Enough that some were said while there was no writer, and some after.
        let log = eventually(SOON, "its log goes on", || {
            let log = lines(pod)?;
            anyhow::ensure!(log.len() > said + 50, "{pod}: {} lines, {said} before", log.len());
            Ok(log)
        });
        assert!(log.iter().copied().eq(1..=log.len()), "{pod}: lines are lost or doubled: {log:?}");
        let restarts = ns.field(&format!("pod/{pod}"), "/status/containerStatuses/0/restartCount");
        assert_eq!(restarts.expect("a number"), "0", "{pod}");
    }
}

#[test]
fn liveness_probe_restarts_and_readiness_probe_gates() {
    let Some(ns) = Namespace::of_shared_cluster("probes") else { return };
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: probed }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "touch /tmp/live; sleep 600"]
    livenessProbe: { exec: { command: [cat, /tmp/live] }, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 10 }
    readinessProbe: { exec: { command: [cat, /tmp/ready] }, periodSeconds: 1, timeoutSeconds: 10 }
"#,
    )
    .expect("applied");
    eventually(SOON, "it runs, not ready", || {
        anyhow::ensure!(ns.field("pod/probed", "/status/phase")? == "Running");
        anyhow::ensure!(ns.field("pod/probed", "/status/containerStatuses/0/ready")? == "false");
        Ok(())
    });
    ns.exec("probed", &["touch", "/tmp/ready"]).expect("made ready");
    ns.wait_for_pod("probed");
    ns.exec("probed", &["rm", "/tmp/live"]).expect("made to fail");
    eventually(SOON, "one restart", || {
        let count = ns.field("pod/probed", "/status/containerStatuses/0/restartCount")?;
        anyhow::ensure!(count == "1", "{count}");
        Ok(())
    });
    assert!(ns.kubectl("get events").expect("events").contains("Unhealthy"));
}

#[test]
fn environment_and_volumes_carry_settings_and_follow_changes() {
    let Some(ns) = Namespace::of_shared_cluster("settings") else { return };
    ns.kubectl("create configmap settings --from-literal=colour=blue").expect("created");
    ns.kubectl("create secret generic keys --from-literal=password=open").expect("created");
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: reader, labels: { app: reader } }
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - { name: settings, configMap: { name: settings } }
  - { name: keys, secret: { secretName: keys, defaultMode: 0400 } }
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "echo $(GREETING); sleep 600"]
    env:
    - { name: WHO, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
    - { name: GREETING, value: "hello $(WHO)" }
    - { name: COLOUR, valueFrom: { configMapKeyRef: { name: settings, key: colour } } }
    - { name: PASSWORD, valueFrom: { secretKeyRef: { name: keys, key: password } } }
    - { name: ADDRESS, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
    volumeMounts:
    - { name: settings, mountPath: /settings }
    - { name: keys, mountPath: /keys }
"#,
    )
    .expect("applied");
    ns.wait_for_pod("reader");
    let environment = ns.exec("reader", &["env"]).expect("its environment");
    let address = ns.field("pod/reader", "/status/podIP").expect("an address");
    for line in ["COLOUR=blue", "PASSWORD=open", "GREETING=hello reader", &format!("ADDRESS={address}")] {
        assert!(environment.lines().any(|found| found == line), "no {line} in {environment}");
    }
    eventually(SOON, "the expanded command ran", || {
        let log = ns.kubectl("logs reader")?;
        anyhow::ensure!(log == "hello reader\n", "{log:?}");
        Ok(())
    });
    assert_eq!(ns.exec("reader", &["cat", "/settings/colour", "/keys/password"]).expect("read"), "blueopen");
    ns.kubectl_words(&["patch", "configmap", "settings", "-p", r#"{"data":{"colour":"green"}}"#])
        .expect("patched");
    ns.kubectl_words(&["patch", "secret", "keys", "-p", r#"{"stringData":{"password":"shut"}}"#])
        .expect("patched");
    eventually(SOON, "the changes reach the pod", || {
        let now = ns.exec("reader", &["cat", "/settings/colour", "/keys/password"])?;
        anyhow::ensure!(now == "greenshut", "{now}");
        Ok(())
    });
}

#[test]
fn limits_reach_the_kernel_and_too_much_memory_is_reported() {
    let Some(ns) = Namespace::of_shared_cluster("limits") else { return };
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: hungry }
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "tail /dev/zero"]
    resources: { limits: { memory: 32Mi, cpu: 500m } }
"#,
    )
    .expect("applied");
    eventually(SOON, "the end is reported", || {
        let reason = ns.field("pod/hungry", "/status/containerStatuses/0/state/terminated/reason")?;
        anyhow::ensure!(reason == "OOMKilled", "{reason}");
        Ok(())
    });
    assert_eq!(ns.field("pod/hungry", "/status/phase").expect("a phase"), "Failed");
}

#[test]
fn deletion_asks_first_and_ends_in_time() {
    let Some(ns) = Namespace::of_shared_cluster("grace") else { return };
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: polite }
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{ name: out, hostPath: { path: /tmp, type: Directory } }]
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "trap 'echo asked > /out/FILE; exit 0' TERM; touch /tmp/set; while true; do sleep 0.1; done"]
    readinessProbe: { exec: { command: [cat, /tmp/set] }, periodSeconds: 1 }
    volumeMounts: [{ name: out, mountPath: /out }]
"#
        .replace("FILE", &ns.name)
        .as_str(),
    )
    .expect("applied");
    ns.wait_for_pod("polite");
    ns.kubectl("delete pod polite --timeout=15s").expect("it ends before its grace period does");
    let file = format!("/tmp/{}", ns.name);
    assert_eq!(fs::read_to_string(&file).expect("it was asked"), "asked\n");
    fs::remove_file(&file).expect("removed");
}

#[test]
fn rotated_log_is_read_whole() {
    let Some(ns) = Namespace::of_shared_cluster("rotate") else { return };
    // 2,500 lines of 90 bytes with their marks: four files of 64 KiB, which is one less than are kept.
    ns.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: talker }
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "n=0; while [ $n -lt 2500 ]; do n=$((n+1)); printf 'line %05d of a log that is long enough to be rotated\\n' $n; done"]
"#,
    )
    .expect("applied");
    eventually(SOON, "it has said everything", || {
        let phase = ns.field("pod/talker", "/status/phase")?;
        anyhow::ensure!(phase == "Succeeded", "{phase}");
        Ok(())
    });
    // The log's writer may be a moment behind the container's end.
    let log = eventually(SOON, "its log is whole", || {
        let log = ns.kubectl("logs talker")?;
        anyhow::ensure!(log.lines().count() >= 2500, "{} lines", log.lines().count());
        Ok(log)
    });
    let lines: Vec<&str> = log.lines().collect();
    let numbers = lines.iter().map(|line| line[5..10].parse::<usize>().expect("a numbered line"));
    assert!(numbers.eq(1..=2500), "lines are lost, doubled or out of order");
    let tail = ns.kubectl("logs talker --tail=1250").expect("its end");
    assert!(tail.lines().eq(lines[1250..].iter().copied()));
    let node = ns.field("pod/talker", "/spec/nodeName").expect("a node");
    let uid = ns.field("pod/talker", "/metadata/uid").expect("an uid");
    let logs = format!("/var/lib/{}/{node}/agent/logs/{}_talker_{uid}/main", ns.cluster.name, ns.name);
    let files = fs::read_dir(&logs).unwrap_or_else(|error| panic!("{logs}: {error}")).count();
    assert!((3..=4).contains(&files), "{files} files in {logs}");
}

#[test]
fn exec_attach_logs_and_port_forward_stream() {
    let Some(ns) = Namespace::of_shared_cluster("streams") else { return };
    ns.kubectl(&format!("run web --image={}", ns.cluster.demo_image(1))).expect("created");
    ns.wait_for_pod("web");
    let echoed =
        ns.cluster.kubectl_with(["-n", &ns.name, "exec", "-i", "web", "--", "cat"], Some("through and back"));
    assert_eq!(echoed.expect("standard input passes"), "through and back");
    let failed = ns.exec("web", &["sh", "-c", "echo wrong >&2; exit 7"]).expect_err("exit codes pass");
    assert!(format!("{failed:#}").contains("exit code 7"), "{failed:#}");
    for flags in ["--tail=1", "--since=1h", "--timestamps", "--limit-bytes=10"] {
        assert!(!ns.kubectl(&format!("logs web {flags}")).expect("logs").is_empty(), "{flags}");
    }
    let mut forward = Command::new("kubectl")
        .args([
            "--kubeconfig",
            &ns.cluster.kubeconfig,
            "-n",
            &ns.name,
            "port-forward",
            "pod/web",
            "18090:8080",
        ])
        .stdout(Stdio::null())
        .spawn()
        .expect("kubectl runs");
    let answer = std::panic::catch_unwind(|| {
        eventually(SOON, "the forwarded port answers", || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect("127.0.0.1:18090")?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    });
    forward.kill().expect("it still runs");
    forward.wait().expect("it ends");
    assert!(answer.expect("answered").ends_with("web"));
}
