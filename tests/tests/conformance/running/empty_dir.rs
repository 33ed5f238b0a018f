//! emptyDir volumes: modes, users and media, and what containers share through them.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};

use super::{Pod, script, sleeper, test, test_within};
use crate::{
    coverage::{cases, texts},
    steps::create,
    support::unique,
};

/// A pod with a volume of this medium.
fn with_volume(work: &str, medium: &str) -> Value {
    let mut pod = script(work);
    pod["spec"]["volumes"] = json!([{ "name": "volume", "emptyDir": { "medium": medium } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "volume", "mountPath": "/volume" }]);
    pod
}

/// The kind of file system of the volume, its mode, and whose it is.
const VOLUME: &str = "grep ' /volume ' /proc/mounts | cut -d ' ' -f 3; stat -c '%a %u %g' /volume";

#[track_caller]
fn is_on(medium: &str, said: &str) {
    assert_eq!(said.starts_with("tmpfs\n"), medium == "Memory", "{said}");
}

/// A file of this mode, written by this user.
fn file(user: u32, mode: &str, medium: &str) {
    test(async |bed| {
        let work = format!(
            "umask 0; echo mount tester > /volume/file && chmod {mode} /volume/file
             {VOLUME}; stat -c '%A %u' /volume/file; cat /volume/file"
        );
        let mut pod = with_volume(&work, medium);
        pod["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": user });
        let said = Pod::output(bed, pod).await;
        is_on(medium, &said);
        let shown = match mode {
            "0644" => "-rw-r--r--",
            "0666" => "-rw-rw-rw-",
            _ => "-rwxrwxrwx",
        };
        let rest = said.split_once('\n').map(|(_, rest)| rest);
        assert_eq!(rest, Some(&*format!("777 0 0\n{shown} {user}\nmount tester\n")));
    });
}

/// The volume's own mode.
fn volume(medium: &str) {
    test(async |bed| {
        let said = Pod::output(bed, with_volume(VOLUME, medium)).await;
        is_on(medium, &said);
        super::has_line(&said, "777 0 0");
    });
}

const NOBODY: u32 = 1001;

mod files {
    use super::{NOBODY, cases, file};

    cases! { file:
        "EmptyDir, medium default, volume mode 0644" => should_support_root_0644_default(0, "0644", ""),
        "EmptyDir, medium default, volume mode 0666" => should_support_root_0666_default(0, "0666", ""),
        "EmptyDir, medium default, volume mode 0777" => should_support_root_0777_default(0, "0777", ""),
        "EmptyDir, medium memory, volume mode 0644" => should_support_root_0644_tmpfs(0, "0644", "Memory"),
        "EmptyDir, medium memory, volume mode 0666" => should_support_root_0666_tmpfs(0, "0666", "Memory"),
        "EmptyDir, medium memory, volume mode 0777" => should_support_root_0777_tmpfs(0, "0777", "Memory"),
        "EmptyDir, medium default, volume mode 0644" => should_support_non_root_0644_default(NOBODY, "0644", ""),
        "EmptyDir, medium default, volume mode 0666" => should_support_non_root_0666_default(NOBODY, "0666", ""),
        "EmptyDir, medium default, volume mode 0777" => should_support_non_root_0777_default(NOBODY, "0777", ""),
        "EmptyDir, medium memory, volume mode 0644, non-root user" =>
            should_support_non_root_0644_tmpfs(NOBODY, "0644", "Memory"),
        "EmptyDir, medium memory, volume mode 0666,, non-root user" =>
            should_support_non_root_0666_tmpfs(NOBODY, "0666", "Memory"),
        "EmptyDir, medium memory, volume mode 0777, non-root user" =>
            should_support_non_root_0777_tmpfs(NOBODY, "0777", "Memory"),
    }
}
pub(crate) use files::TEXTS as FILES;

mod volumes {
    use super::{cases, volume};

