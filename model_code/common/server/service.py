"""One request from its arrival to its last piece: admission, engine, stop strings, figures."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

from model_code.common.chat import ChatTemplate
from model_code.common.engine import Engine, Piece
from model_code.common.server.admission import Admission
from model_code.common.server.asked import generation
from model_code.common.server.plain_metrics import ServiceMetrics
from model_code.common.server.problems import LoadingError
from model_code.common.server.requests import Ask
from model_code.common.server.stops import StopFilter

_POLL_S = 0.05
_CUT_S = 5.0  # for requests that were cut to say so


@dataclass
class Trace:
    """What the log says of a request: counts and times, never content."""

    arrived: float
    queued_s: float = 0.0
    first_token_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Service:
    """What the endpoints share.

    Args:
        deadline_s: How long a request may take, waiting included.
        metrics: What counts; left out, for Prometheus.
    """

    def __init__(
        self, *, model: str, slots: int, queue: int, deadline_s: float,
        metrics: ServiceMetrics | None = None,
    ) -> None:  # fmt: skip
        self.model, self.deadline_s = model, deadline_s
        if metrics is None:  # imported here, since SageMaker's images have no Prometheus
            from model_code.common.server.metrics import Metrics

            metrics = Metrics()
        self.metrics: ServiceMetrics = metrics
        self.admission = Admission(slots=slots, queue=queue, changed=self.metrics.level)
        self.created = int(time.time())
        self.cut = asyncio.Event()  # set when a drain has taken too long
        self._engine: Engine | None = None
        self._template = ChatTemplate()

    @property
    def status(self) -> Literal["loading", "ok", "draining"]:
        """What /health says."""
        if self.admission.draining:
            return "draining"
        return "loading" if self._engine is None else "ok"

    def serve(self, engine: Engine) -> None:
        """Take requests from now on, and give them to `engine`."""
        self._template = ChatTemplate(engine.chat_template)
        self.metrics.loaded(engine, self.model)
        self._engine = engine

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests, wait for the others, cut what is left and return how many."""
        self.admission.drain()
        await self._idle(timeout_s)
        left = self.admission.in_flight
        self.cut.set()
        await self._idle(_CUT_S)
        return left

    async def _idle(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while self.admission.in_flight and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)

    async def generate(self, ask: Ask, trace: Trace) -> AsyncGenerator[Piece, None]:
        """Yield the answer's pieces; close the generator to cancel the work."""
        if self._engine is None:
            raise LoadingError
        request = generation(
            ask,
            model=self.model,
            template=self._template,
            place="server",
            has_experts=getattr(self._engine, "has_experts", False),
        )
        async with self.admission.slot() as trace.queued_s:
            self.metrics.queued(trace.queued_s)
            async with (
                aclosing(self._engine.generate(request)) as pieces,
                aclosing(self._counted(pieces, trace)) as counted,
            ):
                async for piece in _until_stop(counted, ask.stops):
                    yield piece

    async def _counted(
        self, pieces: AsyncIterator[Piece], trace: Trace
    ) -> AsyncGenerator[Piece, None]:
        """Pass pieces on and keep the figures up to date."""
        held = 0  # tokens of this request in the cache
        try:
            async for piece in pieces:
                if piece.prompt_tokens > trace.prompt_tokens:
                    self.metrics.read(piece.prompt_tokens)
                    trace.prompt_tokens = piece.prompt_tokens
                if piece.completion_tokens and trace.first_token_s is None:
                    trace.first_token_s = time.monotonic() - trace.arrived
                    self.metrics.wrote_first_token(trace.first_token_s, piece.cached_tokens)
                self.metrics.wrote(piece.completion_tokens - trace.completion_tokens)
                trace.completion_tokens = piece.completion_tokens
                now = trace.prompt_tokens + trace.completion_tokens
                self.metrics.hold(held, now)
                held = now
                yield piece
        finally:
            self.metrics.hold(held, 0)


async def _until_stop(
    pieces: AsyncIterator[Piece], stops: Sequence[str]
) -> AsyncGenerator[Piece, None]:
    """Pass pieces on up to the first stop string."""
    stop = StopFilter(stops)
    async for piece in pieces:
        text = stop.feed(piece.text)
        if stop.stopped:
            yield replace(piece, text=text, finish="stop")
            return
        if piece.finish:
            text += stop.flush()
        yield replace(piece, text=text)
