"""A client of the Kubernetes API for a few calls: get, list, create, apply, patch, delete, a log.

What it reads is bounded, what it says is one line. Calls that may be repeated are, where the API is
busy or the connection was lost. https://kubernetes.io/docs/reference/using-api/api-concepts
"""

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

from isomorph.errors import UserError
from isomorph.training.eks_endpoint import Endpoint

MOST_BYTES = 32 * 1024 * 1024  # of one answer; a page of 100 runs has less than a tenth of it
_PAGE, _MOST_PAGES = 100, 50
_TRIES, _PAUSE_S, _MOST_PAUSE_S = 4, 0.5, 10.0
_CONNECT_S, _READ_S = 5.0, 30.0
_BUSY = frozenset({429, 500, 502, 503, 504})
_LONGEST = 400  # of what the API says

# Resources by kind: group and version, plural name, whether they are of a namespace.
_RESOURCES = {
    "Namespace": ("api/v1", "namespaces", False),
    "PersistentVolume": ("api/v1", "persistentvolumes", False),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims", True),
    "ServiceAccount": ("api/v1", "serviceaccounts", True),
    "Pod": ("api/v1", "pods", True),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings", True),
    "PyTorchJob": ("apis/kubeflow.org/v1", "pytorchjobs", True),
    "Workload": ("apis/kueue.x-k8s.io/v1beta1", "workloads", True),
    "LocalQueue": ("apis/kueue.x-k8s.io/v1beta1", "localqueues", True),
}


class Renewable(Protocol):
    """A bearer token."""

    def __call__(self) -> str:
        """Return it."""
        ...

    def forget(self) -> None:
        """Make another one next time."""
        ...


