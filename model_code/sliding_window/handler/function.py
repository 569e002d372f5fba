"""The handler of the managed Python runtime, whose answers are buffered."""

import asyncio
import os
from typing import Any, Protocol

from model_code.sliding_window.handler.answering import joined, respond
from model_code.sliding_window.handler.model import Model, Settings


class Context(Protocol):
    """What the runtime interface client passes along, as far as it is used."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda ends the invocation."""
        ...


MODEL = Model(Settings.read(os.environ))  # loaded in Lambda's init phase, before any event
MODEL.warm()


def handle(event: object, context: Context) -> Any:
    """Answer one event.

    Raises:
        RuntimeError: A direct or asynchronous call met a failure that is not the caller's: Lambda
            reports it, and repeats what was asynchronous before it goes to the dead-letter queue.
    """
    return asyncio.run(_handle(event, context))


async def _handle(event: object, context: Context) -> Any:
    response = await respond(MODEL, event, lambda: context.get_remaining_time_in_millis() / 1000)
    answer = await joined(response)
    if not response.http and response.status >= 500:
        raise RuntimeError(answer["error"]["message"])
    return answer
