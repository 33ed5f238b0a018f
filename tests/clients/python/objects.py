"""CRUD, paging, patches, status, deletion and errors through the typed client."""

import datetime

from common import config_map, connect, refused, same
from kubernetes import client

NAMESPACE = "python-objects"
core = connect(NAMESPACE)
apps = client.AppsV1Api()


def secret(name, **more):
    return client.V1Secret(metadata=client.V1ObjectMeta(name=name, labels=more.pop("labels", None)), **more)


# Create, read, update.
made = core.create_namespaced_config_map(NAMESPACE, config_map("first", data={"a": "1"}))
assert made.metadata.uid and made.metadata.resource_version
age = datetime.datetime.now(datetime.timezone.utc) - made.metadata.creation_timestamp
assert abs(age.total_seconds()) < 60, made.metadata.creation_timestamp
read = core.read_namespaced_config_map("first", NAMESPACE)
same(read.to_dict(), made.to_dict(), "read after create")
read.data["b"] = "2"
written = core.replace_namespaced_config_map("first", NAMESPACE, read)
same(written.data, {"a": "1", "b": "2"})
assert written.metadata.resource_version != made.metadata.resource_version

# An older version is refused, and what is unchanged is not written.
status = refused(409, "Conflict", core.replace_namespaced_config_map, "first", NAMESPACE, made)
assert "the object has been modified" in status["message"], status
same(status["details"], {"name": "first", "kind": "configmaps"})
again = core.replace_namespaced_config_map("first", NAMESPACE, written)
same(again.metadata.resource_version, written.metadata.resource_version, "a write without a change")

# Errors.
status = refused(404, "NotFound", core.read_namespaced_config_map, "absent", NAMESPACE)
same(status["details"], {"name": "absent", "kind": "configmaps"})
refused(409, "AlreadyExists", core.create_namespaced_config_map, NAMESPACE, config_map("first"))
refused(404, "NotFound", core.create_namespaced_config_map, "absent", config_map("first"))
status = refused(422, "Invalid", core.create_namespaced_config_map, NAMESPACE, config_map("Not_Valid"))
same(status["details"]["causes"][0]["field"], "metadata.name")
same(status["details"]["causes"][0]["reason"], "FieldValueInvalid")
same(status["details"]["kind"], "ConfigMap")
refused(400, "BadRequest", core.list_namespaced_config_map, NAMESPACE, label_selector="a in (")
refused(400, "BadRequest", core.list_namespaced_config_map, NAMESPACE, _continue="nonsense")

# Pages: all objects once, in order, as of one version, with a count of what remains.
for number in range(25):
    core.create_namespaced_secret(NAMESPACE, secret(f"s{number:02}", labels={"page": "yes"}, string_data={"n": str(number)}))
names, token, versions, sizes = [], None, set(), []
while True:
    page = core.list_namespaced_secret(NAMESPACE, limit=10, _continue=token)
    names += [item.metadata.name for item in page.items]
    versions.add(page.metadata.resource_version)
    sizes.append((len(page.items), page.metadata.remaining_item_count))
    token = page.metadata._continue
    if token and len(names) == 10:
        core.delete_namespaced_secret("s24", NAMESPACE)
        core.create_namespaced_secret(NAMESPACE, secret("s99"))
    if not token:
        break
same(names, [f"s{number:02}" for number in range(25)], "pages are of one version")
same(sizes, [(10, 15), (10, 5), (5, None)])
same(len(versions), 1)
same(len(core.list_namespaced_secret(NAMESPACE, label_selector="page=yes").items), 24)
same(core.list_secret_for_all_namespaces(field_selector="metadata.name=s99").items[0].metadata.namespace, NAMESPACE)
same(len(core.list_namespaced_secret(NAMESPACE, resource_version="0").items), 25)

# Patches: the client sends a list as a JSON patch, and an object as a strategic merge.
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
core.patch_namespaced_config_map("first", NAMESPACE, [{"op": "add", "path": "/data/c", "value": "3"}])
patched = core.patch_namespaced_config_map("first", NAMESPACE, {"data": {"a": None, "d": "4"}}, _content_type=STRATEGIC)
same(patched.data, {"b": "2", "c": "3", "d": "4"})
patched = core.patch_namespaced_config_map("first", NAMESPACE, {"metadata": {"labels": {"x": "y"}}}, _content_type=MERGE)
same(patched.metadata.labels, {"x": "y"})
refused(422, "Invalid", core.patch_namespaced_config_map, "first", NAMESPACE, [{"op": "remove", "path": "/data/absent"}])
stale = {"metadata": {"resourceVersion": "1"}, "data": {"z": "1"}}
refused(409, "Conflict", core.patch_namespaced_config_map, "first", NAMESPACE, stale, _content_type=MERGE)
status = refused(
    415, "UnsupportedMediaType", core.patch_namespaced_config_map, "first", NAMESPACE, {"data": {}},
    _content_type="application/nonsense+json", field_manager="tests",
)
assert MERGE in status["message"], status

