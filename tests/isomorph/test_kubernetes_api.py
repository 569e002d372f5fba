"""The client of the Kubernetes API, against a server with TLS, tokens and faults."""

import base64
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography import x509
from moto import mock_aws

from isomorph.environments import load
from isomorph.errors import UserError
from isomorph.training import kubernetes_api
from isomorph.training.eks_endpoint import Endpoint, Token, endpoint
from isomorph.training.kubernetes_api import ApiError, ConnectionLostError, KubernetesApi
from tests.isomorph.kubernetes_played.environment import Caller
from tests.isomorph.kubernetes_played.identity import certificates
from tests.isomorph.kubernetes_played.server import CLUSTER, Played

HINTS = {"reach": "go there", "admit": "get in", "allow": "ask"}
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "isomorph"}}
ACCOUNT = {"apiVersion": "v1", "kind": "ServiceAccount",
           "metadata": {"name": "isomorph", "namespace": "isomorph"}}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    found = Played(tmp_path_factory.mktemp("played"))
    yield found
    found.close()


@pytest.fixture
def played(server: Played, monkeypatch: pytest.MonkeyPatch) -> Played:
    server.faults.clear()
    server.asked.clear()
    server.store.__init__()  # type: ignore[misc]
    monkeypatch.setattr(kubernetes_api, "_PAUSE_S", 0.001)
    return server


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> Caller:
    found = Caller(monkeypatch)
    found.key = "ADMINKEY"
    return found


@pytest.fixture
def api(played: Played, caller: Caller) -> KubernetesApi:
    token = Token(load("prod"), CLUSTER)
    made = KubernetesApi(Endpoint(CLUSTER, played.url, played.authority), token, HINTS)
    made.apply(NAMESPACE)
    played.asked.clear()
    return made


def test_a_token_is_good_for_the_cluster_that_it_names(played, api, caller):
    assert api.get("Namespace", "isomorph")["metadata"]["uid"]
    other = KubernetesApi(
        Endpoint("other", played.url, played.authority), Token(load("prod"), "other"), HINTS
    )
    with pytest.raises(ApiError, match=r"^Kubernetes of other refuses \(401\): Unauthorized; get"):
        other.get("Namespace", "isomorph")


def test_a_token_is_signed_anew_and_shown_nowhere(caller, monkeypatch):
    token = Token(load("prod"), CLUSTER)
    first = token()
    assert token() == first
    caller.key = "MEMBERKEY"
    token.forget()
    assert token() != first
    assert first not in repr(token)
    assert token._value not in repr(token)


def test_without_credentials_nothing_is_asked(caller, monkeypatch):
    monkeypatch.setattr(boto3.Session, "get_credentials", lambda _: None)
    with pytest.raises(UserError, match="AWS could not be asked in prod: Unable to locate cred"):
        Token(load("prod"), CLUSTER)()


def test_a_token_that_has_ended_is_renewed_once(played, api, monkeypatch):
    played.faults = [(401, b'{"message": "Unauthorized"}', {})]
    assert api.get("Namespace", "isomorph")
    assert len(played.asked) == 2
    played.faults = [(401, b'{"message": "Unauthorized"}', {})] * 2
    with pytest.raises(ApiError, match=r"refuses \(401\): Unauthorized; get in$"):
        api.get("Namespace", "isomorph")


@pytest.mark.parametrize("fault", [(429, b"", {"Retry-After": "0"}), (503, b"", {}), "drop"])
def test_what_may_be_repeated_is(played, api, fault):
    played.faults = [fault] * 3
    assert api.get("Namespace", "isomorph")
    assert len(played.asked) == 4
    played.faults = [fault] * 4
    with pytest.raises(UserError, match=r"refuses|does not answer \(\w+\): go there"):
        api.get("Namespace", "isomorph")


def test_to_make_something_is_repeated_only_where_it_was_not_made(played, api):
    played.faults = [(429, b"", {})]
    api.create(ACCOUNT)
    played.asked.clear()
    played.faults = ["lose"]
    with pytest.raises(ConnectionLostError):
        api.create(ACCOUNT | {"metadata": {"name": "two", "namespace": "isomorph"}})
    assert len(played.asked) == 1
    assert api.get("ServiceAccount", "two", "isomorph")
    with pytest.raises(ApiError, match=r'refuses \(409\): ServiceAccount "two" already exists'):
        api.create(ACCOUNT | {"metadata": {"name": "two", "namespace": "isomorph"}})
    played.faults = [(503, b"busy", {})]
    with pytest.raises(ApiError, match=r"refuses \(503\): busy"):
        api.create(ACCOUNT | {"metadata": {"name": "three", "namespace": "isomorph"}})


def test_an_object_is_deleted_once_and_no_other_of_its_name(played, api):
    uid = api.create(ACCOUNT)["metadata"]["uid"]
    with pytest.raises(ApiError, match=r"refuses \(409\): the UID in the precondition"):
        api.delete("ServiceAccount", "isomorph", "isomorph", "another")
    api.delete("ServiceAccount", "isomorph", "isomorph", uid)
    found = api.get("ServiceAccount", "isomorph", "isomorph")
    assert found["metadata"]["finalizers"] == ["foregroundDeletion"]
    api.delete("ServiceAccount", "none", "isomorph", uid)
    played.faults = [(403, b'{"message": "no"}', {})]
    with pytest.raises(ApiError, match=r"refuses \(403\): no; ask"):
        api.delete("ServiceAccount", "isomorph", "isomorph", uid)


