//! Resources of running pods that change in place: the kernel has them, the status says so, nothing is restarted.

use anyhow::ensure;
use k8s_openapi::api::core::v1 as core;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Pod, sleeper, test};
use crate::{
    coverage::texts,
    steps::as_json,
    support::{Bed, eventually, object},
};

texts! {
    "In-place Pod Resize, guaranteed pods with multiple containers, net increase" =>
        increase_cpu_mem_on_c1_c2_decrease_cpu_mem_on_c3_net_increase,
    "In-place Pod Resize, guaranteed pods with multiple containers, net decrease" =>
        increase_cpu_mem_on_c1_decrease_cpu_mem_on_c2_c3_net_decrease,
    "In-place Pod Resize, guaranteed pods with multiple containers, various operations" =>
        increase_cpu_c1_c3_memory_c2_c3_decrease_cpu_c2,
    "In-place Pod Resize, burstable pod resized with equivalents" => resize_with_equivalents,
    "In-place Pod Resize, burtable pod with multiple containers and various operations" =>
        containers_various_operations_performed_including_adding_limits_and_requests,
    "In-place Pod Resize, read and replace endpoints" => resize_pod_via_the_replace_endpoint,
}

/// A container's quota of CPU in µs for 100 ms, and limit of memory in bytes; on either kind of hierarchy.
const LIMITS: &str = "cd /sys/fs/cgroup; if [ -f cpu.max ]; then cut -d ' ' -f 1 cpu.max; cat memory.max
    else cat cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes; fi";

