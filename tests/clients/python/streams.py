"""exec, attach and port-forward, over the WebSockets that this client speaks."""

import os

from common import same
from kubernetes import client, config
from kubernetes.stream import portforward, stream

NAMESPACE = os.environ["NAMESPACE"]
config.load_kube_config()
core = client.CoreV1Api()


def box(call, **options):
    return stream(call, "box", NAMESPACE, **options)


execute = core.connect_get_namespaced_pod_exec
said = box(execute, command=["sh", "-c", "echo out; echo wrong >&2"], stdout=True, stderr=True)
same(sorted(said.split()), ["out", "wrong"], "both streams")

session = box(execute, command=["sh"], stdin=True, stdout=True, stderr=True, _preload_content=False)
session.write_stdin("echo one; echo two >&2\n")
same(session.readline_stdout(timeout=20), "one", "standard output")
same(session.readline_stderr(timeout=20), "two", "standard error")
session.write_stdin("exit 3\n")
session.run_forever(timeout=20)
same(session.returncode, 3, "the exit code")

session = box(core.connect_get_namespaced_pod_attach, stdin=True, stdout=True, _preload_content=False)
session.write_stdin("hello\n")
same(session.readline_stdout(timeout=20), "heard hello", "attached")
session.close()

forward = portforward(core.connect_get_namespaced_pod_portforward, "web", NAMESPACE, ports="8080")
connection = forward.socket(8080)
connection.settimeout(20)
connection.sendall(b"GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
answer = b""
while part := connection.recv(4096):
    answer += part
same(answer.splitlines()[-1], b"web", "forwarded")
same(forward.error(8080), None, "no error")

print("done")
