"""The endpoints. One task writes each answer, and is cancelled when its client goes away."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from model_code.common.engine import Piece
from model_code.common.server import answers
from model_code.common.server.admission import DrainingError
from model_code.common.server.answers import Answer
from model_code.common.server.problems import problem_of
from model_code.common.server.requests import (
    MAX_BODY_BYTES,
    Ask,
    InvalidRequestError,
    parse_chat,
    parse_completion,
)
from model_code.common.server.service import Service, Trace

_LOG = logging.getLogger(__name__)
_CLIENT_GONE = 499
_RETRY_S = "1"
_LAST_WORDS_S = 5.0  # how long a slow client may take to read that its deadline passed


class ClientGoneError(Exception):
    """The client closed the connection before the answer was complete."""


def build_app(service: Service) -> Starlette:
    """Return the ASGI app that serves `service`."""

    async def health(_: Request) -> Response:
        status = service.status
        return _json(answers.json_bytes({"status": status}), 200 if status == "ok" else 503)

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(_: Request) -> Response:
        card = {"id": service.model, "object": "model", "created": service.created,
                "owned_by": "isomorph"}  # fmt: skip
        return _json(answers.json_bytes({"object": "list", "data": [card]}), 200)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/completions", Generate(service, parse_completion), methods=["POST"]),
            Route("/v1/chat/completions", Generate(service, parse_chat), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _http_error},
    )


class Generate:
    """The endpoint that answers a prompt or a chat."""

    def __init__(self, service: Service, parse: Callable[[bytes], Ask]) -> None:
        self._service, self._parse = service, parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and count and log how it ended."""
        request = Request(scope, receive)
        sender = _Sender(send)
        trace = Trace(arrived=time.monotonic())
        try:
            async with asyncio.timeout(self._service.deadline_s):
                body = await _body(request)
                work = self._answer(self._parse(body), trace, sender)
                await _unless_stopped(work, receive, self._service.cut)
        except (ClientGoneError, ClientDisconnect):
            sender.code = _CLIENT_GONE
        except Exception as problem:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._fail(problem, trace, sender)
        self._service.metrics.answered(sender.code)
        _LOG.info(
            "%s %d queued=%.3fs first_token=%s took=%.3fs tokens_in=%d tokens_out=%d",
            request.url.path, sender.code, trace.queued_s,
            "-" if trace.first_token_s is None else f"{trace.first_token_s:.3f}s",
            time.monotonic() - trace.arrived, trace.prompt_tokens, trace.completion_tokens,
        )  # fmt: skip

    async def _answer(self, ask: Ask, trace: Trace, sender: "_Sender") -> None:
        answer = Answer(ask, self._service.model)
        async with aclosing(self._service.generate(ask, trace)) as pieces:
            if ask.stream:
                await _stream(answer, ask, pieces, sender)
            else:
                texts = []
                async for piece in pieces:
                    texts.append(piece.text)
                    last = piece
                await sender.respond(200, answer.whole("".join(texts), last))

    async def _fail(self, problem: Exception, trace: Trace, sender: "_Sender") -> None:
        """Say what went wrong: as the response, or inside of the stream that has begun."""
        service = self._service
        code, body = problem_of(
            problem, admission=service.admission, deadline_s=service.deadline_s,
            tokens=trace.completion_tokens,
        )  # fmt: skip
        if not sender.started:
            headers = {"retry-after": _RETRY_S} if code in (429, 503) else {}
            await sender.respond(code, body, headers)
            return
        sender.code = code
        await sender.event(b"data: " + body + b"\n\n")
        await sender.event(answers.DONE)
        await sender.end()


async def _stream(
    answer: Answer, ask: Ask, pieces: AsyncGenerator[Piece, None], sender: "_Sender"
) -> None:
    """Send server-sent events; the status waits for the first piece, so that errors have theirs."""
    async for piece in pieces:
        if piece.text or piece.finish:
            await sender.event(answer.chunk(piece.text, piece.finish))
        last = piece
    if ask.include_usage:
        await sender.event(answer.usage_chunk(last))
    await sender.event(answers.DONE)
    await sender.end()


class _Sender:
    """Sends one response, and remembers how far it got."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.code = 500
        self.started = False

    async def respond(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a whole response."""
        await self._start(code, {"content-length": str(len(body)), **(headers or {})}, "json")
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, event: bytes) -> None:
        """Send an event of a stream, and the response's head before the first."""
        if not self.started:
            await self._start(200, {"cache-control": "no-store"}, "event-stream")
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end(self) -> None:
        """End a stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, code: int, headers: dict[str, str], kind: str) -> None:
        self.started, self.code = True, code
        media = "application/json" if kind == "json" else "text/event-stream; charset=utf-8"
        raw = [(b"content-type", media.encode())]
        raw += [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": code, "headers": raw})


async def _body(request: Request) -> bytes:
    declared = request.headers.get("content-length", "")
    body = bytearray()
    if not declared.isdigit() or int(declared) <= MAX_BODY_BYTES:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                break
        else:
            return bytes(body)
    raise InvalidRequestError(
        f"the body is larger than {MAX_BODY_BYTES:,} bytes, the most that is taken", status=413
    )


async def _unless_stopped(
    work: Coroutine[Any, Any, None], receive: Receive, cut: asyncio.Event
) -> None:
    """Run `work`, but cancel it when the client closes the connection, or the server must end."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise ClientGoneError

    async def ended() -> None:
        await cut.wait()
        raise DrainingError

    tasks = [asyncio.create_task(each) for each in (work, gone(), ended())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        (tasks[0] if tasks[0] in done else done.pop()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _http_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)  # noqa: S101  the handler's registration
    say = f"{request.method} {request.url.path}: {problem.detail}"
    return _json(answers.error(say, kind="invalid_request_error"), problem.status_code)


def _json(body: bytes, code: int) -> Response:
    return Response(body, code, media_type="application/json")
