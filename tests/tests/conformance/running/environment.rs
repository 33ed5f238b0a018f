//! Environment variables: from ConfigMaps and Secrets, of the pod's own fields, of services, and out of each other.

use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, Service};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Pod, has_line, script, server, test};
use crate::{
    coverage::texts,
    steps::{as_json, create},
    support::{Bed, unique},
};

texts! {
    "ConfigMap, from environment field" => should_be_consumable_via_environment_variable,
    "ConfigMap, from environment variables" => configmap_should_be_consumable_via_the_environment,
    "ConfigMap, from environment field with various prefixes" =>
        configmap_should_be_consumable_as_environment_variable_names_with_various_prefixes,
    "Secrets, pod environment field" => should_be_consumable_from_pods_in_env_vars,
    "Secrets, pod environment from source" => secrets_should_be_consumable_via_the_environment,
    "Secrets, pod environment from source" =>
        should_be_consumable_as_environment_variable_names_variable_names_with_various_prefixes,
    "DownwardAPI, environment for name, namespace and ip" =>
        should_provide_pod_name_namespace_and_ip_address_as_env_vars,
    "DownwardAPI, environment for host ip" => should_provide_host_ip_as_an_env_var,
    "DownwardAPI, environment for hostIPs" => should_provide_hostips_as_an_env_var,
    "DownwardAPI, environment for Pod UID" => should_provide_pod_uid_as_env_vars,
    "DownwardAPI, environment for CPU and memory limits and requests" =>
        should_provide_container_s_limits_cpu_memory_and_requests_cpu_memory_as_env_vars,
    "DownwardAPI, environment for default CPU and memory limits and requests" =>
        should_provide_default_limits_cpu_memory_from_node_allocatable,
    "Pods, service environment variables" => should_contain_environment_variables_for_services,
    "Environment variables, expansion" => should_allow_composing_env_vars_into_new_env_vars,
    "Environment variables, command expansion" => should_allow_substituting_values_in_a_container_s_command,
    "Environment variables, command argument expansion" =>
        should_allow_substituting_values_in_a_container_s_args,
}

/// A pod that prints its environment, and has these fields in its container.
fn printer(fields: Value) -> Value {
    let mut pod = script("env");
    for (field, value) in fields.as_object().into_iter().flatten() {
        pod["spec"]["containers"][0][field] = value.clone();
    }
    pod
}

async fn config_map(bed: &Bed, data: Value) -> String {
    let map = json!({ "metadata": { "name": unique("map") }, "data": data });
    create(&bed.api::<ConfigMap>(), map).await.name_any()
}

async fn secret(bed: &Bed, data: Value) -> String {
    let secret = json!({ "metadata": { "name": unique("secret") }, "stringData": data });
    // The typed object has the field too.
    create(&bed.api::<Secret>(), secret).await.name_any()
}

/// ConfigMap, from environment field
#[test]
fn should_be_consumable_via_environment_variable() {
    test(async |bed| {
        let name = config_map(bed, json!({ "data-1": "value-1", "data-2": "value-2" })).await;
        let from = json!({ "configMapKeyRef": { "name": name, "key": "data-1" } });
        let env = json!([{ "name": "CONFIG_DATA_1", "valueFrom": from }]);
        let said = Pod::output(bed, printer(json!({ "env": env }))).await;
        has_line(&said, "CONFIG_DATA_1=value-1");
        assert!(!said.contains("value-2"), "{said}");
    });
}

/// ConfigMap, from environment variables
#[test]
fn configmap_should_be_consumable_via_the_environment() {
    test(async |bed| {
        let name = config_map(bed, json!({ "data_1": "value-1", "data_2": "value-2" })).await;
        let reference = json!({ "name": name });
        let from = json!([{ "configMapRef": reference }, { "prefix": "p_", "configMapRef": reference }]);
        let said = Pod::output(bed, printer(json!({ "envFrom": from }))).await;
        for line in ["data_1=value-1", "data_2=value-2", "p_data_1=value-1", "p_data_2=value-2"] {
            has_line(&said, line);
        }
    });
}

/// What `envFrom` gives with prefixes of all kinds of characters.
async fn prefixes_are_used(bed: &Bed, field: &str, name: &str) {
    const PREFIXES: &[&str] =
        &["p_", "p-", "p.", "1", " ", "!", "\"", "#$%&'()*+,-./", ":;<>?@", "[\\]^_`", "{|}~"];
    let from: Vec<Value> = PREFIXES
        .iter()
        .map(|prefix| {
            let mut source = json!({ "prefix": prefix });
            source[field] = json!({ "name": name });
            source
        })
        .collect();
    // The shell would keep names to itself that it cannot have as variables.
    let mut pod = printer(json!({ "envFrom": from }));
    pod["spec"]["containers"][0]["command"] = json!(["env"]);
    let said = Pod::output(bed, pod).await;
    for prefix in PREFIXES {
        has_line(&said, &format!("{prefix}data_1=value-1"));
        has_line(&said, &format!("{prefix}data_2=value-2"));
    }
}

