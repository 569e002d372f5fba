"""A service in a thread of its own, for model servers that call functions: SageMaker's images."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing

from model_code.common.engine import Engine
from model_code.common.server.answers import DONE, Answer
from model_code.common.server.plain_metrics import PlainMetrics
from model_code.common.server.problems import problem_of
from model_code.common.server.publisher import Publisher
from model_code.common.server.requests import Ask
from model_code.common.server.service import Service, Trace
from model_code.common.server.settings import Settings
from model_code.moe.experts.metrics import ExpertMetrics
from model_code.moe.serve.loading import load
from model_code.moe.serve.settings import ExpertSettings

Emit = Callable[[bytes], None]


class Hosted:
    """An engine that serves, and the loop that its requests run in. Any thread may ask it."""

    def __init__(self, settings: Settings, engine: Engine, metrics: PlainMetrics) -> None:
        self._settings = settings
        self._service = Service(
            model=settings.model, slots=settings.slots, queue=settings.queue,
            deadline_s=settings.deadline_s, metrics=metrics,
        )  # fmt: skip
        self._service.serve(engine)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="hosted", daemon=True).start()
        if settings.metric_namespace and settings.fleet:
            publisher = Publisher(
                metrics, namespace=settings.metric_namespace, fleet=settings.fleet
            )
            asyncio.run_coroutine_threadsafe(publisher.run(), self._loop)

    @classmethod
    def start(cls, env: Mapping[str, str]) -> "Hosted":
        """Load what the environment says.

        Raises:
            UserError: A setting is wrong, or the weights are.
        """
        settings = Settings.from_environment(env)
        experts = ExpertSettings.from_environment(env)
        experts.check(settings)
        metrics = PlainMetrics()
        metrics.more = counts = ExpertMetrics()
        engine, _ = load(settings, experts, counts)
        return cls(settings, engine, metrics)

    def answer(self, ask: Ask, emit: Emit | None = None) -> tuple[int, bytes]:
        """Return the status and the body of an answer; with `emit` its last part only."""
        return asyncio.run_coroutine_threadsafe(self._answer(ask, emit), self._loop).result()

    async def _answer(self, ask: Ask, emit: Emit | None) -> tuple[int, bytes]:
        trace = Trace(arrived=time.monotonic())
        sent: list[bytes] = []
        try:
            async with asyncio.timeout(self._service.deadline_s):
                return 200, await self._written(ask, trace, emit, sent)
        except Exception as problem:
            service = self._service
            status, body = problem_of(
                problem, admission=service.admission, deadline_s=service.deadline_s,
                tokens=trace.completion_tokens,
            )  # fmt: skip
            if not sent:
                return status, body
            said = b"data: " + body + b"\n\n" + DONE  # the stream has begun: it ends with why
            return 200, said if emit else b"".join(sent) + said

    async def _written(self, ask: Ask, trace: Trace, emit: Emit | None, sent: list[bytes]) -> bytes:
        answer, texts = Answer(ask, self._service.model), []
        async with aclosing(self._service.generate(ask, trace)) as pieces:
            async for piece in pieces:
                texts.append(piece.text)
                last = piece
                if ask.stream and (piece.text or piece.finish):
                    sent.append(answer.chunk(piece.text, piece.finish))
                    if emit:
                        await asyncio.to_thread(emit, sent[-1])
        if not ask.stream:
            return answer.whole("".join(texts), last)
        end = (answer.usage_chunk(last) if ask.include_usage else b"") + DONE
        return end if emit else b"".join(sent) + end
