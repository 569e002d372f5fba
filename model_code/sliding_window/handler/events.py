"""What Lambda hands to a function: a function URL's, API Gateway's or a caller's own event."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from model_code.common.server.requests import (
    MAX_BODY_BYTES,
    Ask,
    InvalidRequestError,
    parse_chat,
    parse_completion,
)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_PARSERS = {COMPLETIONS: parse_completion, CHAT: parse_chat}
_KNOWN = (
    "a function URL's or HTTP API's event (version 2.0), a REST API's (httpMethod, path), or the "
    "request itself with prompt or messages"
)


@dataclass(frozen=True)
class Call:
    """A request that has been checked, and whether its answer takes the form of HTTP."""

    ask: Ask
    http: bool


def is_http(event: object) -> bool:
    """Tell whether an event came through HTTP: a bad one must be answered in that form too."""
    return isinstance(event, dict) and ("requestContext" in event or "httpMethod" in event)


def parse_event(event: object) -> Call:
    """Check an event. It is hostile until it has passed through here.

    Formats: payload 2.0 of function URLs and HTTP APIs, payload 1.0 of REST APIs (Lambda's
    developer guide, "Invoking Lambda function URLs" and "API Gateway"), or the request's body.

    Raises:
        InvalidRequestError: It is none of these, or not a request that the model can take.
    """
    if not isinstance(event, dict):
        raise InvalidRequestError(f"the event is {type(event).__name__}; allowed: {_KNOWN}")
    if is_http(event):
        method, path = _route(event)
        if path not in _PARSERS:
            raise InvalidRequestError(
                f"no such path {path[:100]!a}; allowed: {', '.join(_PARSERS)}", status=404
            )
        if method != "POST":
            raise InvalidRequestError(f"{method[:20]!a} is not allowed; use POST", status=405)
        return Call(_PARSERS[path](_body(event)), http=True)
    if "prompt" not in event and "messages" not in event:
        names = ", ".join(sorted(map(ascii, event))[:8]) or "nothing"
        raise InvalidRequestError(f"the event has {names}; allowed: {_KNOWN}")
    parse = parse_chat if "messages" in event else parse_completion
    return Call(parse(_limited(json.dumps(event).encode())), http=False)


def _route(event: dict[str, Any]) -> tuple[str, str]:
    """Return method and path, without the stage that an HTTP API puts in front."""
    context = event.get("requestContext")
    context = context if isinstance(context, dict) else {}
    if event.get("version") == "2.0":
        http = context.get("http")
        method = http.get("method") if isinstance(http, dict) else None
        path = event.get("rawPath")
        stage = context.get("stage")
        if isinstance(path, str) and isinstance(stage, str) and stage != "$default":
            path = path.removeprefix(f"/{stage}")
    else:
        method, path = event.get("httpMethod"), event.get("path")
    if not isinstance(method, str) or not isinstance(path, str):
        raise InvalidRequestError(f"the event has no method or no path; allowed: {_KNOWN}")
    return method, path


def _body(event: dict[str, Any]) -> bytes:
    body = event.get("body")
    if body is None:
        raise InvalidRequestError("the request has no body; it must be a JSON object")
    if not isinstance(body, str):
        raise InvalidRequestError(f"the event's body is {type(body).__name__}; it must be a string")
    if not event.get("isBase64Encoded"):
        return _limited(body.encode(errors="surrogatepass"))
    try:
        return _limited(base64.b64decode(body, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError("the event's body is not the base64 that it says") from error


def _limited(body: bytes) -> bytes:
    if len(body) > MAX_BODY_BYTES:
        raise InvalidRequestError(
            f"the body has {len(body):,} bytes; at most {MAX_BODY_BYTES:,} are taken", status=413
        )
    return body
