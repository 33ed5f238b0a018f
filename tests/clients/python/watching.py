"""Watches: from a version, with selectors, live, ending in time, and what is said of versions that are none."""

import threading

from common import config_map, connect, same
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

NAMESPACE = "python-watching"
core = connect(NAMESPACE)
LIST = core.list_namespaced_config_map
MERGE = "application/merge-patch+json"


def events(version, count, **options):
    """The next `count` changes after `version`, as (type, name)."""
    watcher, found = watch.Watch(), []
    for event in watcher.stream(LIST, NAMESPACE, resource_version=version, timeout_seconds=20, **options):
        found.append((event["type"], event["object"].metadata.name))
        if len(found) == count:
            watcher.stop()
    return found


def patch(name, body):
    return core.patch_namespaced_config_map(name, NAMESPACE, body, _content_type=MERGE)


# The namespace's own object is made by a controller; it must not come in between.
while "kube-root-ca.crt" not in [item.metadata.name for item in LIST(NAMESPACE).items]:
    pass
start = LIST(NAMESPACE).metadata.resource_version
for name in ("a", "b"):
    core.create_namespaced_config_map(NAMESPACE, config_map(name, labels={"app": name}))
middle = patch("a", {"data": {"k": "v"}}).metadata.resource_version
patch("b", {"metadata": {"labels": {"app": "a"}}})
patch("a", {"metadata": {"labels": {"app": "c"}}})
core.delete_namespaced_config_map("b", NAMESPACE)

# The past, from a version on; and the same from the middle.
expected = [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("MODIFIED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
same(events(start, 6), expected)
same(events(middle, 3), expected[3:], "a watch goes on where another ended")

# A selector turns changes into arrivals and departures.
same(
    events(start, 5, label_selector="app=a"),
    [("ADDED", "a"), ("MODIFIED", "a"), ("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")],
)
same(events(start, 2, field_selector="metadata.name=b"), [("ADDED", "b"), ("MODIFIED", "b")])

# Live changes reach a watch that waits; without a version it begins with what exists.
seen, ready = [], threading.Event()


def follow():
    watcher = watch.Watch()
    for event in watcher.stream(LIST, NAMESPACE, label_selector="live", timeout_seconds=20):
        seen.append((event["type"], event["object"].metadata.name))
        ready.set()
        if event["type"] == "DELETED":
            watcher.stop()


core.create_namespaced_config_map(NAMESPACE, config_map("first", labels={"live": "1"}))
thread = threading.Thread(target=follow)
thread.start()
assert ready.wait(20), "the watch begins"
core.create_namespaced_config_map(NAMESPACE, config_map("second", labels={"live": "1"}))
core.delete_namespaced_config_map("first", NAMESPACE)
thread.join(20)
same(seen, [("ADDED", "first"), ("ADDED", "second"), ("DELETED", "first")])

# A watch without events ends in time, and without an error.
now = LIST(NAMESPACE).metadata.resource_version
same(list(watch.Watch().stream(LIST, NAMESPACE, resource_version=now, timeout_seconds=1)), [])

# A version that is no number is refused.
try:
    list(watch.Watch().stream(LIST, NAMESPACE, resource_version="nonsense", timeout_seconds=1))
    raise AssertionError("that is no version")
except ApiException as error:
    same(error.status, 400)
print("watching: done")