/// ConfigMap, from environment field with various prefixes
#[test]
fn configmap_should_be_consumable_as_environment_variable_names_with_various_prefixes() {
    test(async |bed| {
        let name = config_map(bed, json!({ "data_1": "value-1", "data_2": "value-2" })).await;
        prefixes_are_used(bed, "configMapRef", &name).await;
    });
}

/// Secrets, pod environment from source
#[test]
fn should_be_consumable_as_environment_variable_names_variable_names_with_various_prefixes() {
    test(async |bed| {
        let name = secret(bed, json!({ "data_1": "value-1", "data_2": "value-2" })).await;
        prefixes_are_used(bed, "secretRef", &name).await;
    });
}

/// Secrets, pod environment field
#[test]
fn should_be_consumable_from_pods_in_env_vars() {
    test(async |bed| {
        let name = secret(bed, json!({ "data-1": "value-1", "data-2": "value-2" })).await;
        let from = json!({ "secretKeyRef": { "name": name, "key": "data-1" } });
        let env = json!([{ "name": "SECRET_DATA", "valueFrom": from }]);
        let said = Pod::output(bed, printer(json!({ "env": env }))).await;
        has_line(&said, "SECRET_DATA=value-1");
        assert!(!said.contains("value-2"), "{said}");
    });
}

/// Secrets, pod environment from source
#[test]
fn secrets_should_be_consumable_via_the_environment() {
    test(async |bed| {
        let name = secret(bed, json!({ "data_1": "value-1", "data_2": "value-2" })).await;
        let reference = json!({ "name": name });
        let from = json!([{ "secretRef": reference }, { "prefix": "p_", "secretRef": reference }]);
        let said = Pod::output(bed, printer(json!({ "envFrom": from }))).await;
        for line in ["data_1=value-1", "data_2=value-2", "p_data_1=value-1", "p_data_2=value-2"] {
            has_line(&said, line);
        }
    });
}

/// Variables of fields of the pod.
fn of_fields(fields: &[(&str, &str)]) -> Value {
    let one = |(name, path): &(&str, &str)| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    json!({ "env": fields.iter().map(one).collect::<Vec<_>>() })
}