# Server-side apply, by two managers.
APPLY = "application/apply-patch+yaml"


def applied(value, **named):
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": value}}
    return core.patch_namespaced_config_map("applied", NAMESPACE, config, _content_type=APPLY, **named)


same(applied("1", field_manager="one").metadata.managed_fields[0].manager, "one")
status = refused(409, "Conflict", applied, "2", field_manager="two")
same([cause["field"] for cause in status["details"]["causes"]], [".data.a"])
same(applied("2", field_manager="two", force=True).data, {"a": "2"})
core.delete_namespaced_config_map("applied", NAMESPACE)

# Status and scale are written apart from the rest.
labels = {"app": "web"}
containers = [client.V1Container(name="c", image="registry.test/web:1")]
template = client.V1PodTemplateSpec(
    metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=containers)
)
selector = client.V1LabelSelector(match_labels=labels)
spec = client.V1StatefulSetSpec(replicas=1, service_name="set", selector=selector, template=template)
apps.create_namespaced_stateful_set(NAMESPACE, client.V1StatefulSet(metadata=client.V1ObjectMeta(name="set"), spec=spec))
patch = {"status": {"replicas": 1, "currentReplicas": 7}, "spec": {"replicas": 9}}
stateful = apps.patch_namespaced_stateful_set_status("set", NAMESPACE, patch, _content_type=MERGE)
same((stateful.status.current_replicas, stateful.spec.replicas), (7, 1))
patch = {"status": {"currentReplicas": 0}, "spec": {"minReadySeconds": 3}}
stateful = apps.patch_namespaced_stateful_set("set", NAMESPACE, patch, _content_type=MERGE)
same((stateful.status.current_replicas, stateful.spec.min_ready_seconds), (7, 3))
scale = apps.read_namespaced_stateful_set_scale("set", NAMESPACE)
same((scale.spec.replicas, scale.status.selector), (1, "app=web"))
scale.spec.replicas = 4
same(apps.replace_namespaced_stateful_set_scale("set", NAMESPACE, scale).spec.replicas, 4)
same(apps.read_namespaced_stateful_set("set", NAMESPACE).metadata.generation, 3)

# Binding: a pod is bound once. (The client cannot read the answer, which is a Status.)
spec = client.V1PodSpec(scheduler_name="nobody", containers=containers)
core.create_namespaced_pod(NAMESPACE, client.V1Pod(metadata=client.V1ObjectMeta(name="pod"), spec=spec))
target = client.V1ObjectReference(kind="Node", name="n1")
binding = client.V1Binding(metadata=client.V1ObjectMeta(name="pod"), target=target)
core.create_namespaced_pod_binding("pod", NAMESPACE, binding, _preload_content=False)
pod = core.read_namespaced_pod("pod", NAMESPACE)
condition = pod.status.conditions[0]
same((pod.spec.node_name, condition.type, condition.status), ("n1", "PodScheduled", "True"))
refused(409, "Conflict", core.create_namespaced_pod_binding, "pod", NAMESPACE, binding, _preload_content=False)
same(len(core.list_pod_for_all_namespaces(field_selector="spec.nodeName=n1").items), 1)

# Deletion: preconditions, dry run, grace, finalizers, collections.
options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="other"))
refused(409, "Conflict", core.delete_namespaced_config_map, "first", NAMESPACE, body=options)
core.delete_namespaced_config_map("first", NAMESPACE, dry_run="All")
status = core.delete_namespaced_config_map("first", NAMESPACE)
same((status["kind"], status["status"], status["details"]["uid"]), ("Status", "Success", made.metadata.uid))
refused(404, "NotFound", core.delete_namespaced_config_map, "first", NAMESPACE)
pod = core.delete_namespaced_pod("pod", NAMESPACE, grace_period_seconds=7)
same(pod.metadata.deletion_grace_period_seconds, 7, "a bound pod goes when its node says so")
assert core.read_namespaced_pod("pod", NAMESPACE).metadata.deletion_timestamp
core.delete_namespaced_pod("pod", NAMESPACE, grace_period_seconds=0)
refused(404, "NotFound", core.read_namespaced_pod, "pod", NAMESPACE)
core.create_namespaced_config_map(NAMESPACE, config_map("held", finalizers=["example.com/hold"]))
core.delete_namespaced_config_map("held", NAMESPACE)
assert core.read_namespaced_config_map("held", NAMESPACE).metadata.deletion_timestamp
core.patch_namespaced_config_map("held", NAMESPACE, {"metadata": {"finalizers": None}}, _content_type=MERGE)
refused(404, "NotFound", core.read_namespaced_config_map, "held", NAMESPACE)
core.delete_collection_namespaced_secret(NAMESPACE, label_selector="page=yes")
same([item.metadata.name for item in core.list_namespaced_secret(NAMESPACE).items], ["s99"])
print("objects: done")
