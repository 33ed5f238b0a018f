//! What kubectl asks of the server itself: discovery, `explain`, `auth`, tokens, health.

use hawser_tests::api_server::ApiServer;

#[test]
fn discovery_and_explain_describe_the_api() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("asking");
    kubectl.ok("api-versions").says(&[
        "apps/v1\n",
        "batch/v1\n",
        "discovery.k8s.io/v1\n",
        "events.k8s.io/v1\n",
        "\nv1\n",
    ]);
    let resources = kubectl.ok("api-resources").lines();
    for line in [
        "pods po v1 true Pod",
        "services svc v1 true Service",
        "namespaces ns v1 false Namespace",
        "deployments deploy apps/v1 true Deployment",
        "endpointslices discovery.k8s.io/v1 true EndpointSlice",
    ] {
        assert!(resources.iter().any(|found| found == line), "{line}\n{resources:?}");
    }
    kubectl
        .ok("api-resources --namespaced=false -o name")
        .says(&["nodes\n", "persistentvolumes\n"])
        .lacks("pods");
    kubectl
        .ok("api-resources --api-group=apps --verbs=patch,deletecollection -o name")
        .says(&["deployments.apps\n"]);
    kubectl.ok("api-resources --categories=all -o name").says(&["pods\n", "services\n"]).lacks("secrets");
    kubectl.ok("get po,svc,deploy,sts,ds,cm,sa,ep,pvc,quota,limits,netpol,ing,cj,hpa,pdb -A -o name");

    kubectl.ok("explain deployment.spec.strategy.rollingUpdate").says(&["maxSurge", "<IntOrString>"]);
    kubectl
        .ok("explain pod.spec.nodeName")
        .says(&["DESCRIPTION:", "NodeName indicates in which node this pod is scheduled."]);
    kubectl
        .ok("explain pods --recursive")
        .says(&["containers\t<[]Container> -required-", "emptyDir\t<EmptyDirVolumeSource>"]);
    kubectl.ok("explain pod.spec.containers.resources.limits").says(&["map[string]Quantity"]);
    kubectl
        .ok("explain ingress --api-version=networking.k8s.io/v1")
        .says(&["VERSION:    v1", "spec\t<IngressSpec>"]);
    kubectl.ok("explain pods.spec --output=plaintext-openapiv2").says(&["nodeName\t<string>"]);
    kubectl.fails("explain pods.spec.bogus").says(&[r#"field "bogus" does not exist"#]);
}

#[test]
fn health_version_and_raw_requests_answer() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("default");
    assert_eq!(kubectl.ok("get --raw /healthz").stdout, "ok");
    assert_eq!(kubectl.ok("get --raw /livez").stdout, "ok");
    kubectl.ok("get --raw /readyz?verbose").says(&["[+]ping ok", "readyz check passed"]);
    kubectl.ok("version").says(&["Server Version: v1.36."]);
    kubectl.ok("cluster-info").says(&["Kubernetes control plane", "is running at", &server.address()]);
    kubectl.ok("get --raw /metrics").says(&["apiserver_request_total{"]);
    kubectl.ok("get --raw /api/v1/namespaces/default").says(&[r#""kind":"Namespace""#]);
    kubectl
        .ok_with("create --raw /api/v1/namespaces/default/configmaps -f -", r#"{"metadata":{"name":"raw"}}"#)
        .says(&[r#""uid":""#]);
    kubectl.ok("get service kubernetes").says(&["10.96.0.1", "443/TCP"]);
    assert_eq!(
        kubectl.ok("get priorityclasses -o name").lines(),
        [
            "priorityclass.scheduling.k8s.io/system-cluster-critical",
            "priorityclass.scheduling.k8s.io/system-node-critical"
        ]
    );
    kubectl.eventually(
        "configmaps -A --field-selector=metadata.name=kube-root-ca.crt",
        "{.items[*].metadata.namespace}",
        "default kube-node-lease kube-public kube-system",
    );
    assert_eq!(
        kubectl.path("configmap kube-root-ca.crt", "{.data.ca\\.crt}"),
        server.credentials().authority
    );
}

#[test]
fn auth_says_who_one_is_and_what_one_may() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("asking");
    kubectl.ok("auth whoami").says(&["kubernetes-admin", "system:masters", "system:authenticated"]);
    assert_eq!(kubectl.ok("auth can-i create pods").stdout.trim(), "yes");
    assert_eq!(kubectl.ok("auth can-i '*' '*' -A").stdout.trim(), "yes");

    kubectl.ok("create serviceaccount robot");
    let token = kubectl.ok("create token robot --duration=10m").stdout.trim().to_owned();
    assert_eq!(token.split('.').count(), 3, "a JSON web token has three parts");
    let robot = format!(
        "--kubeconfig=/dev/null --server={} --insecure-skip-tls-verify --token={token}",
        server.address()
    );
    kubectl.ok(&format!("auth whoami {robot}")).says(&[
        "system:serviceaccount:asking:robot",
        "system:serviceaccounts:asking",
        "system:authenticated",
    ]);
    assert_eq!(kubectl.fails(&format!("auth can-i create pods {robot}")).stdout.trim(), "no");
    kubectl.fails(&format!("get pods {robot}")).says(&[
        r#"pods is forbidden: User "system:serviceaccount:asking:robot" cannot list resource "pods" in API group "" in the namespace "asking""#,
    ]);
    kubectl.ok(&format!("version {robot}")).says(&["Server Version"]);
    kubectl.fails(&format!("auth whoami {}x", robot)).says(&["Unauthorized"]);
    kubectl.fails("create token absent").says(&[r#"serviceaccounts "absent" not found"#]);

    // A token goes with its account.
    kubectl.ok("delete serviceaccount robot");
    kubectl.fails(&format!("auth whoami {robot}")).says(&["Unauthorized"]);
}

#[test]
fn roles_are_made_bound_and_asked_about() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("asking");
    kubectl.ok("create role reader --verb=get,list --resource=pods,configmaps");
    kubectl.ok("create rolebinding readers --role=reader --serviceaccount=asking:robot --user=ann");
    kubectl.ok("get rolebinding readers -o wide").says(&["Role/reader", "ann", "asking/robot"]);
    for subject in ["ann", "system:serviceaccount:asking:robot"] {
        let may = |question: &str| kubectl.run(&format!("auth can-i {question} --as={subject}"), None);
        assert_eq!(may("list pods").stdout.trim(), "yes");
        assert_eq!(may("delete pods").stdout.trim(), "no");
        assert_eq!(may("list pods -n default").stdout.trim(), "no");
        may("--list").says(&[
            "pods",
            "configmaps",
            "[get list]",
            "selfsubjectreviews.authentication.k8s.io",
            "[/api/*]",
        ]);
    }
    kubectl.ok("get pods --as=ann").says(&["No resources found"]);
    kubectl.fails("get pods -A --as=ann").says(&["cannot list resource \"pods\"", "at the cluster scope"]);

    kubectl.ok("create clusterrole watcher --verb=get --non-resource-url=/metrics");
    kubectl.ok("create clusterrolebinding watchers --clusterrole=watcher --group=watchers");
    kubectl.ok("get --raw /metrics --as=joe --as-group=watchers").says(&["apiserver_request_total{"]);
    kubectl.fails("get --raw /metrics --as=joe").says(&["cannot get path \"/metrics\""]);

    // What the controller gathers.
    kubectl.eventually(
        "clusterrole view",
        "{.rules[?(@.resources[0]==\"endpointslices\")].verbs}",
        r#"["get","list","watch"]"#,
    );
    kubectl.ok("create rolebinding editors --clusterrole=edit --user=bob");
    kubectl.eventually(
        "clusterrole edit",
        "{.rules[?(@.resources[0]==\"namespaces\")].verbs}",
        r#"["get","list","watch"]"#,
    );
    kubectl.ok("create configmap made --as=bob");
    kubectl
        .fails("create rolebinding more --clusterrole=cluster-admin --user=bob --as=bob")
        .says(&["forbidden"]);
    kubectl.ok("create rolebinding admins --clusterrole=admin --user=eve");
    kubectl.eventually(
        "clusterrole admin",
        "{.rules[?(@.resources[0]==\"namespaces\")].verbs}",
        r#"["get","list","watch"]"#,
    );
    kubectl.ok("create rolebinding given --clusterrole=view --user=kim --as=eve");
    kubectl
        .fails("create rolebinding taken --clusterrole=cluster-admin --user=eve --as=eve")
        .says(&["is attempting to grant RBAC permissions not currently held", r#"{APIGroups:["*"]"#]);

    let wanted = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: reader, namespace: asking }
rules: [{ apiGroups: [''], resources: [secrets], verbs: [get] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: readers, namespace: asking }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader }
subjects: [{ kind: User, apiGroup: rbac.authorization.k8s.io, name: tom }]
";
    kubectl
        .ok_with("auth reconcile -f -", wanted)
        .says(&["role.rbac.authorization.k8s.io/reader reconciled"]);
    assert_eq!(kubectl.ok("auth can-i get secrets --as=tom").stdout.trim(), "yes");
    assert_eq!(kubectl.ok("auth can-i list pods --as=ann").stdout.trim(), "yes");
}

/// The header must not be overlooked: who asks as somebody else would act as himself, with all his rights.
#[test]
fn acting_as_somebody_else_never_keeps_ones_own_rights() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("asking");
    kubectl.fails("get secrets --as=joe").says(&["orbidden"]);
    kubectl.fails("create configmap mine --as=joe --as-group=staff").says(&["orbidden"]);
    kubectl.fails("get configmap mine").says(&["NotFound"]);
}

#[test]
fn dry_runs_change_nothing() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("asking");
    kubectl.ok("run dry --image=i --dry-run=server -o yaml").says(&["uid:", "serviceAccountName: default"]);
    kubectl.ok("run dry --image=i --dry-run=client -o yaml").lacks("uid:");
    kubectl.fails("get pod dry").says(&["NotFound"]);
    kubectl.fails("run Dry --image=i --dry-run=server").says(&["metadata.name: Invalid value"]);
    kubectl.ok("create service nodeport tried --tcp=80 --node-port=30700 --dry-run=server");
    kubectl.ok("create service nodeport real --tcp=80 --node-port=30700");
    kubectl.ok("label service real tried=yes --dry-run=server");
    assert_eq!(kubectl.path("service real", "{.metadata.labels.tried}"), "");
    kubectl.ok("create deployment web --image=i --replicas=1");
    kubectl.ok("scale deployment web --replicas=3 --dry-run=server");
    assert_eq!(kubectl.path("deployment web", "{.spec.replicas}"), "1");
}