/// What a pod that has ended printed, and the pod.
async fn printed(bed: &Bed, pod: Value) -> (String, Value) {
    let pod = Pod::create(bed, pod).await;
    let seen = pod.ended("Succeeded").await;
    (pod.log("main").await, seen)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// DownwardAPI, environment for name, namespace and ip
#[test]
fn should_provide_pod_name_namespace_and_ip_address_as_env_vars() {
    test(async |bed| {
        let fields = [
            ("POD_NAME", "metadata.name"),
            ("POD_NAMESPACE", "metadata.namespace"),
            ("POD_IP", "status.podIP"),
        ];
        let (said, pod) = printed(bed, printer(of_fields(&fields))).await;
        has_line(&said, &format!("POD_NAME={}", text(&pod["metadata"]["name"])));
        has_line(&said, &format!("POD_NAMESPACE={}", bed.namespace));
        let address = said.lines().find_map(|line| line.strip_prefix("POD_IP=")).expect("an address");
        address.parse::<std::net::Ipv4Addr>().expect("an address of IPv4");
        assert!([address, ""].contains(&text(&pod["status"]["podIP"])), "{address}: {}", pod["status"]);
    });
}

/// DownwardAPI, environment for host ip
#[test]
fn should_provide_host_ip_as_an_env_var() {
    test(async |bed| {
        let (said, pod) = printed(bed, printer(of_fields(&[("HOST_IP", "status.hostIP")]))).await;
        let address = text(&pod["status"]["hostIP"]);
        assert!(!address.is_empty());
        has_line(&said, &format!("HOST_IP={address}"));
    });
}

/// DownwardAPI, environment for hostIPs
#[test]
fn should_provide_hostips_as_an_env_var() {
    test(async |bed| {
        let (said, pod) = printed(bed, printer(of_fields(&[("HOST_IPS", "status.hostIPs")]))).await;
        let all = pod["status"]["hostIPs"].as_array().expect("addresses");
        let all: Vec<_> = all.iter().map(|one| text(&one["ip"])).collect();
        assert_eq!(all[0], pod["status"]["hostIP"]);
        has_line(&said, &format!("HOST_IPS={}", all.join(",")));
    });
}

/// DownwardAPI, environment for Pod UID
#[test]
fn should_provide_pod_uid_as_env_vars() {
    test(async |bed| {
        let (said, pod) = printed(bed, printer(of_fields(&[("POD_UID", "metadata.uid")]))).await;
        has_line(&said, &format!("POD_UID={}", text(&pod["metadata"]["uid"])));
    });
}

/// Variables of the container's resources.
fn of_resources() -> Value {
    let fields = [
        ("CPU_LIMIT", "limits.cpu"),
        ("MEMORY_LIMIT", "limits.memory"),
        ("CPU_REQUEST", "requests.cpu"),
        ("MEMORY_REQUEST", "requests.memory"),
    ];
    let one = |(name, resource): &(&str, &str)| json!({ "name": name, "valueFrom": { "resourceFieldRef": { "resource": resource } } });
    json!({ "env": fields.iter().map(one).collect::<Vec<_>>() })
}

/// DownwardAPI, environment for CPU and memory limits and requests
#[test]
fn should_provide_container_s_limits_cpu_memory_and_requests_cpu_memory_as_env_vars() {
    test(async |bed| {
        let mut pod = printer(of_resources());
        pod["spec"]["containers"][0]["resources"] = json!({
            "requests": { "cpu": "250m", "memory": "32Mi" },
            "limits": { "cpu": "1250m", "memory": "64Mi" },
        });
        let said = Pod::output(bed, pod).await;
        // Whole cores, rounded up, and bytes.
        for line in ["CPU_LIMIT=2", "MEMORY_LIMIT=67108864", "CPU_REQUEST=1", "MEMORY_REQUEST=33554432"] {
            has_line(&said, line);
        }
    });
}

/// DownwardAPI, environment for default CPU and memory limits and requests
#[test]
fn should_provide_default_limits_cpu_memory_from_node_allocatable() {
    test(async |bed| {
        let (said, pod) = printed(bed, printer(of_resources())).await;
        let node = text(&pod["spec"]["nodeName"]);
        let node = as_json(&bed.all::<Node>().get(node).await.expect("the node is read"));
        let allocatable = &node["status"]["allocatable"];
        has_line(&said, &format!("CPU_LIMIT={}", text(&allocatable["cpu"])));
        let kib = text(&allocatable["memory"]).strip_suffix("Ki").expect("kibibytes");
        let bytes = kib.parse::<u64>().expect("a number") * 1024;
        has_line(&said, &format!("MEMORY_LIMIT={bytes}"));
    });
}

/// Pods, service environment variables
#[test]
fn should_contain_environment_variables_for_services() {
    test(async |bed| {
        let mut backend = server();
        backend["metadata"]["labels"] = json!({ "name": "fooserver" });
        Pod::start(bed, backend).await;
        let service = json!({
            "metadata": { "name": "fooservice" },
            "spec": {
                "selector": { "name": "fooserver" },
                "ports": [{ "port": 8765, "targetPort": 8080 }],
            },
        });
        let service = as_json(&create(&bed.api::<Service>(), service).await);
        let address = text(&service["spec"]["clusterIP"]);
        // A node hears of services and of pods by different ways, so one of the first pods may be too early.
        crate::support::eventually("a pod knows the service", async || {
            let to = "$FOOSERVICE_SERVICE_HOST:$FOOSERVICE_SERVICE_PORT";
            let said = Pod::output(bed, script(&format!("env; wget -qO- {to}/healthz || true"))).await;
            for line in [
                &*format!("FOOSERVICE_SERVICE_HOST={address}"),
                "FOOSERVICE_SERVICE_PORT=8765",
                &format!("FOOSERVICE_PORT=tcp://{address}:8765"),
                &format!("FOOSERVICE_PORT_8765_TCP=tcp://{address}:8765"),
                "FOOSERVICE_PORT_8765_TCP_PORT=8765",
                "FOOSERVICE_PORT_8765_TCP_PROTO=tcp",
                &format!("FOOSERVICE_PORT_8765_TCP_ADDR={address}"),
                "ok",
            ] {
                anyhow::ensure!(said.lines().any(|found| found == line), "no {line} in {said}");
            }
            Ok(())
        })
        .await;
    });
}

/// Environment variables, expansion
#[test]
fn should_allow_composing_env_vars_into_new_env_vars() {
    test(async |bed| {
        let env = json!([
            { "name": "FOO", "value": "foo-value" },
            { "name": "BAR", "value": "bar-value" },
            { "name": "FOOBAR", "value": "$(FOO);;$(BAR)" },
            { "name": "ESCAPED", "value": "$$(FOO) $(NOBODY)" },
        ]);
        let said = Pod::output(bed, printer(json!({ "env": env }))).await;
        for line in
            ["FOO=foo-value", "BAR=bar-value", "FOOBAR=foo-value;;bar-value", "ESCAPED=$(FOO) $(NOBODY)"]
        {
            has_line(&said, line);
        }
    });
}

/// What a command says whose words hold a variable that is not the shell's.
fn expanded(command: Value) {
    test(async |bed| {
        let env = json!([{ "name": "TEST_VAR", "value": "test-value" }]);
        let mut fields = command;
        fields["env"] = env;
        assert_eq!(Pod::output(bed, printer(fields)).await, "test-value\n");
    });
}

/// Environment variables, command expansion
#[test]
fn should_allow_substituting_values_in_a_container_s_command() {
    expanded(json!({ "command": ["sh", "-c", "TEST_VAR=wrong echo \"$(TEST_VAR)\""] }));
}

/// Environment variables, command argument expansion
#[test]
fn should_allow_substituting_values_in_a_container_s_args() {
    expanded(json!({ "command": ["sh", "-c"], "args": ["TEST_VAR=wrong echo \"$(TEST_VAR)\""] }));
}
