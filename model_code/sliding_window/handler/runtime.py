"""A custom runtime: takes events from Lambda's runtime API and streams the answers back.

Python's managed runtime buffers answers. The runtime API itself takes a chunked response with
`Lambda-Runtime-Function-Response-Mode: streaming`, and reports what fails in mid-answer as
trailers (Lambda's developer guide, "Building a custom runtime", "Response streaming").
"""

import asyncio
import base64
import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from model_code.sliding_window.handler.answering import Response, respond
from model_code.sliding_window.handler.model import Model

_API = "/2018-06-01/runtime"
_PRELUDE = "application/vnd.awslambda.http-integration-response"
_END_OF_PRELUDE = bytes(8)
_ERROR_TYPE = "Lambda-Runtime-Function-Error-Type"
_ERROR_BODY = "Lambda-Runtime-Function-Error-Body"


@dataclass(frozen=True)
class Invocation:
    """One event, and when Lambda ends it, in milliseconds since 1970."""

    id: str
    event: bytes
    deadline_ms: int

    def remaining_s(self) -> float:
        """Return the seconds that are left."""
        return self.deadline_ms / 1000 - time.time()


class RuntimeApi:
    """The runtime API at AWS_LAMBDA_RUNTIME_API."""

    def __init__(self, address: str) -> None:
        self._address = address

    def next(self) -> Invocation:
        """Wait for the next event; Lambda freezes the process meanwhile."""
        connection = http.client.HTTPConnection(self._address)
        try:
            connection.request("GET", f"{_API}/invocation/next")
            answer = connection.getresponse()
            event = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"the runtime API answered {answer.status}: {event[:200]!r}")
            return Invocation(
                answer.headers["Lambda-Runtime-Aws-Request-Id"],
                event,
                int(answer.headers["Lambda-Runtime-Deadline-Ms"]),
            )
        finally:
            connection.close()

    def error(self, invocation: Invocation, kind: str, message: str) -> None:
        """Report that an event has failed as a whole."""
        connection = http.client.HTTPConnection(self._address)
        body = json.dumps({"errorType": kind, "errorMessage": message, "stackTrace": []})
        try:
            connection.request(
                "POST", f"{_API}/invocation/{invocation.id}/error", body, {_ERROR_TYPE: kind}
            )
            connection.getresponse().read()
        finally:
            connection.close()

    def respond(self, invocation: Invocation, content_type: str) -> "ChunkedResponse":
        """Begin a streamed answer."""
        return ChunkedResponse(
            self._address, f"{_API}/invocation/{invocation.id}/response", content_type
        )


class ChunkedResponse:
    """A response on its way, chunk by chunk. An exception inside becomes its trailers."""

    def __init__(self, address: str, path: str, content_type: str) -> None:
        self._connection = http.client.HTTPConnection(address)
        self._connection.putrequest("POST", path)
        for name, value in (
            ("Content-Type", content_type),
            ("Lambda-Runtime-Function-Response-Mode", "streaming"),
            ("Transfer-Encoding", "chunked"),
            ("Trailer", f"{_ERROR_TYPE}, {_ERROR_BODY}"),
        ):
            self._connection.putheader(name, value)
        self._connection.endheaders()

    def __enter__(self) -> "ChunkedResponse":
        """Return itself."""
        return self

    def write(self, data: bytes) -> None:
        """Send one chunk; nothing for no bytes, which would end the response."""
        if data:
            self._connection.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the response, with the exception as its trailers if there is one."""
        try:
            if isinstance(error, ConnectionError):  # nobody is there to be told
                return
            trailers = _trailers(error) if error else {}
            lines = "".join(f"{name}: {value}\r\n" for name, value in trailers.items())
            self._connection.send(f"0\r\n{lines}\r\n".encode())
            self._connection.getresponse().read()
        finally:
            self._connection.close()


def _trailers(error: BaseException) -> Mapping[str, str]:
    kind = type(error).__name__
    body = json.dumps({"errorType": kind, "errorMessage": " ".join(str(error).split())})
    return {_ERROR_TYPE: kind, _ERROR_BODY: base64.b64encode(body.encode()).decode()}


def serve(model: Model, api: RuntimeApi) -> None:
    """Answer events until Lambda ends the process; does not return."""
    while True:
        answer(model, api, api.next())


def answer(model: Model, api: RuntimeApi, invocation: Invocation) -> None:
    """Answer one event; what goes wrong with it must not end the runtime."""
    try:
        asyncio.run(_answer(model, api, invocation))
    except ConnectionError:
        print(json.dumps({"level": "INFO", "message": "the caller went away"}), flush=True)
    except Exception as error:  # the bytes that were sent stand; the trailers say what happened
        said = " ".join(str(error).split())
        print(json.dumps({"level": "ERROR", "message": f"{type(error).__name__}: {said}"}),
              flush=True)  # fmt: skip


async def _answer(model: Model, api: RuntimeApi, invocation: Invocation) -> None:
    try:
        event = json.loads(invocation.event)
    except (ValueError, RecursionError):
        event = None  # no JSON at all: refused as any other event that is none of ours
    response = await respond(model, event, invocation.remaining_s)
    if not response.http and response.status >= 500:
        said = json.loads(b"".join([part async for part in response.body]))
        api.error(invocation, "ServerError", said["error"]["message"])
        return
    await _send(api, invocation, response)


async def _send(api: RuntimeApi, invocation: Invocation, response: Response) -> None:
    kind = _PRELUDE if response.http else response.headers["content-type"]
    with api.respond(invocation, kind) as out:
        if response.http:
            head = {"statusCode": response.status, "headers": response.headers}
            out.write(json.dumps(head).encode() + _END_OF_PRELUDE)
        parts = response.body
        try:
            async for part in parts:
                out.write(part)
        finally:  # a caller that went away ends the work on its answer
            if hasattr(parts, "aclose"):
                await parts.aclose()
