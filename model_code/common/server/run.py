"""The server's process: it answers /health from its first moment, loads, serves, drains, exits."""

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from model_code.common.engine import Engine, load_engine
from model_code.common.errors import SettingsError, UserError
from model_code.common.server.app import build_app
from model_code.common.server.logs import set_up_logs
from model_code.common.server.metrics import Metrics
from model_code.common.server.publisher import Publisher
from model_code.common.server.service import Service
from model_code.common.server.settings import Settings
from model_code.common.weights import fetch

_LOG = logging.getLogger(__name__)
# An ALB keeps idle connections for 60 s; a target that closes one first answers 502 now and then.
_KEEP_ALIVE_S = 75
_FLUSH_S = 2  # for the last bytes of answers, after all requests are done or cut


class Extension(Protocol):
    """What a target adds to the server."""

    def count(self, metrics: Metrics) -> None:
        """Add metrics; called before the first request."""
        ...

    def load(self) -> Engine | None:
        """Load the engine in the server's place; None leaves it to the server."""
        ...

    def wrap(self, app: Starlette, service: Service) -> ASGIApp:
        """Return the application with what the target adds to it."""
        ...

    def attach(self, engine: Engine, folder: Path) -> None:
        """Add to an engine with the weights in `folder`; called before it serves."""
        ...

    def close(self) -> None:
        """Let go of everything; called after the engine is closed."""
        ...


Extend = Callable[[Mapping[str, str], Settings], Extension | None]


def main(env: Mapping[str, str] = os.environ, extend: Extend = lambda _, __: None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Args:
        env: The environment, with the server's settings.
        extend: Returns what a target adds, by its own variables of the environment.
    """
    try:
        settings = Settings.from_environment(env)
        extension = extend(env, settings)
        set_up_logs(settings.log_group)
        with _listen(settings) as listener:
            asyncio.run(_Process(settings, extension).run_until_stopped(listener))
    except UserError as error:
        print(f"isomorph: {error}", file=sys.stderr)
        return 1
    finally:
        logging.shutdown()
    return 0


class _Process(uvicorn.Server):
    """uvicorn's server, but its first SIGTERM or SIGINT drains, and the second ends at once."""

    def __init__(self, settings: Settings, extension: Extension | None) -> None:
        self._settings, self._extension = settings, extension
        self._metrics = Metrics()
        if extension:
            extension.count(self._metrics)
        self._service = Service(
            model=settings.model, slots=settings.slots, queue=settings.queue,
            deadline_s=settings.deadline_s, metrics=self._metrics,
        )  # fmt: skip
        app: ASGIApp = build_app(self._service)
        if extension:
            app = extension.wrap(build_app(self._service), self._service)
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                app, lifespan="off", log_config=None, server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=_FLUSH_S,
            )
        )  # fmt: skip

    async def run_until_stopped(self, listener: socket.socket) -> None:
        """Serve from the first moment on, load meanwhile, and drain when told to stop."""
        self._loop = asyncio.get_running_loop()
        http = asyncio.create_task(self.serve([listener]))
        publisher = asyncio.create_task(self._publish())
        engine: Engine | None = None
        stop = asyncio.create_task(self._stop.wait())
        loading = _in_thread(self._load)
        try:
            await _first(loading, stop, http)
            if loading.done():
                engine = loading.result()
                self._service.serve(engine)
                _LOG.info("ready: %s serves %s", engine.name, self._settings.model)
                await _first(stop, http)
                await self._drain()
        finally:
            self.should_exit = True
            publisher.cancel()
            await http
            if engine is not None:
                await asyncio.to_thread(engine.close)
            if self._extension:
                await asyncio.to_thread(self._extension.close)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; called by signals."""
        if self._stop.is_set():
            self.should_exit = self.force_exit = True
        assert self._loop is not None  # noqa: S101  run() sets it before signals come here
        self._loop.call_soon_threadsafe(self._stop.set)

    def _load(self) -> Engine:
        s = self._settings
        if self._extension and (loaded := self._extension.load()):
            return loaded
        folder = fetch(s.weights, s.weights_sha256, s.state)
        engine = load_engine(
            s.engine, folder, slots=s.slots, context=s.context, dtype=s.dtype,
            quantization=s.quantization,
        )  # fmt: skip
        if self._extension:
            self._extension.attach(engine, folder)
        return engine

    async def _publish(self) -> None:
        s = self._settings
        if s.metric_namespace and s.fleet:
            publisher = Publisher(self._metrics, namespace=s.metric_namespace, fleet=s.fleet)
            await publisher.run()

    async def _drain(self) -> None:
        _LOG.info("draining: %d requests in flight", self._service.admission.in_flight)
        cut = await self._service.drain(self._settings.drain_s)
        if cut:
            _LOG.warning("%d requests were cut after %g s", cut, self._settings.drain_s)


def _listen(settings: Settings) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"port {settings.port} cannot be had: {error.strerror}; set ISOMORPH_PORT to another"
        ) from error
    return listener


async def _first(*tasks: asyncio.Future[Any]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _in_thread(work: Callable[[], Engine]) -> asyncio.Future[Engine]:
    """Run `work` in a daemon thread: SIGTERM while weights load must not wait for them."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Engine] = loop.create_future()

    def finish(engine: Engine | None, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif engine is not None:
            future.set_result(engine)

    def run() -> None:
        try:
            outcome: tuple[Engine | None, Exception | None] = (work(), None)
        except Exception as error:
            outcome = (None, error)
        loop.call_soon_threadsafe(finish, *outcome)

    threading.Thread(target=run, name="load", daemon=True).start()
    return future
