"""moto behind the control plane, for the services that ministack lacks. Started on first use."""

import asyncio
import http.client
import threading
from collections.abc import Mapping
from urllib.parse import urlencode

import ministack.app
from ministack.core import router

from local_aws.settings import HOST

SERVICES = ("application-autoscaling", "fsx", "s3vectors", "sagemaker")

Response = tuple[int, dict[str, str], bytes]

_starting = threading.Lock()
_port: list[int] = []
_NOT_FORWARDED = ("host", "content-length", "accept-encoding")
_NOT_RETURNED = ("content-length", "connection", "date", "server", "transfer-encoding")


def _moto_port() -> int:
    with _starting:
        if not _port:
            from moto.server import ThreadedMotoServer  # a second of imports, only if needed

            server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
            server.start()
            _port.append(server.get_host_and_port()[1])
        return _port[0]


def _forward(
    method: str, path: str, headers: Mapping[str, str], body: bytes, query: Mapping[str, object]
) -> Response:
    connection = http.client.HTTPConnection(HOST, _moto_port(), timeout=60)
    try:
        target = f"{path}?{urlencode(query, doseq=True)}" if query else path
        sent = {name: text for name, text in headers.items() if name not in _NOT_FORWARDED}
        connection.request(method, target, body=body, headers=sent)
        answer = connection.getresponse()
        got = {k: v for k, v in answer.getheaders() if k.lower() not in _NOT_RETURNED}
        return answer.status, got, answer.read()
    finally:
        connection.close()


async def _handle(
    method: str, path: str, headers: Mapping[str, str], body: bytes, query: Mapping[str, object]
) -> Response:
    return await asyncio.to_thread(_forward, method, path, headers, body, query)


def put_moto_behind() -> None:
    """Let moto answer for the services of `SERVICES`."""
    for service in SERVICES:
        router.SERVICE_PATTERNS.setdefault(service, {"credential_scope": service})
        ministack.app.SERVICE_HANDLERS[service] = _handle
