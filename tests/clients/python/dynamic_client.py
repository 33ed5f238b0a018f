"""The dynamic client: discovery, then objects as dictionaries."""

import os
import tempfile

from common import connect, same
from kubernetes import client
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import BadRequestError, ConflictError, NotFoundError, ResourceNotFoundError

NAMESPACE = "python-dynamic"
connect(NAMESPACE)


def fails(error, call, **named):
    try:
        call(**named)
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


with tempfile.TemporaryDirectory() as directory:
    dynamic = DynamicClient(client.ApiClient(), cache_file=os.path.join(directory, "discovery"))
    deployments = dynamic.resources.get(api_version="apps/v1", kind="Deployment")
    config_maps = dynamic.resources.get(api_version="v1", kind="ConfigMap")
    same(dynamic.resources.get(api_version="v1", kind="Namespace").namespaced, False)
    fails(ResourceNotFoundError, dynamic.resources.get, api_version="example.com/v1", kind="Nothing")

same((deployments.name, deployments.namespaced), ("deployments", True))
assert {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"} <= set(deployments.verbs)
containers = [{"name": "web", "image": "registry.test/web:1"}]
body = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers}},
    },
}
made = deployments.create(body=body, namespace=NAMESPACE)
same(made.spec.strategy.type, "RollingUpdate")
fails(ConflictError, deployments.create, body=body, namespace=NAMESPACE)
same([item.metadata.name for item in deployments.get(namespace=NAMESPACE, label_selector="app=web").items], ["web"])
patch = {"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "registry.test/web:2"}]}}}}
changed = deployments.patch(
    name="web", namespace=NAMESPACE, body=patch, content_type="application/strategic-merge-patch+json"
)
same(changed.spec.template.spec.containers[0].image, "registry.test/web:2")
same(deployments.scale.get(name="web", namespace=NAMESPACE).spec.replicas, 1)
deployments.scale.patch(
    name="web", namespace=NAMESPACE, body={"spec": {"replicas": 0}}, content_type="application/merge-patch+json"
)
same(deployments.get(name="web", namespace=NAMESPACE).spec.replicas, 0)
first = next(deployments.watch(namespace=NAMESPACE, timeout=5))
same((first["type"], first["object"].metadata.name), ("ADDED", "web"))
deployments.delete(name="web", namespace=NAMESPACE, propagation_policy="Background")
fails(NotFoundError, deployments.get, name="web", namespace=NAMESPACE)
fails(NotFoundError, config_maps.get, name="absent", namespace=NAMESPACE)

# Bodies that the typed client would not send.
unknown = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "bogus": 1}
fails(BadRequestError, config_maps.create, body=unknown, namespace=NAMESPACE, query_params=[("fieldValidation", "Strict")])
other = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}
fails(BadRequestError, config_maps.create, body=other, namespace=NAMESPACE)
print("dynamic: done")
