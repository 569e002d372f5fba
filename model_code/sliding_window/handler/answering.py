"""One event from its arrival to the last byte of its answer, inside of the time that is left."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from model_code.common.chat import ChatError
from model_code.common.engine import Piece, PromptTooLongError
from model_code.common.server import answers
from model_code.common.server.requests import Ask, InvalidRequestError
from model_code.common.server.stops import StopFilter
from model_code.sliding_window.handler.events import Call, is_http, parse_event
from model_code.sliding_window.handler.figures import record
from model_code.sliding_window.handler.model import Model, NotReadyError

RESERVE_S = 0.5  # of the function's time, for sending what there is
_JSON = {"content-type": "application/json"}
_EVENTS = {"content-type": "text/event-stream", "cache-control": "no-store"}
_TIMEOUT = {"incomplete_details": {"reason": "timeout"}}

Remaining = Callable[[], float]  # seconds until Lambda ends the invocation


@dataclass
class Progress:
    """What is known of a request while it is worked on: counts and times, never content."""

    arrived: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    last: Piece = field(default_factory=lambda: Piece(text="", prompt_tokens=0,
                                                      completion_tokens=0))  # fmt: skip
    timed_out: bool = False


@dataclass(frozen=True)
class Response:
    """An answer. Where `http` is false, status and headers are for errors alone."""

    status: int
    headers: dict[str, str]
    body: AsyncIterator[bytes]
    http: bool


async def respond(model: Model, event: object, remaining: Remaining) -> Response:
    """Answer an event. Mistakes of the caller and of the deployment are answers too."""
    try:
        call = parse_event(event)
    except InvalidRequestError as error:
        return _refused(error, is_http(event))
    try:
        return await _answer(model, call, remaining)
    except InvalidRequestError as error:
        return _refused(error, call.http)
    except (PromptTooLongError, ChatError) as error:
        return _error(400, str(error), "invalid_request_error", call.http)
    except NotReadyError as error:
        return _error(503, str(error), "server_error", call.http)
    except TimeoutError:
        return _error(
            504,
            "the function's time ended before the first token: send a shorter prompt, or raise "
            "innovations.sliding_window.function.timeout_seconds",
            "timeout_error",
            call.http,
        )


async def _answer(model: Model, call: Call, remaining: Remaining) -> Response:
    progress, ask = Progress(), call.ask
    engine = model.engine()
    request = model.generation(ask)
    pieces = _in_time(engine.generate(request), remaining, progress)
    first = await anext(pieces)
    shown = _until_stop(_first_then_rest(first, pieces), ask)
    answer = answers.Answer(ask, model.settings.model)
    body = _stream(answer, ask, shown, progress) if ask.stream else _whole(answer, shown, progress)
    counted = _recorded(body, model, progress, engine.window)
    return Response(200, _EVENTS if ask.stream else _JSON, counted, call.http)


async def _in_time(
    pieces: AsyncGenerator[Piece, None], remaining: Remaining, progress: Progress
) -> AsyncGenerator[Piece, None]:
    """Pass pieces on until the function's time is nearly over."""
    async with aclosing(pieces):
        while True:
            try:
                async with asyncio.timeout(max(0.0, remaining() - RESERVE_S)):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if progress.first_token_s is None:
                    raise
                progress.timed_out = True
                return
            progress.last = piece
            if piece.completion_tokens and progress.first_token_s is None:
                progress.first_token_s = time.monotonic() - progress.arrived
            if piece.completion_tokens or piece.finish:  # not the mere progress of the prompt
                yield piece


async def _first_then_rest(
    first: Piece, rest: AsyncGenerator[Piece, None]
) -> AsyncGenerator[Piece, None]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _until_stop(pieces: AsyncGenerator[Piece, None], ask: Ask) -> AsyncGenerator[Piece, None]:
    stop = StopFilter(ask.stops)
    async with aclosing(pieces):
        async for piece in pieces:
            text = stop.feed(piece.text)
            if stop.stopped:
                yield replace(piece, text=text, finish="stop")
                return
            yield replace(piece, text=text + (stop.flush() if piece.finish else ""))


async def _whole(
    answer: answers.Answer, pieces: AsyncGenerator[Piece, None], progress: Progress
) -> AsyncGenerator[bytes, None]:
    text, last = "", progress.last
    async with aclosing(pieces):
        async for last in pieces:
            text += last.text
    if not progress.timed_out:
        yield answer.whole(text, last)
        return
    partial = json.loads(answer.whole(text, replace(last, finish="length")))
    yield answers.json_bytes(partial | _TIMEOUT)


async def _stream(
    answer: answers.Answer, ask: Ask, pieces: AsyncGenerator[Piece, None], progress: Progress
) -> AsyncGenerator[bytes, None]:
    last = progress.last
    async with aclosing(pieces):
        async for last in pieces:
            if last.text or last.finish:
                yield answer.chunk(last.text, last.finish)
    if progress.timed_out:
        chunk = json.loads(answer.chunk("", "length").removeprefix(b"data: "))
        yield b"data: " + answers.json_bytes(chunk | _TIMEOUT) + b"\n\n"
    if ask.include_usage:
        yield answer.usage_chunk(last)
    yield answers.DONE


async def _recorded(
    body: AsyncGenerator[bytes, None], model: Model, progress: Progress, window: int | None
) -> AsyncGenerator[bytes, None]:
    """Pass the body on; say what it took, also when its reader went away."""
    try:
        async with aclosing(body):
            async for part in body:
                yield part
    finally:
        last = progress.last
        record(
            model,
            first_token_s=progress.first_token_s or 0.0,
            seconds=time.monotonic() - progress.arrived,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            window=window,
            timed_out=progress.timed_out,
        )


def _refused(error: InvalidRequestError, http: bool) -> Response:
    return _error(error.status, str(error), "invalid_request_error", http, error.param)


def _error(status: int, message: str, kind: str, http: bool, param: str | None = None) -> Response:
    body = answers.error(message, kind=kind, param=param)
    if not http:  # who calls directly sees no status line
        body = answers.json_bytes({"statusCode": status, **json.loads(body)})
    return Response(status, _JSON, _once(body), http)


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def joined(response: Response) -> Any:
    """Return a response as a buffered function does: HTTP's envelope, or the object itself."""
    body = b"".join([part async for part in response.body])
    if not response.http:
        return json.loads(body)
    return {
        "statusCode": response.status,
        "headers": response.headers,
        "body": body.decode(),
        "isBase64Encoded": False,
    }
