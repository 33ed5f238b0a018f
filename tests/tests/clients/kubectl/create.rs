//! `kubectl create` with every generator, `run`, `expose`, and lists of objects.

use hawser_tests::api_server::ApiServer;

#[test]
fn every_generator_of_create_makes_its_object() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("making");
    for (line, says) in [
        ("deployment web --image=registry.test/web:1 --replicas=2 --port=80", "deployment.apps/web created"),
        ("configmap literals --from-literal=a=1 --from-literal=b=2", "configmap/literals created"),
        ("secret generic hidden --from-literal=user=root", "secret/hidden created"),
        (
            "secret docker-registry pull --docker-server=r.test --docker-username=u --docker-password=p",
            "secret/pull created",
        ),
        ("service clusterip inner --tcp=80:8080", "service/inner created"),
        ("service clusterip headless --clusterip=None --tcp=80", "service/headless created"),
        ("service nodeport outer --tcp=80:8080 --node-port=30123", "service/outer created"),
        ("service loadbalancer balanced --tcp=80:8080", "service/balanced created"),
        ("service externalname elsewhere --external-name=a.example", "service/elsewhere created"),
        ("serviceaccount robot", "serviceaccount/robot created"),
        (
            "role reader --verb=get,list --resource=pods,pods/log",
            "role.rbac.authorization.k8s.io/reader created",
        ),
        (
            "rolebinding reads --role=reader --serviceaccount=making:robot",
            "rolebinding.rbac.authorization.k8s.io/reads created",
        ),
        (
            "clusterrole metrics --verb=get --non-resource-url=/metrics",
            "clusterrole.rbac.authorization.k8s.io/metrics created",
        ),
        (
            "clusterrolebinding metrics --clusterrole=metrics --group=watchers",
            "clusterrolebinding.rbac.authorization.k8s.io/metrics created",
        ),
        ("quota small --hard=cpu=1,pods=10", "resourcequota/small created"),
        (
            "priorityclass urgent --value=1000 --description=soon",
            "priorityclass.scheduling.k8s.io/urgent created",
        ),
        ("job once --image=registry.test/job:1 -- date", "job.batch/once created"),
        (
            "cronjob often --image=registry.test/job:1 --schedule='*/5 * * * *' -- date",
            "cronjob.batch/often created",
        ),
        ("job now --from=cronjob/often", "job.batch/now created"),
        (
            "ingress door --rule='foo.example/bar*=inner:80,tls=cert'",
            "ingress.networking.k8s.io/door created",
        ),
        (
            "poddisruptionbudget guard --selector=app=web --min-available=50%",
            "poddisruptionbudget.policy/guard created",
        ),
    ] {
        kubectl.ok(&format!("create {line}")).says(&[says]);
    }

    assert_eq!(
        kubectl.path("deployment web", "{.spec.template.spec.containers[0].ports[0].containerPort}"),
        "80"
    );
    assert_eq!(kubectl.path("configmap literals", "{.data.a}{.data.b}"), "12");
    assert_eq!(kubectl.path("secret hidden", "{.type} {.data.user}"), "Opaque cm9vdA==");
    assert_eq!(kubectl.path("secret pull", "{.type}"), "kubernetes.io/dockerconfigjson");
    assert_eq!(kubectl.path("service headless", "{.spec.clusterIP}"), "None");
    assert_eq!(kubectl.path("service outer", "{.spec.ports[0].nodePort}"), "30123");
    assert_eq!(kubectl.path("service elsewhere", "{.spec.type} {.spec.clusterIP}"), "ExternalName ");
    assert_eq!(kubectl.path("role reader", "{.rules[0].resources}"), r#"["pods","pods/log"]"#);
    assert_eq!(
        kubectl.path("rolebinding reads", "{.subjects[0].namespace}/{.roleRef.name}"),
        "making/reader"
    );
    assert_eq!(kubectl.path("quota small", "{.spec.hard}"), r#"{"cpu":"1","pods":"10"}"#);
    assert_eq!(
        kubectl.path("priorityclass urgent", "{.value} {.preemptionPolicy}"),
        "1000 PreemptLowerPriority"
    );
    assert_eq!(
        kubectl.path("job once", "{.spec.template.spec.restartPolicy} {.spec.backoffLimit}"),
        "Never 6"
    );
    assert_eq!(kubectl.path("cronjob often", "{.spec.schedule} {.spec.suspend}"), "*/5 * * * * false");
    assert_eq!(kubectl.path("job now", "{.metadata.ownerReferences[0].kind}"), "CronJob");
    assert_eq!(kubectl.path("ingress door", "{.spec.rules[0].http.paths[0].pathType}"), "Prefix");
    assert_eq!(kubectl.path("pdb guard", "{.spec.minAvailable}"), "50%");
}

#[test]
fn run_expose_and_lists_of_objects_make_what_they_say() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("making");
    kubectl
        .ok("run solo --image=registry.test/solo:1 --labels=app=solo --env=MODE=fast --port=8080")
        .says(&["pod/solo created"]);
    // What admission adds.
    assert_eq!(kubectl.path("pod solo", "{.spec.serviceAccountName}"), "default");
    assert_eq!(
        kubectl.path("pod solo", "{.spec.containers[0].volumeMounts[0].mountPath}"),
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(
        kubectl.path("pod solo", "{.spec.tolerations[*].key}"),
        "node.kubernetes.io/not-ready node.kubernetes.io/unreachable"
    );
    assert_eq!(kubectl.path("pod solo", "{.status.phase} {.status.qosClass}"), "Pending BestEffort");

    kubectl.ok("expose pod solo --port=80 --target-port=8080").says(&["service/solo exposed"]);
    assert_eq!(
        kubectl.path("service solo", "{.spec.selector} {.spec.ports[0].targetPort}"),
        r#"{"app":"solo"} 8080"#
    );
    kubectl.ok("create deployment web --image=registry.test/web:1");
    kubectl
        .ok("expose deployment web --name=outside --type=NodePort --port=80,443 --protocol=TCP")
        .says(&["service/outside exposed"]);
    let ports = kubectl.path("service outside", "{.spec.ports[*].nodePort}");
    let ports: Vec<u16> = ports.split(' ').map(|port| port.parse().expect("a port")).collect();
    assert!(ports.len() == 2 && ports[0] != ports[1], "{ports:?}");
    assert!(ports.iter().all(|port| (30000..=32767).contains(port)), "{ports:?}");

    // JSON, YAML in several documents, a List, and a name that the server completes.
    kubectl
        .ok_with("create -f -", r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"json"}}"#)
        .says(&["configmap/json created"]);
    let list = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: first}}
- {apiVersion: v1, kind: Secret, metadata: {name: second}, stringData: {key: value}}
---
apiVersion: v1
kind: ConfigMap
metadata: {generateName: numbered-}
binaryData: {bytes: AAEC}
";
    let said = kubectl.ok_with("create -f - -o name", list);
    let names = said.lines();
    assert_eq!(names[..2], ["configmap/first", "secret/second"]);
    assert!(
        names[2].starts_with("configmap/numbered-") && names[2].len() > "configmap/numbered-".len(),
        "{names:?}"
    );
    assert_eq!(kubectl.path("secret second", "{.data.key}{.stringData}"), "dmFsdWU=");
    kubectl
        .fails_with("create -f -", list)
        .says(&[r#"configmaps "first" already exists"#, r#"secrets "second" already exists"#]);
}
