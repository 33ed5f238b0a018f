//! What kubectl shows where the server refuses: the field, the value, the reason.

use hawser_tests::api_server::ApiServer;

#[test]
fn unknown_and_duplicate_fields_are_refused_warned_of_or_dropped() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("failing");
    let unknown = "---\n{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {bogus: 1, containers: [{name: c, image: i, imagee: x}]}}";
    kubectl.fails_with("create -f -", unknown).says(&[
        "BadRequest",
        r#"strict decoding error: unknown field "spec.bogus", unknown field "spec.containers[0].imagee""#,
    ]);
    kubectl
        .ok_with("create --validate=warn -f -", unknown)
        .says(&[r#"Warning: unknown field "spec.bogus""#, "pod/p created"]);
    assert_eq!(kubectl.path("pod p", "{.spec.bogus}"), "");
    kubectl.ok_with("replace --force --validate=ignore -f -", unknown).lacks("Warning: unknown");
    // kubectl turns YAML to JSON by itself; JSON goes as it is.
    let duplicate = r#"{"metadata":{"name":"d"},"data":{"a":"1"},"data":{"b":"2"}}"#;
    kubectl
        .fails_with(
            "create --raw /api/v1/namespaces/failing/configmaps?fieldValidation=Strict -f -",
            duplicate,
        )
        .says(&[r#"duplicate field "data""#]);
    kubectl
        .fails_with(
            "create -f -",
            "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: d}, data: {a: 1}}",
        )
        .says(&["cannot unmarshal number into Go struct field ConfigMap.data of type string"]);
    kubectl
        .fails_with("create -f -", "---\n{apiVersion: v9, kind: Nothing, metadata: {name: d}}")
        .says(&["no matches for kind"]);
}

#[test]
fn invalid_values_are_named_with_their_paths() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("failing");
    let pod = r#"
---
{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {
        containers: [{name: C_, image: "", ports: [{containerPort: 99999}], resources: {limits: {cpu: "1"}, requests: {cpu: "2"}}}],
        restartPolicy: Sometimes, volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]}}"#;
    kubectl.fails_with("create -f -", pod).says(&[
        r#"The Pod "p" is invalid"#,
        r#"spec.containers[0].name: Invalid value: "C_": a lowercase RFC 1123 label must consist of"#,
        "spec.containers[0].image: Required value",
        "spec.containers[0].ports[0].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive",
        r#"spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#,
        r#"spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never""#,
        r#"spec.volumes[1].name: Duplicate value: "v""#,
    ]);
    kubectl.fails("create deployment UPPER --image=i").says(&[
        r#"Deployment.apps "UPPER" is invalid: metadata.name: Invalid value: "UPPER": a lowercase RFC 1123 subdomain"#,
    ]);
    kubectl.fails("create namespace a.b").says(&["metadata.name: Invalid value"]);
    kubectl.fails("create service nodeport high --tcp=80 --node-port=80").says(&[
        "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
    ]);
    kubectl.fails("create service clusterip taken --tcp=80 --clusterip=10.96.0.1").says(&[
        r#"Service "taken" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.1"]: failed to allocate IP 10.96.0.1: provided IP is already allocated"#,
    ]);
    kubectl
        .fails("create service clusterip far --tcp=80 --clusterip=10.9.0.1")
        .says(&["is not in the valid range"]);
    kubectl.ok("create service nodeport one --tcp=80 --node-port=30500");
    kubectl
        .fails("create service nodeport two --tcp=80 --node-port=30500")
        .says(&["spec.ports[0].nodePort: Invalid value: 30500: provided port is already allocated"]);
}

#[test]
fn what_cannot_change_is_refused() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("failing");
    kubectl.ok("create deployment web --image=registry.test/web:1");
    kubectl.ok("create service clusterip front --tcp=80");
    kubectl.ok("run solo --image=registry.test/solo:1");
    kubectl
        .fails(r#"patch deployment web -p '{"spec":{"selector":{"matchLabels":{"app":"x"}},"template":{"metadata":{"labels":{"app":"x"}}}}}'"#)
        .says(&["spec.selector: Invalid value", "field is immutable"]);
    kubectl
        .fails(r#"patch service front -p '{"spec":{"clusterIP":"10.96.0.77"}}'"#)
        .says(&[r#"spec.clusterIPs[0]: Invalid value: ["10.96.0.77"]: may not change once set"#]);
    kubectl
        .fails(r#"patch pod solo -p '{"spec":{"restartPolicy":"Never"}}'"#)
        .says(&["spec: Forbidden: pod updates may not change fields other than"]);
    kubectl.ok("set image pod/solo solo=registry.test/solo:2");
    kubectl.ok_with(
        "create -f -",
        "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: fixed}, immutable: true, data: {a: \"1\"}}",
    );
    kubectl
        .fails(r#"patch configmap fixed -p '{"data":{"a":"2"}}'"#)
        .says(&["data: Forbidden: field is immutable when `immutable` is set"]);
    kubectl
        .fails(r#"patch configmap fixed --type=merge -p '{"metadata":{"name":"other"}}'"#)
        .says(&["the name of the object (other) does not match the name on the URL (fixed)"]);
}

#[test]
fn what_is_not_there_and_what_is_there_already_are_told_apart() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("failing");
    kubectl.fails("get pod absent").says(&[r#"Error from server (NotFound): pods "absent" not found"#]);
    kubectl.fails("get deployment absent").says(&[r#"deployments.apps "absent" not found"#]);
    kubectl.fails("get nonsense").says(&[r#"the server doesn't have a resource type "nonsense""#]);
    kubectl.ok("create configmap once");
    kubectl.fails("create configmap once").says(&[r#"configmaps "once" already exists"#]);
    kubectl.fails("get --raw /nowhere").says(&["the server could not find the requested resource"]);
    kubectl
        .fails_with("create -n absent -f -", "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: x}}")
        .says(&[r#"namespaces "absent" not found"#]);
    kubectl
        .fails_with(
            "create -f -",
            "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: other}}",
        )
        .says(&["does not match the namespace"]);
    kubectl.fails("logs absent").says(&[r#"pods "absent" not found"#]);
    kubectl.ok("run pending --image=registry.test/x:1");
    assert_eq!(kubectl.ok("logs pending").lines(), [""; 0], "it has said nothing yet");
    kubectl.fails("exec pending -- true").says(&["pod pending does not have a host assigned"]);
}
