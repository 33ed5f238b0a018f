//! Life of pods: what a manifest asks for is what runs.

use std::time::Duration;

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
    assert_eq!(std::fs::read_to_string(&file).expect("it was asked"), "asked\n");
    std::fs::remove_file(&file).expect("removed");
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
    let files = std::fs::read_dir(&logs).unwrap_or_else(|error| panic!("{logs}: {error}")).count();
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
    let mut forward = std::process::Command::new("kubectl")
        .args([
            "--kubeconfig",
            &ns.cluster.kubeconfig,
            "-n",
            &ns.name,
            "port-forward",
            "pod/web",
            "18090:8080",
        ])
        .stdout(std::process::Stdio::null())
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
