"""Plays the serving stack of SageMaker's PyTorch images, where there is none: on this machine.

    PYTHONPATH=MODEL_DIR/code python model_code/moe/serve/toolkit.py --model-dir MODEL_DIR

It is a program of its own, on the standard library alone, and no part of a model.tar.gz: an image
has TorchServe with sagemaker-inference, which does the same: it calls the functions of
code/inference.py, passes a context to those that take one argument more, answers with the status
of an exception that has one, and lets them send parts of an answer ahead. Unlike there, requests
run at the same time in one process, and a client is not shown a traceback.
"""

import argparse
import importlib
import inspect
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_MOST_BYTES = 25 << 20  # a real-time endpoint's largest body (SageMaker's quotas)
_FINISH_S = 30.0  # what SageMaker leaves between SIGTERM and SIGKILL
_FUNCTIONS = ("model_fn", "input_fn", "predict_fn", "output_fn")


class Model:
    """The four functions, and what model_fn returned."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.state, self.why = "loading", ""
        self._functions: dict[str, Callable[..., Any]] = {}
        self._model: Any = None
        threading.Thread(target=self._load, name="load", daemon=True).start()

    def _load(self) -> None:
        try:
            name = os.environ.get("SAGEMAKER_PROGRAM", "inference.py").removesuffix(".py")
            module = importlib.import_module(name)
            self._functions = {each: getattr(module, each) for each in _FUNCTIONS}
            self._model = self._call("model_fn", None, str(self._folder))
            self.state = "ok"
        except BaseException as error:  # whatever it is, /ping has to say that it failed
            self.state = "failed"
            self.why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            print(f"toolkit: model_fn failed: {self.why}", file=sys.stderr, flush=True)

    def transform(self, body: bytes, kind: str, accept: str, context: object) -> tuple[bytes, str]:
        """Answer one request with the functions."""
        # The toolkit decodes JSON's bytes before input_fn sees them.
        data: bytes | str = body.decode("utf-8") if kind == "application/json" else body
        given = self._call("input_fn", context, data, kind)
        found = self._call("predict_fn", context, given, self._model)
        answer = self._call("output_fn", context, found, accept)
        out, kind = answer if isinstance(answer, tuple) else (answer, accept)
        return out.encode() if isinstance(out, str) else bytes(out), kind

    def _call(self, name: str, context: object, *arguments: Any) -> Any:
        function = self._functions[name]
        more = len(inspect.signature(function).parameters) - len(arguments)
        return function(*arguments, *([context] if more == 1 else []))


class Context:
    """One request, to the function that sends parts of its answer ahead."""

    def __init__(self, handler: "Handler") -> None:
        self.request_ids, self._handler = {0: "request"}, handler

    def send(self, part: str) -> None:
        """Send a part of the answer; the first one begins it."""
        self._handler.begin_stream()
        self._handler.chunk(part.encode())


def _send_intermediate(
    parts: list[str], request_ids: object, message: str, code: int, context: Context
) -> None:
    """As TorchServe's function of that name."""
    for part in parts:
        context.send(part)


class Handler(BaseHTTPRequestHandler):
    """GET /ping and POST /invocations. `model` is set by serve()."""

    protocol_version = "HTTP/1.1"
    model: Model
    streaming = False

    def do_GET(self) -> None:
        """Say whether requests can be answered."""
        if self.path != "/ping":
            self._answer(404, b"there are GET /ping and POST /invocations\n")
            return
        code = {"ok": 200, "loading": 503}.get(self.model.state, 500)
        self._answer(code, (self.model.why or self.model.state).encode() + b"\n")

    def do_POST(self) -> None:
        """Answer a request."""
        self.streaming = False
        length = self.headers.get("content-length", "")
        if self.path != "/invocations":
            self.close_connection = True  # what the body holds is not read
            self._answer(404, b"there are GET /ping and POST /invocations\n")
        elif not length.isdigit() or int(length) > _MOST_BYTES:
            self.close_connection = True
            self._answer(413, f"content-length is {length!r}; up to {_MOST_BYTES}\n".encode())
        elif self.model.state != "ok":
            self.rfile.read(int(length))
            self._answer(503, b"the model is not loaded\n")
        else:
            self._transform(self.rfile.read(int(length)))

    def _transform(self, body: bytes) -> None:
        accept = self.headers.get("accept") or "*/*"
        kind = self.headers.get("content-type") or ""
        accept = "application/json" if accept == "*/*" else accept
        try:
            out, kind = self.model.transform(body, kind, accept, Context(self))
            code = 200
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            return
        except Exception as error:
            code = int(getattr(error, "status_code", 500))
            known = hasattr(error, "status_code")
            out = str(getattr(error, "message", "")).encode() if known else b"internal error\n"
            kind = "application/json" if known else "text/plain"
            if not known:
                print(f"toolkit: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if self.streaming:
            self.chunk(out)
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._answer(code, out, kind)

    def begin_stream(self) -> None:
        """Send the head of an answer whose length nobody knows yet."""
        if not self.streaming:
            self.streaming = True
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()

    def chunk(self, data: bytes) -> None:
        """Send a part."""
        if data:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _answer(self, code: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: what a request holds is its client's."""


class Server(ThreadingHTTPServer):
    """Waits for requests that run when it closes."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 256


def serve(folder: Path, port: int) -> int:
    """Serve until SIGTERM; returns the exit code."""
    # Not the folder of this file, which has an inference.py too, but not the deployed one.
    sys.path[0] = str(folder / "code")
    shim = types.ModuleType("ts.handler_utils.utils")
    shim.send_intermediate_predict_response = _send_intermediate  # type: ignore[attr-defined]
    for name in ("ts", "ts.handler_utils"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules.setdefault(shim.__name__, shim)
    handler = type("Bound", (Handler,), {"model": Model(folder)})
    with Server(("0.0.0.0", port), handler) as server:  # noqa: S104  a container's
        server.daemon_threads = True  # idle connections must not keep the process
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        server.serve_forever()
    return 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-dir", type=Path, default=Path("/opt/ml/model"))
    port = os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")
    parser.add_argument("--port", type=int, default=int(port))
    given = parser.parse_args()
    if not (given.model_dir / "code" / "inference.py").is_file():
        print(f"toolkit: {given.model_dir}: has no code/inference.py", file=sys.stderr)
        return 1
    return serve(given.model_dir, given.port)


if __name__ == "__main__":
    sys.exit(main())
