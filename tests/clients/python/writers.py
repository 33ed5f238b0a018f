"""Four writers that make objects until the server is gone; each name is printed when its write was acknowledged."""

import sys
import threading

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

config.load_kube_config()
configuration = client.Configuration.get_default_copy()
configuration.retries = False
core = client.CoreV1Api(client.ApiClient(configuration))
prefix = sys.argv[1]
printing = threading.Lock()


def write(writer):
    for number in range(1_000_000):
        name = f"{prefix}-{writer}-{number:04}"
        metadata = client.V1ObjectMeta(name=name, labels={"written": "yes"})
        try:
            core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=metadata, data={"n": str(number)}))
        except (ApiException, HTTPError, OSError):
            return
        with printing:
            print(f"configmap/{name}", flush=True)


writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
for writer in writers:
    writer.start()
for writer in writers:
    writer.join()