    cases! { volume:
        "EmptyDir, medium default, volume mode default" => volume_on_default_medium_should_have_the_correct_mode(""),
        "EmptyDir, medium memory, volume mode default" => volume_on_tmpfs_should_have_the_correct_mode("Memory"),
    }
}
pub(crate) use volumes::TEXTS as VOLUMES;

texts! {
    "EmptyDir, Shared volumes between containers" => pod_should_support_shared_volumes_between_containers,
    "EmptyDir Wrapper Volume, Secret and ConfigMap volumes, no conflict" => should_not_conflict,
    "EmptyDir Wrapper Volume, ConfigMap volumes, no race" =>
        should_not_cause_race_condition_when_used_for_configmaps,
}

/// EmptyDir, Shared volumes between containers
#[test]
fn pod_should_support_shared_volumes_between_containers() {
    test(async |bed| {
        let mut pod = with_volume("sleep 3600", "");
        let mut second = pod["spec"]["containers"][0].clone();
        second["name"] = json!("second");
        second["volumeMounts"][0]["mountPath"] = json!("/data");
        second["command"] = json!(["sh", "-c", "echo Hello from the second container > /data/file"]);
        pod["spec"]["containers"].as_array_mut().expect("containers").push(second);
        let pod = Pod::create(bed, pod).await;
        let said = pod.sees("main", "cat /volume/file", |said| !said.is_empty()).await;
        assert_eq!(said, "Hello from the second container\n");
    });
}

/// EmptyDir Wrapper Volume, Secret and ConfigMap volumes, no conflict
#[test]
fn should_not_conflict() {
    test(async |bed| {
        let name = unique("wrapped");
        let metadata = json!({ "name": name });
        create(
            &bed.api::<Secret>(),
            json!({ "metadata": metadata, "stringData": { "key": "of the secret" } }),
        )
        .await;
        create(&bed.api::<ConfigMap>(), json!({ "metadata": metadata, "data": { "key": "of the map" } }))
            .await;
        let mut pod = script("cat /secret/key; echo; cat /map/key");
        pod["spec"]["volumes"] = json!([
            { "name": "secret", "secret": { "secretName": name } },
            { "name": "map", "configMap": { "name": name } },
        ]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([
            { "name": "secret", "mountPath": "/secret", "readOnly": true },
            { "name": "map", "mountPath": "/map" },
        ]);
        assert_eq!(Pod::output(bed, pod).await, "of the secret\nof the map");
    });
}

/// EmptyDir Wrapper Volume, ConfigMap volumes, no race
#[test]
fn should_not_cause_race_condition_when_used_for_configmaps() {
    const MAPS: usize = 50;
    const PODS: usize = 5;
    test_within(std::time::Duration::from_secs(600), async |bed| {
        for number in 0..MAPS {
            let map = json!({
                "metadata": { "name": format!("racey-{number}") },
                "data": { "data-1": format!("value-{number}") },
            });
            create(&bed.api::<ConfigMap>(), map).await;
        }
        let node = Pod::start(bed, sleeper()).await.get().await.expect("the pod is read");
        let mut pods = Vec::new();
        for _ in 0..PODS {
            let mut pod = sleeper();
            pod["spec"]["nodeName"] = node["spec"]["nodeName"].clone();
            let volume = |number| json!({ "name": format!("racey-{number}"), "configMap": { "name": format!("racey-{number}") } });
            let mount =
                |number| json!({ "name": format!("racey-{number}"), "mountPath": format!("/maps/{number}") });
            pod["spec"]["volumes"] = json!((0..MAPS).map(volume).collect::<Vec<_>>());
            pod["spec"]["containers"][0]["volumeMounts"] = json!((0..MAPS).map(mount).collect::<Vec<_>>());
            pods.push(Pod::create(bed, pod).await);
        }
        for pod in pods {
            pod.ready().await;
            let script = format!("for n in $(seq 0 {}); do cat /maps/$n/data-1; echo; done", MAPS - 1);
            let expected: String = (0..MAPS).map(|number| format!("value-{number}\n")).collect();
            assert_eq!(pod.run(&script).await, expected);
        }
    });
}
