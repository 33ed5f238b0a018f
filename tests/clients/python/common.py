"""What the scripts share: a configured client, a namespace, and assertions that print what they saw."""

import json
import time

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException


def connect(namespace):
    """Loads the kubeconfig, makes the namespace and waits until pods can be made in it."""
    config.load_kube_config()
    core = client.CoreV1Api()
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=namespace)))
    eventually("the service account", lambda: core.read_namespaced_service_account("default", namespace))
    return core


def eventually(what, check, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = check()
            if found:
                return found
            problem = found
        except ApiException as error:
            problem = error.reason
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s: {problem}")
        time.sleep(0.1)


def same(found, expected, what=""):
    assert found == expected, f"{what}: {found!r} is not {expected!r}"


def refused(code, reason, call, *arguments, **named):
    """The call fails with this code, and a Status with this reason; returns the Status."""
    try:
        call(*arguments, **named)
    except ApiException as error:
        status = json.loads(error.body)
        same((error.status, status["kind"], status.get("reason"), status["code"]), (code, "Status", reason, code), status)
        return status
    raise AssertionError(f"the call succeeded; expected {code} {reason}")


def config_map(name, **more):
    metadata = client.V1ObjectMeta(name=name, labels=more.pop("labels", None), finalizers=more.pop("finalizers", None))
    return client.V1ConfigMap(metadata=metadata, **more)
