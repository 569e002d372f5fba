"""The shapes of OpenAI's answers: whole, streamed, and errors."""

import json
import secrets
import time
from typing import Any

from model_code.common.engine import Piece, Visits
from model_code.common.server.requests import Ask

_EXPERTS_SHOWN = 4  # of a layer
DONE = b"data: [DONE]\n\n"


class Answer:
    """Writes one request's answer in the form that its endpoint promises."""

    def __init__(self, ask: Ask, model: str) -> None:
        self._ask = ask
        kind = "chat.completion" if ask.chat else "text_completion"
        streamed = ask.chat and ask.stream
        self._base = {
            "id": ("chatcmpl-" if ask.chat else "cmpl-") + secrets.token_hex(12),
            "object": f"{kind}.chunk" if streamed else kind,
            "created": int(time.time()),
            "model": model,
        }
        self._started = False

    def whole(self, text: str, last: Piece) -> bytes:
        """Return the answer to a request that does not stream."""
        if self._ask.chat:
            content: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        else:
            content = {"text": text}
        return json_bytes(
            self._base | {"choices": [self._choice(content, last.finish)], "usage": usage(last)}
        )

    def chunk(self, text: str, finish: str | None) -> bytes:
        """Return one event of a stream."""
        if not self._ask.chat:
            return _event(self._base | {"choices": [self._choice({"text": text}, finish)]})
        delta = {"content": text} if text else {}
        if not self._started:
            self._started = True
            delta = {"role": "assistant", "content": text}
        return _event(self._base | {"choices": [self._choice({"delta": delta}, finish)]})

    def usage_chunk(self, last: Piece) -> bytes:
        """Return the event that follows the last piece when the client asked for usage."""
        return _event(self._base | {"choices": [], "usage": usage(last)})

    @staticmethod
    def _choice(content: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish}


def usage(last: Piece) -> dict[str, Any]:
    """Return the count of tokens, as OpenAI names them."""
    counts: dict[str, Any] = {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }
    if last.cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": last.cached_tokens}
    if last.experts is not None:
        counts["experts"] = _experts(last.experts)
    return counts


def _experts(visits: Visits) -> dict[str, Any]:
    """Return the experts of each layer that worked most; not a field of OpenAI's."""
    layers = {
        str(layer): {
            str(expert): count
            for expert, count in sorted(counts.items(), key=lambda each: -each[1])[:_EXPERTS_SHOWN]
        }
        for layer, counts in sorted(visits.items())
    }
    return {"visits": sum(sum(counts.values()) for counts in visits.values()), "layers": layers}


def error(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """Return the body of an error."""
    return json_bytes({"error": {"message": message, "type": kind, "param": param, "code": code}})


def json_bytes(value: Any) -> bytes:
    """Return compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _event(value: Any) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"