def test_pages_are_put_together(played, api, monkeypatch):
    monkeypatch.setattr(kubernetes_api, "_PAGE", 2)
    for number in range(5):
        api.create(ACCOUNT | {"metadata": {"name": f"a{number}", "namespace": "isomorph"}})
    assert len(api.items("ServiceAccount", "isomorph")) == 5
    monkeypatch.setattr(kubernetes_api, "_MOST_PAGES", 2)
    with pytest.raises(UserError, match="isomorph has more than 4 ServiceAccounts; remove old"):
        api.items("ServiceAccount", "isomorph")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>\x1b[31m proxy</html>", r"no JSON object: '<html> \[31m proxy</html>'$"),
        (b"[" * 100_000, r"answered with no JSON object: '\[+ \.\.\.'$"),
        (b"[]", "answered with no JSON object: "),
        (b'{"items": 3}', "answered with no list of Pods"),
        (b'{"items": [], "metadata": 1}', "answered with no list of Pods"),
    ],
)
def test_an_answer_that_is_none_is_one_line(played, api, answer, said):
    played.faults = [(200, answer, {})]
    with pytest.raises(UserError, match=said) as caught:
        api.items("Pod", "isomorph")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_answer_without_end_is_not_read(played, api, monkeypatch):
    monkeypatch.setattr(kubernetes_api, "MOST_BYTES", 1000)
    played.faults = [(200, b'{"a": "' + b"x" * 2000 + b'"}', {})]
    with pytest.raises(UserError, match="answered with more than 1000 bytes"):
        api.get("Namespace", "isomorph")


def test_an_answer_that_breaks_off_is_one_line(played, api):
    played.faults = [(200, b'{"a"', {"Content-Length": "900", "Connection": "close"})]
    assert api.get("Namespace", "isomorph")
    played.faults = [(200, b'{"a"', {"Content-Length": "900", "Connection": "close"})] * 4
    with pytest.raises(ConnectionLostError, match=r"does not answer \(\w+\): go there"):
        api.get("Namespace", "isomorph")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "nothing"),
        (b"{}", "{}"),
        (b'{"message": "a\\nb"}', "a b"),
        (b"y" * 9000, "y{400} ..."),
    ],
)
def test_a_refusal_is_one_line(played, api, answer, said):
    played.faults = [(418, answer, {})]
    with pytest.raises(ApiError, match=rf"^Kubernetes of {CLUSTER} refuses \(418\): {said}$"):
        api.get("Namespace", "isomorph")


def test_who_is_elsewhere_is_told_what_to_do(caller, played):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{nobody.getsockname()[1]}"
        found = KubernetesApi(
            Endpoint(CLUSTER, url, played.authority), Token(load("prod"), CLUSTER), HINTS
        )
        with pytest.raises(UserError, match=rf"^{url}, Kubernetes of {CLUSTER}, does not answer "):
            found.get("Namespace", "isomorph")


def test_a_server_that_the_clusters_authority_did_not_sign_gets_no_token(
    caller, played, tmp_path: Path
):
    other, _ = certificates(tmp_path)
    found = KubernetesApi(Endpoint(CLUSTER, played.url, other), Token(load("prod"), CLUSTER), HINTS)
    with pytest.raises(UserError, match=f"certificate that is not signed by {CLUSTER}'s own auth"):
        found.get("Namespace", "isomorph")
    assert played.asked == []
    broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    with pytest.raises(UserError, match=f"EKS gave no certificate that can be read for {CLUSTER}"):
        KubernetesApi(Endpoint(CLUSTER, played.url, broken), Token(load("prod"), CLUSTER), HINTS)


def test_authorities_of_eks_are_known_by_python_3_13_too(
    played: Played, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ssl.create_default_context

    def as_python_3_13_makes_it(**given: Any) -> ssl.SSLContext:
        context = made(**given)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", as_python_3_13_makes_it)
    authority = x509.load_pem_x509_certificate(played.authority.encode())
    with pytest.raises(x509.ExtensionNotFound):  # as those of EKS: it names no key
        authority.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    token = Token(load("prod"), CLUSTER)
    found = KubernetesApi(Endpoint(CLUSTER, played.url, played.authority), token, HINTS)
    assert found.get("Namespace", "isomorph") is None


def test_a_log_that_the_api_refuses_is_one_line(played, api):
    with pytest.raises(ApiError, match=r'refuses \(404\): Pod "none" not found'):
        list(api.log("none", "isomorph", {}))


def test_eks_says_where_the_api_is(played, caller):
    with mock_aws():
        caller.describe(played)
        found = endpoint(load("prod"), CLUSTER)
        assert (found.cluster, found.url, found.authority) == (
            CLUSTER, played.url, played.authority,
        )  # fmt: skip
        with pytest.raises(UserError, match=r"AWS refused in prod: .*No cluster found for name"):
            endpoint(load("prod"), "none")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"status": "CREATING"}, "the EKS cluster c is CREATING; it must be ACTIVE"),
        ({"endpoint": "http://x"}, "EKS names no endpoint with a certificate for c"),
        ({"certificateAuthority": {"data": "?"}}, "EKS names no endpoint with a certificate"),
        ({"certificateAuthority": {"data": base64.b64encode(b"x").decode()}}, "no endpoint with"),
        ({"certificateAuthority": None}, "EKS names no endpoint with a certificate for c"),
    ],
)
def test_a_cluster_that_cannot_be_asked_is_named(caller, monkeypatch, changed, said):
    whole: dict[str, Any] = {"status": "ACTIVE", "endpoint": "https://x",
                             "certificateAuthority": {"data": ""}}  # fmt: skip
    answer = json.loads(json.dumps(whole | changed))
    client = type("Client", (), {"describe_cluster": lambda _, name: {"cluster": answer}})()
    monkeypatch.setattr(caller, "client", lambda _: client)
    with pytest.raises(UserError, match=said):
        endpoint(load("prod"), "c")
