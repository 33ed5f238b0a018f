"""Service account tokens: asked for by TokenRequest, used as bearer tokens, reviewed, refused without their account."""

import time

from common import connect, refused, same
from kubernetes import client

NAMESPACE = "python-tokens"
core = connect(NAMESPACE)
core.create_namespaced_service_account(NAMESPACE, client.V1ServiceAccount(metadata=client.V1ObjectMeta(name="robot")))


def request(seconds):
    spec = client.V1TokenRequestSpec(audiences=[], expiration_seconds=seconds)
    return client.AuthenticationV1TokenRequest(spec=spec)


answer = core.create_namespaced_service_account_token("robot", NAMESPACE, request(600))
token = answer.status.token
same(answer.spec.expiration_seconds, 600)
status = refused(422, "Invalid", core.create_namespaced_service_account_token, "robot", NAMESPACE, request(60))
same(status["details"]["causes"][0]["field"], "spec.expirationSeconds")

administrator = client.ApiClient().configuration


def as_bearer(token):
    """A client that has the server's authority, and nothing of the administrator; perhaps a token."""
    configuration = client.Configuration()
    configuration.host = administrator.host
    configuration.ssl_ca_cert = administrator.ssl_ca_cert
    configuration.cert_file = configuration.key_file = None
    configuration.api_key, configuration.api_key_prefix = {}, {}
    api_client = client.ApiClient(configuration)
    if token:
        api_client.set_default_header("Authorization", f"Bearer {token}")
    return api_client


robot = as_bearer(token)
me = client.AuthenticationV1Api(robot).create_self_subject_review(client.V1SelfSubjectReview()).status.user_info
same(me.username, f"system:serviceaccount:{NAMESPACE}:robot")
same(set(me.groups), {"system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"})
attributes = client.V1ResourceAttributes(verb="list", resource="pods", namespace=NAMESPACE)
spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
may = client.AuthorizationV1Api(robot).create_self_subject_access_review(client.V1SelfSubjectAccessReview(spec=spec))
same(may.status.allowed, False)
status = refused(403, "Forbidden", client.CoreV1Api(robot).list_namespaced_pod, NAMESPACE)
assert f'User "system:serviceaccount:{NAMESPACE}:robot" cannot list resource "pods"' in status["message"], status
refused(401, "Unauthorized", client.CoreV1Api(as_bearer(token[:-6])).list_namespaced_pod, NAMESPACE)


def review(token):
    spec = client.V1TokenReviewSpec(token=token)
    return client.AuthenticationV1Api().create_token_review(client.V1TokenReview(spec=spec)).status


same((review(token).authenticated, review(token).user.username), (True, me.username))
assert not review("nonsense").authenticated and review("nonsense").error
attributes = client.V1ResourceAttributes(verb="delete", resource="nodes")
spec = client.V1SubjectAccessReviewSpec(user="joe", groups=["system:masters"], resource_attributes=attributes)
subject = client.AuthorizationV1Api().create_subject_access_review(client.V1SubjectAccessReview(spec=spec))
same(subject.status.allowed, True)

core.delete_namespaced_service_account("robot", NAMESPACE)


def is_known():
    """False once the account's end has reached the cache that tokens are checked against."""
    try:
        client.CoreV1Api(robot).list_namespaced_pod(NAMESPACE)
    except client.ApiException as error:
        return error.status != 401
    return True


deadline = time.monotonic() + 10
while is_known():
    assert time.monotonic() < deadline, "the token outlives its account"
    time.sleep(0.01)
refused(401, "Unauthorized", client.CoreV1Api(robot).list_namespaced_pod, NAMESPACE)

# Nobody in particular: the version, and nothing of the cluster.
nobody = as_bearer(None)
assert client.VersionApi(nobody).get_code().git_version.startswith("v1.36.")
status = refused(403, "Forbidden", client.CoreV1Api(nobody).list_namespaced_pod, NAMESPACE)
assert 'User "system:anonymous"' in status["message"], status
print("tokens: done")
