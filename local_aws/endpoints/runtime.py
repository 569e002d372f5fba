"""SageMaker's runtime: invocations of an endpoint, whole or as a stream of events."""

import asyncio
import http.client
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from ministack.core.responses import StreamingResponse, get_account_id, get_region

from local_aws.endpoints.endpoint import Endpoint
from local_aws.endpoints.runner import EndpointRunner
from local_aws.settings import HOST

# https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
_SECONDS, _STREAM_SECONDS = 60.0, 480.0
MOST_BYTES = 25 * 2**20
_PASSED_ON = ("accept", "content-type")
_OWN = "x-amzn-sagemaker-"


class Runtime:
    """Hands requests to an endpoint's containers, and their answers back."""

    def __init__(self, runner: EndpointRunner) -> None:
        self._runner = runner

    async def invoke(self, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        """Answer InvokeEndpoint or InvokeEndpointWithResponseStream."""
        _, _, name, what = path.split("/", 3)
        name = unquote(name)
        if what not in ("invocations", "invocations-response-stream"):
            return _refuse(400, "ValidationError", f"{what} is not played here")
        endpoint = self._runner.get((str(get_account_id()), str(get_region()), name))
        if endpoint is None or not endpoint.live:
            return _refuse(400, "ValidationError", f"Endpoint {name} of account not found.")
        if len(body) > MOST_BYTES:
            return _refuse(400, "ValidationError", f"the body has more than {MOST_BYTES} bytes")
        stream = what.endswith("response-stream")
        return await asyncio.to_thread(self._ask, endpoint, headers, body, stream)

    def _ask(
        self, endpoint: Endpoint, headers: Mapping[str, str], body: bytes, stream: bool
    ) -> Any:
        chosen = endpoint.choose()
        if chosen is None:
            return _refuse(503, "ServiceUnavailable", f"no container of {endpoint.name} runs")
        variant, container = chosen
        seconds = _STREAM_SECONDS if stream else _SECONDS
        connection = http.client.HTTPConnection(HOST, container.port, timeout=seconds)
        try:
            connection.request("POST", "/invocations", body, _to_container(headers))
            answer = connection.getresponse()
            if stream and answer.status == 200:
                given = _headers(answer, variant.name, prefix=_OWN)
                given["content-type"] = "application/vnd.amazon.eventstream"
                return 200, given, StreamingResponse(_Events(connection, answer).send)
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return _model_error(endpoint, 0, f"the container does not answer: {error}")
        connection.close()
        if answer.status >= 400:
            return _model_error(endpoint, answer.status, content.decode(errors="replace"))
        return 200, _headers(answer, variant.name), content


def _to_container(headers: Mapping[str, str]) -> dict[str, str]:
    """Return what a container gets: type, accepted type, and the caller's attributes."""
    passed = {name: headers[name] for name in _PASSED_ON if name in headers}
    if f"{_OWN}accept" in headers:  # a stream's is not the HTTP header
        passed["accept"] = headers[f"{_OWN}accept"]
    if f"{_OWN}content-type" in headers:
        passed["content-type"] = headers[f"{_OWN}content-type"]
    attributes = f"{_OWN}custom-attributes"
    return passed | ({attributes: headers[attributes]} if attributes in headers else {})


def _headers(answer: http.client.HTTPResponse, variant: str, prefix: str = "") -> dict[str, str]:
    found = {
        f"{prefix}content-type": answer.getheader("content-type", "application/octet-stream"),
        "x-amzn-invoked-production-variant": variant,
    }
    attributes = answer.getheader(f"{_OWN}custom-attributes")
    return found | ({f"{_OWN}custom-attributes": attributes} if attributes else {})


def _refuse(status: int, kind: str, message: str) -> Any:
    headers = {"Content-Type": "application/json", "x-amzn-errortype": kind}
    return status, headers, json.dumps({"message": message, "Message": message}).encode()


def _model_error(endpoint: Endpoint, status: int, said: str) -> Any:
    """Return ModelError, 424: the container's status and what it said."""
    message = f'Received server error ({status}) from primary with message "{said}"'
    body = {
        "Message": message,
        "OriginalStatusCode": status,
        "OriginalMessage": said,
        "LogStreamArn": f"{endpoint.arn}/log",
    }
    headers = {"Content-Type": "application/json", "x-amzn-errortype": "ModelError"}
    return 424, headers, json.dumps(body).encode()


class _Events:
    """An answer as it comes, each piece of it in an event."""

    def __init__(
        self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
    ) -> None:
        self._connection, self._answer = connection, answer

    async def send(self, send: Any, _: Any) -> None:
        """Pass the answer on until it ends; one that breaks off ends with an error event."""
        try:
            while piece := await asyncio.to_thread(self._answer.read1, 65536):
                await _body(send, event({":event-type": "PayloadPart"}, piece), more=True)
        except (OSError, http.client.HTTPException) as error:
            said = json.dumps({"Message": str(error), "ErrorCode": "ModelInvocationTimeExceeded"})
            kind = {":message-type": "exception", ":exception-type": "ModelStreamError"}
            await _body(send, event(kind, said.encode()), more=True)
        finally:
            self._connection.close()
        await _body(send, b"", more=False)


async def _body(send: Any, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def event(headers: Mapping[str, str], payload: bytes) -> bytes:
    """Return one message of the format application/vnd.amazon.eventstream."""
    kind = "application/octet-stream"
    given = {":message-type": "event", ":content-type": kind, **headers}
    encoded = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value.encode()))
        + value.encode()
        for name, value in given.items()
    )  # fmt: skip
    prelude = struct.pack("!II", 12 + len(encoded) + len(payload) + 4, len(encoded))
    prelude += struct.pack("!I", zlib.crc32(prelude))
    message = prelude + encoded + payload
    return message + struct.pack("!I", zlib.crc32(message))
