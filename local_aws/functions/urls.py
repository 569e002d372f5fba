"""Function URLs whose answers are streamed: bytes go out as the function writes them."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import ministack.app
from ministack.core.responses import set_request_account_id, set_request_region
from ministack.services import lambda_svc

from local_aws.functions.invocation import MAX_PAYLOAD_BYTES, Failure, Head, Invocation
from local_aws.functions.runner import FunctionRunner

_HOST = re.compile(r"([a-z0-9]{32})\.lambda-url\.[a-z0-9-]+\.")
_PRELUDE = "application/vnd.awslambda.http-integration-response"
_END_OF_PRELUDE = bytes(8)
_BROKEN = (502, {"content-type": "application/json"}, b'{"message":"Internal Server Error"}')

Answer = tuple[int, dict[str, str], bytes]


class FunctionUrls:
    """Answers for function URLs with the invoke mode RESPONSE_STREAM."""

    def __init__(self, runner: FunctionRunner) -> None:
        self._runner = runner

    def resolve(self, host: str) -> tuple[Any, ...] | None:
        """Return the control plane's record of a streaming function URL with that host name."""
        match = _HOST.match(host.lower())
        found = lambda_svc.resolve_function_url(match.group(1)) if match else None
        if found is None or found[4].get("InvokeMode") != "RESPONSE_STREAM":
            return None  # buffered ones are the control plane's own
        return (match.group(1) if match else "", *found)

    async def answer(self, record: tuple[Any, ...], scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        headers = {name.decode(): text.decode("latin-1") for name, text in scope["headers"]}
        body = await ministack.app._read_request_body(receive, scope["method"], headers)
        refused = _refusal(record[5], headers, scope, body)
        if refused:
            await _send_whole(send, *refused)
            return
        url_id, account, region, name, qualifier = record[:5]
        set_request_account_id(account)
        set_request_region(region)
        reference = f"{name}:{qualifier}" if qualifier else name
        function, config, _ = lambda_svc._get_func_record_for_ref_in_scope(
            reference, account_id=account, region=region
        )
        if function is None or config is None:
            await _send_whole(send, 404, {}, b'{"Message":"Not Found"}')
            return
        slot, _ = lambda_svc._acquire_execution_slot(function, config)
        if slot is None:
            await _send_whole(send, 429, {}, b'{"Message":"Rate Exceeded."}')
            return
        event = lambda_svc._build_function_url_event(
            url_id, account, region, scope["method"], scope["path"], headers, body,
            parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True),
        )  # fmt: skip
        try:
            invocation = self._runner.begin(function, config, event)
            await _stream(invocation, send)
        finally:
            lambda_svc._release_execution_slot(slot)


def _refusal(url: Any, headers: dict[str, str], scope: Any, body: bytes) -> Answer | None:
    """Return the answer to what Lambda lets no function see."""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    if url.get("AuthType") == "AWS_IAM" and not lambda_svc._function_url_is_signed(headers, query):
        return 403, {"x-amzn-errortype": "AccessDeniedException"}, b'{"Message":"Forbidden"}'
    if len(body) > MAX_PAYLOAD_BYTES:
        return 413, {}, b'{"Message":"Request Entity Too Large"}'
    return None


async def _stream(invocation: Invocation, send: Any) -> None:
    """Pass the parts on. A client that goes away changes nothing for the function, as on AWS."""
    parts = invocation.read()
    status, headers, rest = await asyncio.to_thread(_beginning, parts)
    gone = not await _try(send, {
        "type": "http.response.start",
        "status": status,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    })  # fmt: skip
    gone = gone or not await _try(send, _part(rest))
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        if isinstance(part, bytes) and not gone:
            gone = not await _try(send, _part(part))
    if not gone:
        await _try(send, {"type": "http.response.body", "body": b"", "more_body": False})


async def _try(send: Any, message: dict[str, Any]) -> bool:
    try:
        await send(message)
    except (OSError, RuntimeError):
        return False
    return True


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _beginning(parts: Iterator[Head | bytes | Failure]) -> Answer:
    """Read up to the end of the prelude; return status, headers and what came behind it."""
    head = next(parts, None)
    if not isinstance(head, Head):
        return _BROKEN
    if head.content_type != _PRELUDE:
        return 200, {"content-type": head.content_type}, b""
    data = b""
    for part in parts:
        if isinstance(part, Failure | Head):
            return _BROKEN
        data += part
        before, separator, after = data.partition(_END_OF_PRELUDE)
        if separator:
            try:
                said = json.loads(before)
                headers = {str(k): str(v) for k, v in (said.get("headers") or {}).items()}
                return int(said.get("statusCode", 200)), headers, after
            except (ValueError, AttributeError, TypeError):
                return _BROKEN
    return _BROKEN


async def _send_whole(send: Any, status: int, headers: dict[str, str], body: bytes) -> None:
    await ministack.app._send_response(
        send, status, {"Content-Type": "application/json", **headers}, body
    )