fn resources(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Value {
    let of = |list: &[(&str, &str)]| -> Value {
        Value::Object(list.iter().map(|(name, amount)| ((*name).to_owned(), json!(amount))).collect())
    };
    let mut resources = json!({});
    if !requests.is_empty() {
        resources["requests"] = of(requests);
    }
    if !limits.is_empty() {
        resources["limits"] = of(limits);
    }
    resources
}

/// Requests that are the limits.
fn guaranteed(cpu: &str, memory: &str) -> Value {
    let all = [("cpu", cpu), ("memory", memory)];
    resources(&all, &all)
}

fn name(number: usize) -> String {
    format!("c{}", number + 1)
}

/// A pod whose containers have these resources.
fn with_resources(all: &[Value]) -> Value {
    let mut pod = sleeper();
    let container = pod["spec"]["containers"][0].clone();
    let containers = all.iter().enumerate().map(|(number, resources)| {
        let mut container = container.clone();
        container["name"] = json!(name(number));
        container["resources"] = resources.clone();
        container["resizePolicy"] = json!(
            ["cpu", "memory"]
                .map(|resource| json!({ "resourceName": resource, "restartPolicy": "NotRequired" }))
        );
        container
    });
    pod["spec"]["containers"] = containers.collect();
    pod
}

/// Waits until the status has these resources, and checks what the kernel has.
async fn has(pod: &Pod, all: &[Value]) -> Value {
    let seen = eventually("the resources are the containers'", async || {
        let pod = pod.get().await?;
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let resizes: Vec<_> = conditions
            .filter(|condition| condition["type"].as_str().is_some_and(|kind| kind.starts_with("PodResize")))
            .collect();
        ensure!(resizes.is_empty(), "{resizes:?}");
        let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        for (status, expected) in statuses.zip(all) {
            ensure!(status["resources"] == *expected, "{} is not {expected}", status["resources"]);
        }
        Ok(pod)
    })
    .await;
    for (number, expected) in all.iter().enumerate() {
        let status = &seen["status"]["containerStatuses"][number];
        assert_eq!(status["restartCount"], 0, "{status}");
        assert_eq!(
            status["allocatedResources"],
            expected.get("requests").cloned().unwrap_or_default(),
            "{status}"
        );
        let (cpu, memory) = (&expected["limits"]["cpu"], &expected["limits"]["memory"]);
        // A quota has a least value: a millisecond.
        let quota = cpu.as_str().map(|cpu| (amount(cpu) / 10).max(1_000).to_string());
        let bytes = memory.as_str().map(|memory| (amount(memory) / 1_000).to_string());
        eventually("the kernel has them", async || {
            let found = pod.exec(&name(number), &["sh", "-c", LIMITS]).await?.stdout;
            let mut lines = found.lines();
            for expected in [&quota, &bytes] {
                let line = lines.next().unwrap_or_default();
                match expected {
                    Some(expected) => ensure!(line == expected, "{line} is not {expected}"),
                    // More than any machine has.
                    None => ensure!(line == "max" || line == "-1" || line.len() > 15, "{line} is a limit"),
                }
            }
            Ok(())
        })
        .await;
    }
    seen
}

/// `10m`, `20Mi`, in thousandths, of which a quota is a tenth in µs.
fn amount(text: &str) -> u64 {
    let (digits, factor) = match text {
        _ if text.ends_with("Mi") => (text.trim_end_matches("Mi"), 1_000 << 20),
        _ if text.ends_with('m') => (text.trim_end_matches('m'), 1_000),
        _ => (text, 1_000_000),
    };
    digits.parse::<u64>().expect("an amount") * factor
}

/// A pod's containers go from some resources to others, and back.
fn resized(before: &[Value], after: &[Value]) {
    test(async |bed| {
        let pod = Pod::start(bed, with_resources(before)).await;
        let first = has(&pod, before).await;
        patch(bed, &pod, after).await;
        let second = has(&pod, after).await;
        assert_eq!(first["status"]["qosClass"], second["status"]["qosClass"]);
        let ids = |pod: &Value| -> Vec<Value> {
            let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
            statuses.map(|status| status["containerID"].clone()).collect()
        };
        assert_eq!(ids(&first), ids(&second));
    });
}

async fn patch(bed: &Bed, pod: &Pod, resources: &[Value]) {
    let containers: Vec<_> = resources
        .iter()
        .enumerate()
        .map(|(number, resources)| json!({ "name": name(number), "resources": resources }))
        .collect();
    let change = Patch::Strategic(json!({ "spec": { "containers": containers } }));
    let pods = bed.api::<core::Pod>();
    pods.patch_subresource("resize", &pod.name, &PatchParams::default(), &change)
        .await
        .expect("it is resized");
}

/// In-place Pod Resize, guaranteed pods with multiple containers, net increase
#[test]
fn increase_cpu_mem_on_c1_c2_decrease_cpu_mem_on_c3_net_increase() {
    let before = ["20m", "20m", "30m"].map(|cpu| guaranteed(cpu, "30Mi"));
    let after = [guaranteed("40m", "50Mi"), guaranteed("40m", "50Mi"), guaranteed("20m", "20Mi")];
    resized(&before, &after);
}

/// In-place Pod Resize, guaranteed pods with multiple containers, net decrease
#[test]
fn increase_cpu_mem_on_c1_decrease_cpu_mem_on_c2_c3_net_decrease() {
    let before = ["20m", "40m", "40m"].map(|cpu| guaranteed(cpu, "50Mi"));
    let after = [guaranteed("30m", "60Mi"), guaranteed("20m", "30Mi"), guaranteed("20m", "30Mi")];
    resized(&before, &after);
}

/// In-place Pod Resize, guaranteed pods with multiple containers, various operations
#[test]
fn increase_cpu_c1_c3_memory_c2_c3_decrease_cpu_c2() {
    let before = ["20m", "40m", "20m"].map(|cpu| guaranteed(cpu, "30Mi"));
    let after = [guaranteed("30m", "30Mi"), guaranteed("20m", "40Mi"), guaranteed("30m", "40Mi")];
    resized(&before, &after);
}

/// In-place Pod Resize, burstable pod resized with equivalents
#[test]
fn resize_with_equivalents() {
    // The kernel makes no difference between these.
    let of = |request: &str, limit: &str| resources(&[("cpu", request)], &[("cpu", limit)]);
    resized(&[of("2m", "10m")], &[of("1m", "5m")]);
}

/// In-place Pod Resize, burtable pod with multiple containers and various operations
#[test]
fn containers_various_operations_performed_including_adding_limits_and_requests() {
    let before = [
        resources(&[], &[]),
        resources(&[("cpu", "20m")], &[("cpu", "40m")]),
        resources(&[("memory", "20Mi")], &[("memory", "40Mi")]),
        resources(&[("cpu", "20m"), ("memory", "20Mi")], &[]),
        resources(&[("cpu", "20m"), ("memory", "20Mi")], &[("cpu", "40m"), ("memory", "40Mi")]),
        resources(&[("cpu", "30m"), ("memory", "30Mi")], &[("cpu", "30m"), ("memory", "30Mi")]),
    ];
    let after = [
        // Requests and limits come.
        resources(&[("cpu", "20m"), ("memory", "20Mi")], &[("cpu", "40m"), ("memory", "40Mi")]),
        resources(&[("cpu", "30m")], &[("cpu", "60m")]),
        resources(&[("memory", "30Mi")], &[("memory", "50Mi")]),
        resources(&[("cpu", "30m"), ("memory", "30Mi")], &[("cpu", "50m"), ("memory", "50Mi")]),
        resources(&[("cpu", "10m"), ("memory", "10Mi")], &[("cpu", "20m"), ("memory", "50Mi")]),
        resources(&[("cpu", "20m"), ("memory", "20Mi")], &[("cpu", "30m"), ("memory", "30Mi")]),
    ];
    resized(&before, &after);
}

/// In-place Pod Resize, read and replace endpoints
#[test]
fn resize_pod_via_the_replace_endpoint() {
    test(async |bed| {
        let pods = bed.api::<core::Pod>();
        let pod = Pod::start(bed, with_resources(&[guaranteed("20m", "30Mi")])).await;
        let after = [guaranteed("40m", "50Mi")];
        // Read and written again where the kubelet was faster.
        eventually("it is replaced", async || {
            let mut read = as_json(&pods.get_subresource("resize", &pod.name).await?);
            read["spec"]["containers"][0]["resources"] = after[0].clone();
            let written = object::<core::Pod>(read);
            pods.replace_subresource("resize", &pod.name, &PostParams::default(), &written).await?;
            Ok(())
        })
        .await;
        has(&pod, &after).await;
        eventually("both are the same", async || {
            let read = as_json(&pods.get_subresource("resize", &pod.name).await?);
            let whole = pod.get().await?;
            ensure!(read == whole, "{read}\n{whole}");
            Ok(())
        })
        .await;
    });
}
