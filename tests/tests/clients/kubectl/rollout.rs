//! `kubectl rollout` and `wait`, as far as they go without a node: pods stay Pending.

use hawser_tests::api_server::ApiServer;

#[test]
fn rollout_shows_pauses_restarts_and_undoes() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("rolling");
    let image = "{.spec.template.spec.containers[0].image}";
    kubectl.ok("create deployment web --image=registry.test/web:1 --replicas=2");
    kubectl.eventually(
        "deployment web",
        "{.metadata.annotations.deployment\\.kubernetes\\.io/revision}",
        "1",
    );
    kubectl.ok("set image deployment/web web=registry.test/web:2");
    kubectl.ok("annotate deployment web kubernetes.io/change-cause='the second'");
    kubectl.eventually(
        "deployment web",
        "{.metadata.annotations.deployment\\.kubernetes\\.io/revision}",
        "2",
    );
    kubectl.ok("rollout history deployment web").says(&["REVISION", "1 ", "2 "]);
    kubectl.ok("rollout history deployment web --revision=1").says(&["registry.test/web:1"]);
    kubectl.ok("rollout history deployment web --revision=2").says(&["registry.test/web:2"]);
    kubectl
        .fails("rollout history deployment web --revision=9")
        .says(&["unable to find the specified revision"]);
    kubectl
        .ok("rollout status deployment web --watch=false")
        .says(&["Waiting for deployment \"web\" rollout to finish"]);
    kubectl
        .fails("rollout status deployment web --timeout=1s")
        .says(&["timed out waiting for the condition"]);

    kubectl.ok("rollout pause deployment web").says(&["deployment.apps/web paused"]);
    kubectl.eventually(
        "deployment web",
        "{.status.conditions[?(@.type==\"Progressing\")].reason}",
        "DeploymentPaused",
    );
    kubectl.fails("rollout undo deployment web").says(&["cannot rollback a paused deployment"]);
    kubectl.fails("rollout restart deployment web").says(&["can't restart paused deployment"]);
    kubectl.ok("rollout resume deployment web").says(&["deployment.apps/web resumed"]);

    kubectl.ok("rollout undo deployment web --to-revision=1").says(&["deployment.apps/web rolled back"]);
    assert_eq!(kubectl.path("deployment web", image), "registry.test/web:1");
    kubectl.eventually(
        "deployment web",
        "{.metadata.annotations.deployment\\.kubernetes\\.io/revision}",
        "3",
    );
    kubectl.ok("rollout undo deployment web").says(&["rolled back"]);
    assert_eq!(kubectl.path("deployment web", image), "registry.test/web:2");

    kubectl.ok("rollout restart deployment web").says(&["deployment.apps/web restarted"]);
    let restarted = "{.spec.template.metadata.annotations.kubectl\\.kubernetes\\.io/restartedAt}";
    assert_ne!(kubectl.path("deployment web", restarted), "");
}

#[test]
fn wait_ends_with_its_condition_or_its_time() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("waiting");
    kubectl.ok("create deployment web --image=registry.test/web:1 --replicas=2");
    kubectl
        .ok("wait deployment/web --for=condition=Progressing --timeout=20s")
        .says(&["deployment.apps/web condition met"]);
    kubectl.ok("wait deployment/web --for=condition=Available=False --timeout=20s");
    kubectl.ok("wait deployment/web --for=jsonpath={.status.replicas}=2 --timeout=20s");
    kubectl.fails("wait deployment/web --for=condition=Available --timeout=1s").says(&["timed out waiting"]);

    std::thread::scope(|scope| {
        let created = scope.spawn(|| kubectl.ok("wait configmap/later --for=create --timeout=20s"));
        kubectl.ok("create configmap later");
        created.join().expect("the wait ends").says(&["configmap/later condition met"]);
        let deleted = scope.spawn(|| kubectl.ok("wait configmap/later --for=delete --timeout=20s"));
        kubectl.ok("delete configmap later");
        deleted.join().expect("the wait ends");
    });
}
