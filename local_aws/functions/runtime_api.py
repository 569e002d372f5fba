"""Lambda's runtime API for one execution environment, on a port of the loopback address.

Paths, headers and trailers are those of Lambda's developer guide, "Using the Lambda runtime API
for custom runtimes" and "Response streaming".
"""

import base64
import binascii
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from local_aws.functions.invocation import MAX_PAYLOAD_BYTES, Failure, Head, Invocation, failure_of
from local_aws.settings import HOST

_PREFIX = "/2018-06-01/runtime/"
_ERROR_TYPE = "lambda-runtime-function-error-type"
_ERROR_BODY = "lambda-runtime-function-error-body"
_TOO_LARGE = Failure(
    "Function.ResponseSizeTooLarge",
    f"the answer exceeds the {MAX_PAYLOAD_BYTES} bytes of a buffered invocation",
)


class RuntimeApi:
    """Hands events to one runtime and takes its answers."""

    def __init__(self) -> None:
        self.ready = threading.Event()  # the runtime asked for its first event
        self.init_failure: Failure | None = None
        self.current: Invocation | None = None
        self._events: queue.Queue[Invocation | None] = queue.Queue()
        handler = type("Bound", (_Handler,), {"api": self})
        self._server = _Server((HOST, 0), handler)
        self.address = f"{HOST}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="runtime-api", daemon=True).start()

    def give(self, invocation: Invocation) -> None:
        """Let the runtime have an event."""
        self.current = invocation
        self._events.put(invocation)

    def take(self) -> Invocation | None:
        """Return the next event, once there is one; None when the environment ends."""
        self.ready.set()
        return self._events.get()

    def fail_init(self, failure: Failure) -> None:
        """Take note that the function's own initialization failed."""
        self.init_failure = failure
        self.ready.set()

    def close(self) -> None:
        """End; a runtime that waits for an event is answered with nothing."""
        self._events.put(None)
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing: a runtime that was ended breaks its connections."""


class _Handler(BaseHTTPRequestHandler):
    """`api` is set by RuntimeApi."""

    api: RuntimeApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer invocation/next."""
        if self.path != f"{_PREFIX}invocation/next":
            self._say(404, b"{}")
            return
        invocation = self.api.take()
        if invocation is None:
            self.close_connection = True
            return
        invocation.begin()
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.id,
            "Lambda-Runtime-Deadline-Ms": str(int(invocation.deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": invocation.arn,
            "Lambda-Runtime-Trace-Id": "Root=1-00000000-000000000000000000000000;Sampled=0",
            "Content-Type": "application/json",
        }
        self._say(200, invocation.event, headers)

    def do_POST(self) -> None:
        """Take an answer or a failure."""
        rest = self.path.removeprefix(_PREFIX)
        if rest == "init/error":
            self.api.fail_init(failure_of(self._body()))
            self._say(202, b'{"status":"OK"}')
            return
        invocation = self.api.current
        _, _, tail = rest.partition("/")
        name, _, what = tail.partition("/")
        if invocation is None or name != invocation.id or what not in ("response", "error"):
            self._body()
            self._say(400, b'{"errorType":"InvalidRequestID"}')
            return
        if what == "error":
            invocation.put(failure_of(self._body()))
        elif self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            self._stream(invocation)
        else:
            self._whole(invocation)
        self._say(202, b'{"status":"OK"}')

    def _whole(self, invocation: Invocation) -> None:
        body = self._body()
        if len(body) > MAX_PAYLOAD_BYTES:
            invocation.put(_TOO_LARGE)
            return
        kind = self.headers.get("Content-Type", "application/json")
        for part in (Head(streamed=False, content_type=kind), body, None):
            invocation.put(part)

    def _stream(self, invocation: Invocation) -> None:
        mode = self.headers.get("Lambda-Runtime-Function-Response-Mode", "").lower()
        kind = self.headers.get("Content-Type", "application/octet-stream")
        invocation.put(Head(streamed=mode == "streaming", content_type=kind))
        while size := int(self.rfile.readline().split(b";")[0], 16):
            invocation.put(self.rfile.read(size))
            self.rfile.readline()
        trailers: dict[str, str] = {}
        while line := self.rfile.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            trailers[name.strip().lower()] = value.strip()
        invocation.put(_failed_midway(trailers))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing: the function's own log is what counts."""


def _failed_midway(trailers: dict[str, str]) -> Failure | None:
    """Return what a streamed answer's trailers report, if anything."""
    if _ERROR_TYPE not in trailers:
        return None
    try:
        return failure_of(base64.b64decode(trailers.get(_ERROR_BODY, "")))
    except binascii.Error:
        return Failure(trailers[_ERROR_TYPE], "")
