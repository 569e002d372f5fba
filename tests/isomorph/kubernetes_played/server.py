"""A Kubernetes API over TLS: tokens, rights by Roles, objects, logs, and faults on demand."""

import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.isomorph.kubernetes_played.identity import caller, certificates
from tests.isomorph.kubernetes_played.store import (
    GROUPS,
    OF_THE_CLUSTER,
    Object,
    Refused,
    Store,
    merged,
)

CLUSTER = "prod-moe-123456"
SECRETS = {"ADMINKEY": "admin-secret", "MEMBERKEY": "member-secret", "STRANGERKEY": "secret"}
ADMINS = {"ADMINKEY"}
GROUPS_OF = {"MEMBERKEY": {"isomorph:isomorph", "isomorph:hyperpod-ns-research"}}
Lines = Callable[[str, str, bool], Iterator[bytes]]
_PATCHES = {"application/merge-patch+json", "application/apply-patch+yaml"}


class Played:
    """The server; `faults` are taken one a request, before anything else is done."""

    def __init__(self, folder: Path) -> None:
        self.store = Store()
        self.authority, file = certificates(folder)
        self.asked: list[tuple[str, str]] = []
        # A status with body and headers, "drop" before or "lose" after the work was done.
        self.faults: list[Any] = []
        self.log: Lines = lambda *_: iter(())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        handler = type("Handler", (_Handler,), {"played": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def calls(self, method: str) -> list[str]:
        return [path for its, path in self.asked if its == method]


class _Handler(BaseHTTPRequestHandler):
    played: Played
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's packet

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.played.asked.append((self.command, path))
        fault = self.played.faults.pop(0) if self.played.faults else None
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "drop":
            self.close_connection = True
            return
        if fault not in (None, "lose"):
            status, text, headers = fault
            self._send(status, text, headers)
            return
        try:
            self._work(path.lstrip("/"), dict(parse_qsl(urlsplit(self.path).query)), body,
                       lost=fault == "lose")  # fmt: skip
        except Refused as refused:
            said = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "message": str(refused),
                "reason": refused.reason,
                "code": refused.status,
            }
            self._send(refused.status, json.dumps(said).encode(), {})

    def _send(self, status: int, text: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(text))}
        for name, value in (usual | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def _work(self, path: str, query: dict[str, str], body: bytes, *, lost: bool) -> None:
        kind, plural, namespace, name, part = _read(path)
        verb = {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch",
                "DELETE": "delete"}[self.command]  # fmt: skip
        resource = f"{plural}/{part}" if part else plural
        self._authorize(verb, path.partition("/namespaces")[0], resource, namespace)
        if part == "log":
            self._log(namespace, name, query)
            return
        given = json.loads(body) if body else {}
        if verb in ("create", "patch") and not isinstance(given, dict):
            raise Refused(400, "BadRequest", "no object")
        found = getattr(self, f"_{verb}")(kind, namespace, name, query, given)
        if lost:
            self.close_connection = True
            return
        self._send(201 if verb == "create" else 200, json.dumps(found).encode(), {})

    def _authorize(self, verb: str, group: str, resource: str, namespace: str) -> None:
        """Let admins do everything, and members what Roles of their groups say."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            key = caller(token, CLUSTER, SECRETS)
            assert key in ADMINS or key in GROUPS_OF
        except (AssertionError, ValueError, KeyError):
            raise Refused(401, "Unauthorized", "Unauthorized") from None
        if key in ADMINS:
            return
        group = group.removesuffix("/v1").removesuffix("/v1beta1").removeprefix("apis/")
        group = "" if group.startswith("api") else group
        store = self.played.store
        for binding in store.all("RoleBinding", namespace or "-"):
            if not GROUPS_OF[key] & {each["name"] for each in binding["subjects"]}:
                continue
            for rule in store.get("Role", namespace, binding["roleRef"]["name"])["rules"]:
                asked = {"apiGroups": group, "resources": resource, "verbs": verb}
                if all(each in rule[key] for key, each in asked.items()):
                    return
        where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
        text = f'{resource} is forbidden: User "{key}" cannot {verb} resource "{resource}"{where}'
        raise Refused(403, "Forbidden", text)

    def _get(self, kind: str, namespace: str, name: str, *_: Any) -> Object:
        return self.played.store.get(kind, namespace, name)

    def _list(self, kind: str, namespace: str, _: str, query: dict[str, str], __: Any) -> Object:
        labels = dict(each.split("=") for each in query.get("labelSelector", "").split(",") if each)
        found = [each for each in self.played.store.all(kind, namespace)
                 if labels.items() <= each["metadata"].get("labels", {}).items()]  # fmt: skip
        first, most = int(query.get("continue", 0)), int(query.get("limit", len(found) + 1))
        more = {"continue": str(first + most)} if first + most < len(found) else {}
        return {"kind": f"{kind}List", "metadata": more, "items": found[first : first + most]}

    def _create(self, kind: str, namespace: str, _: str, __: Any, given: Object) -> Object:
        if given.get("kind") != kind:
            raise Refused(400, "BadRequest", f"the object is no {kind}")
        if self.headers.get("Content-Type") != "application/json":
            raise Refused(415, "UnsupportedMediaType", "the body is not understood")
        return self.played.store.create(kind, namespace, given)

    def _patch(
        self, kind: str, namespace: str, name: str, query: dict[str, str], given: Object
    ) -> Object:
        content, store = self.headers.get("Content-Type", ""), self.played.store
        if content not in _PATCHES:
            raise Refused(415, "UnsupportedMediaType", f"{content} is not understood")
        with store.lock:
            if content == "application/apply-patch+yaml":
                if "fieldManager" not in query:
                    raise Refused(422, "Invalid", "fieldManager is required for apply patch")
                if not any(each["metadata"]["name"] == name for each in store.all(kind, namespace)):
                    return store.create(kind, namespace, given)
            return store.change(kind, namespace, name,
                                lambda found: found.update(merged(found, given)))  # fmt: skip

    def _delete(self, kind: str, namespace: str, name: str, _: Any, given: Object) -> Object:
        return self.played.store.delete(kind, namespace, name, given)

    def _log(self, namespace: str, name: str, query: dict[str, str]) -> None:
        pod = self.played.store.get("Pod", namespace, name)
        if query.get("container") != pod["spec"]["containers"][0]["name"]:
            raise Refused(400, "BadRequest", "a container name must be specified")
        [status] = pod.get("status", {}).get("containerStatuses") or [{}]
        if not status or "waiting" in status.get("state", {}):
            raise Refused(400, "BadRequest", f'container in pod "{name}" is waiting to start')
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        read = json.dumps({key: query.get(key, "") for key in ("previous", "sinceTime")})
        for line in self.played.log(pod["metadata"]["uid"], read, query.get("follow") == "true"):
            if query.get("timestamps") != "true":
                line = line.partition(b" ")[2]
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


def _read(path: str) -> tuple[str, str, str, str, str]:
    """Return kind, resource, namespace, name and subresource of a path."""
    pattern = r"(api/v1|apis/[^/]+/v1(?:beta1)?)(?:/namespaces/([^/]+)(?=/[^/]))?/([a-z]+)"
    found = re.fullmatch(pattern + r"(?:/([^/]+))?(?:/(log))?", path)
    kind = GROUPS.get(found[1], {}).get(found[3]) if found else None
    if found is None or kind is None or (kind in OF_THE_CLUSTER) != (found[2] is None):
        raise Refused(404, "NotFound", "the server could not find the requested resource")
    return kind, found[3], unquote(found[2] or ""), unquote(found[4] or ""), found[5] or ""


def wait_for(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)
    return found
