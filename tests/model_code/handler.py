"""An engine that writes what a test tells it, at the pace that a test tells it."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from model_code.common.engine import Generation, Piece
from model_code.sliding_window.handler.model import Model, Settings


class Scripted:
    name, slots, context, kv_bytes_per_token, chat_template = "scripted", 1, 64, 1, None
    window: int | None = 8

    def __init__(self, words: list[str], *, pause: float = 0, error: Exception | None = None):
        self.words, self.pause, self.error = words, pause, error
        self.written = 0
        self.closed = False

    async def generate(self, request: Generation) -> AsyncGenerator[Piece, None]:
        if self.error:
            raise self.error
        try:
            for count, word in enumerate(self.words, start=1):
                await asyncio.sleep(self.pause)
                self.written = count
                last = count == len(self.words)
                yield Piece(
                    text=word,
                    prompt_tokens=3,
                    completion_tokens=count,
                    finish="length" if last else None,
                )
        finally:
            self.closed = True


def model(engine: Scripted | None = None, **settings: Any) -> Model:
    given = {"model": "tiny", "weights": "none", "context": 64, "namespace": "N", "memory_mib": 512}
    made = Model(Settings(**{**given, **settings}))
    made._engine = engine  # type: ignore[assignment]
    return made