class ApiError(UserError):
    """What the API refused, with its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class ConnectionLostError(UserError):
    """The connection was lost in a call that may have done its work all the same."""


class KubernetesApi:
    """The API of one cluster.

    Args:
        endpoint: Where it answers, and who signed its certificate.
        token: Of the caller.
        hints: What to do, appended to an error: `reach` where nobody answers, `admit` where the
            API does not know the caller (401), `allow` where it may not (403).
    """

    def __init__(self, endpoint: Endpoint, token: Renewable, hints: Mapping[str, str]) -> None:
        self.cluster, self._url = endpoint.cluster, endpoint.url
        self._token, self._hints = token, hints
        try:
            # Of authorities it knows the cluster's own alone.
            context = ssl.create_default_context(cadata=endpoint.authority)
        except ssl.SSLError:
            raise UserError(
                f"EKS gave no certificate that can be read for {self.cluster}"
            ) from None
        # EKS's own authorities name no key of theirs (Authority Key Identifier), which Python takes
        # for a fault from 3.13 on; see kubernetes-client/python#2394 and awslabs/mcp#3791.
        # Signature, time and the server's name are checked as before.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._pool = urllib3.PoolManager(ssl_context=context, retries=False)

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        """Return one object, or None where there is none."""
        try:
            return self._ask("GET", _path(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def items(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """Return all objects of a kind in a namespace that have the selector's labels."""
        found: list[dict[str, Any]] = []
        query = {"limit": str(_PAGE), **({"labelSelector": selector} if selector else {})}
        for _ in range(_MOST_PAGES):
            page = self._ask("GET", _path(kind, namespace), query)
            items, metadata = page.get("items") or [], page.get("metadata") or {}
            if not isinstance(items, list) or not isinstance(metadata, dict):
                raise UserError(f"Kubernetes of {self.cluster} answered with no list of {kind}s")
            found += [each for each in items if isinstance(each, dict)]
            if not metadata.get("continue"):
                return found
            query["continue"] = str(metadata["continue"])
        raise UserError(f"{namespace} has more than {len(found)} {kind}s; remove old ones")

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; one that is there is an ApiError with status 409.

        Raises:
            ConnectionLostError: nobody knows whether it was made.
        """
        return self._ask("POST", _path(body["kind"], body["metadata"].get("namespace")), body=body)

    def apply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object so, whether it is there or not (server-side apply)."""
        metadata = body["metadata"]
        path = _path(body["kind"], metadata.get("namespace"), metadata["name"])
        query = {"fieldManager": "isomorph", "force": "true"}
        return self._ask("PATCH", path, query, body, content="application/apply-patch+yaml")

    def merge(
        self, kind: str, name: str, namespace: str, change: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Change some fields of an object (JSON merge patch)."""
        path = _path(kind, namespace, name)
        return self._ask("PATCH", path, body=change, content="application/merge-patch+json")

    def delete(self, kind: str, name: str, namespace: str, uid: str) -> None:
        """Delete this very object and, before it, what it owns; one that is gone is no error."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": uid},
        }
        try:
            self._ask("DELETE", _path(kind, namespace, name), body=options)
        except ApiError as error:
            if error.status != 404:
                raise

    def log(self, pod: str, namespace: str, query: Mapping[str, str]) -> Iterator[bytes]:
        """Yield the log of a pod as it comes; it ends when the connection is lost, too."""
        path = _path("Pod", namespace, pod) + "/log"
        answer, read = self._send("GET", path, query, None, "application/json", stream=True)
        try:
            if answer.status != 200:
                raise self._error(answer.status, read)
            yield from answer.stream(1 << 16, decode_content=False)
        except HTTPError:
            return
        finally:
            answer.close()

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> dict[str, Any]:
        answer, read = self._send(method, path, query, body, content)
        if len(read) > MOST_BYTES:
            raise UserError(
                f"Kubernetes of {self.cluster} answered with more than {MOST_BYTES} bytes"
            )
        if answer.status not in (200, 201, 202):
            raise self._error(answer.status, read)
        try:
            found = json.loads(read)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"Kubernetes of {self.cluster} answered with no JSON object: {_short(read)!r}"
            )
        return found

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content: str,
        stream: bool = False,
    ) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """Return an answer and its body, unless a stream is wanted and comes.

        Tries again where that does no harm.
        """
        url = f"{self._url}/{path}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        for left in reversed(range(_TRIES)):
            pause = _PAUSE_S * 2.0 ** (_TRIES - 1 - left)
            try:
                answer = self._once(method, url, data, content)
                read = b""
                if not (stream and answer.status == 200):
                    read = _body(answer)
            except HTTPError as error:
                never_sent = isinstance(error, NewConnectionError | ConnectTimeoutError)
                if isinstance(error, SSLError) or not left:
                    raise self._lost(error, never_sent) from None
                if method == "POST" and not never_sent:
                    raise self._lost(error, never_sent) from None
                time.sleep(pause)
                continue
            busy = answer.status == 429 or (answer.status in _BUSY and method != "POST")
            expired = answer.status == 401 and left == _TRIES - 1
            if not left or not (busy or expired):
                return answer, read
            if expired:
                self._token.forget()
            else:
                time.sleep(min(_seconds(answer.headers.get("Retry-After"), pause), _MOST_PAUSE_S))
        raise AssertionError("the last try returns or raises")

    def _once(
        self, method: str, url: str, data: bytes | None, content: str
    ) -> urllib3.BaseHTTPResponse:
        return self._pool.request(
            method,
            url,
            body=data,
            headers={
                "Authorization": f"Bearer {self._token()}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "Content-Type": content,
                "User-Agent": "isomorph",
            },
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S),
            redirect=False,
            preload_content=False,
        )

    def _lost(self, error: HTTPError, never_sent: bool) -> UserError:
        text = self._unreachable(error)
        return UserError(text) if never_sent else ConnectionLostError(text)

    def _unreachable(self, error: HTTPError) -> str:
        if isinstance(error, SSLError):
            return (
                f"{self._url} shows a certificate that is not signed by {self.cluster}'s own "
                f"authority; something between here and there answers in its place"
            )
        kind = type(error).__name__.removesuffix("Error")
        where = f"{self._url}, Kubernetes of {self.cluster}"
        return f"{where}, does not answer ({kind}): {self._hints['reach']}"

    def _error(self, status: int, read: bytes) -> ApiError:
        """Return what the API said in a Status object, or the beginning of what it said."""
        try:
            said = _short(str(json.loads(read)["message"]).encode())
        except (ValueError, KeyError, TypeError, RecursionError):
            said = _short(read) or "nothing"
        hint = {401: "admit", 403: "allow"}.get(status)
        more = f"; {self._hints[hint]}" if hint else ""
        return ApiError(status, f"Kubernetes of {self.cluster} refuses ({status}): {said}{more}")


def _body(answer: urllib3.BaseHTTPResponse) -> bytes:
    """Return a body to its end, or a byte more than is taken; one that breaks off raises."""
    found = b""
    try:
        while len(found) <= MOST_BYTES:
            part = answer.read(1 << 20, decode_content=False)
            if not part:
                break
            found += part
    finally:
        answer.close()
    return found[: MOST_BYTES + 1]


def _path(kind: str, namespace: str | None, name: str | None = None) -> str:
    group, plural, is_of_namespace = _RESOURCES[kind]
    parts = [group]
    if is_of_namespace:
        parts += ["namespaces", quote(str(namespace), safe="")]
    parts += [plural, *([quote(name, safe="")] if name else [])]
    return "/".join(parts)


def _short(read: bytes) -> str:
    """Return the beginning of a text in one line, without what a terminal would obey."""
    text = read[: 4 * _LONGEST].decode("utf-8", "replace")
    line = "".join(each if each.isprintable() else " " for each in " ".join(text.split()))
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."


def _seconds(given: str | None, otherwise: float) -> float:
    return float(given) if given and given.isdecimal() else otherwise
