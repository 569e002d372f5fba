"""Reads the body of a request. It is hostile until it has passed through here."""

import json
import math
import secrets
from dataclasses import dataclass
from typing import Any

from model_code.common.chat import Message

MAX_BODY_BYTES = 1 << 20
_JSON = "application/json"
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_MESSAGES = 1024
_MAX_SHOWN = 60
COMPLETION_DEFAULT_TOKENS = 16  # what OpenAI's /v1/completions takes when max_tokens is left out
_SEEDS = 2**32 - 1  # llama.cpp's seeds; 2**32 - 1 itself means "random" there

# OpenAI's fields that we do not implement, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "store": (False,),
}
_IGNORED = {"user", "metadata"}
_COMMON = {
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "experts",
}
_COMPLETION = _COMMON | {"prompt"}
_CHAT = _COMMON | {"messages", "max_completion_tokens"}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class InvalidRequestError(Exception):
    """The client's mistake, in one sentence.

    Args:
        param: The field that is wrong, as OpenAI's errors name it.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request that has been checked. Exactly one of `prompt` and `messages` is given."""

    model: str | None
    prompt: str | None
    messages: tuple[Message, ...]
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    experts: bool = False

    @property
    def chat(self) -> bool:
        """Whether the answer takes the form of a chat."""
        return self.prompt is None


def parse_completion(body: bytes) -> Ask:
    """Check the body of POST /v1/completions."""
    fields = _fields(body, _COMPLETION)
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise _wrong("prompt", fields.get("prompt"), "a string, or a list of one string")
    if not prompt:
        raise InvalidRequestError("'prompt' is empty", param="prompt")
    max_tokens = _whole(fields, "max_tokens", 1, 2**31 - 1)
    return _ask(fields, _text(prompt, "prompt"), (), max_tokens or COMPLETION_DEFAULT_TOKENS)


def parse_chat(body: bytes) -> Ask:
    """Check the body of POST /v1/chat/completions."""
    fields = _fields(body, _CHAT)
    given = fields.get("messages")
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_MESSAGES:
        raise _wrong("messages", given, f"a list of 1 to {MAX_MESSAGES} messages")
    messages = tuple(_message(item, f"messages[{index}]") for index, item in enumerate(given))
    limits = [
        _whole(fields, name, 1, 2**31 - 1) for name in ("max_completion_tokens", "max_tokens")
    ]
    return _ask(fields, None, messages, limits[0] or limits[1])


def parse_invocation(body: bytes) -> Ask:
    """Check the body of SageMaker's POST /invocations: a chat if it has messages, or a prompt."""
    return parse_chat(body) if "messages" in fields_of(body) else parse_completion(body)


def check_json(given: str | None) -> None:
    """Refuse a body of another type than JSON."""
    kind, _, rest = (given or "").partition(";")
    charset = rest.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != _JSON or charset not in ("", "utf-8", "utf8"):
        raise InvalidRequestError(
            f"the content type is {(given or 'missing')[:60]!r}; allowed: {_JSON}, in UTF-8",
            status=415,
        )


def _ask(
    fields: dict[str, Any], prompt: str | None, messages: tuple[Message, ...], limit: int | None
) -> Ask:
    seed = _whole(fields, "seed", -(2**63), 2**63 - 1)
    return Ask(
        model=_model(fields),
        prompt=prompt,
        messages=messages,
        max_tokens=limit,
        temperature=_number(fields, "temperature", 0.0, 2.0),
        top_p=_number(fields, "top_p", 0.0, 1.0, above=True),
        top_k=_whole(fields, "top_k", 0, 2**31 - 1) or 0,
        min_p=_number(fields, "min_p", 0.0, 1.0, default=0.0),
        repetition_penalty=_number(fields, "repetition_penalty", 0.0, 10.0, above=True),
        seed=secrets.randbelow(_SEEDS) if seed is None else seed % _SEEDS,
        stops=_stops(fields.get("stop")),
        stream=_flag(fields, "stream"),
        include_usage=_include_usage(fields.get("stream_options")),
        experts=_flag(fields, "experts"),
    )


def fields_of(body: bytes) -> dict[str, Any]:
    """Return the fields of a JSON object, whatever they are.

    Raises:
        InvalidRequestError: The body is no JSON object.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not UTF-8: byte {error.start} is wrong") from error
    except RecursionError as error:
        raise InvalidRequestError("the body is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"the body must be a JSON object, got {_shown(value)}")
    return value


def _fields(body: bytes, known: set[str]) -> dict[str, Any]:
    fields = {}
    for name, given in fields_of(body).items():
        if name in _IGNORED or given is None:
            continue
        if name in known:
            fields[name] = given
        elif name not in _NEUTRAL:
            raise InvalidRequestError(
                f"unknown field {_shown(name)}; known: {', '.join(sorted(known))}",
                param=_shown(name).strip("'\""),
            )
        elif not _is_neutral(given, _NEUTRAL[name]):
            raise InvalidRequestError(
                f"'{name}' is not supported: leave it out or send {_NEUTRAL[name][0]!r}", param=name
            )
    return fields


def _is_neutral(given: Any, neutral: tuple[Any, ...]) -> bool:
    # True == 1 in Python: an n of true is not an n of 1.
    return any(given == value and isinstance(given, bool) == isinstance(value, bool)
               for value in neutral)  # fmt: skip


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool)) else type(value).__name__
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _wrong(name: str, given: object, allowed: str) -> InvalidRequestError:
    said = "is missing" if given is None else f"is {_shown(given)}"
    return InvalidRequestError(f"'{name}' {said}; it must be {allowed}", param=name)


def _text(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"'{name}' holds half of a surrogate pair, which is no text", param=name
        ) from error
    return value


def _whole(fields: dict[str, Any], name: str, low: int, high: int) -> int | None:
    given = fields.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
        raise _wrong(name, given, f"a whole number from {low} to {high}")
    return given


def _number(
    fields: dict[str, Any], name: str, low: float, high: float, *,
    above: bool = False, default: float = 1.0,
) -> float:  # fmt: skip
    """Return a number in [low, high], or (low, high] if it must lie above."""
    given = fields.get(name, default)
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not _finite(given):
        raise _wrong(name, given, f"a number from {low:g} to {high:g}")
    if not low <= given <= high or (above and given == low):
        allowed = f"above {low:g}, and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise _wrong(name, given, f"a number {allowed}")
    return float(given)


def _finite(given: float) -> bool:
    try:
        return math.isfinite(given)
    except OverflowError:  # an int too large for a float
        return False


def _flag(fields: dict[str, Any], name: str) -> bool:
    given = fields.get(name, False)
    if not isinstance(given, bool):
        raise _wrong(name, given, "true or false")
    return given


def _model(fields: dict[str, Any]) -> str | None:
    given = fields.get("model")
    if given is not None and not isinstance(given, str):
        raise _wrong("model", given, "a string")
    return given


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given
    if stops is None:
        return ()
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        count = f"a list of {len(stops)}" if isinstance(stops, list) else _shown(given)
        raise InvalidRequestError(
            f"'stop' is {count}; it must be a string, or a list of at most {MAX_STOPS}",
            param="stop",
        )
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise _wrong("stop", stop, f"of strings of 1 to {MAX_STOP_LENGTH} characters")
        _text(stop, "stop")
    return tuple(stops)


def _include_usage(given: Any) -> bool:
    if given is None:
        return False
    if not isinstance(given, dict) or set(given) - {"include_usage"}:
        raise _wrong("stream_options", given, 'an object such as {"include_usage": true}')
    return _flag(given, "include_usage")


def _message(given: Any, name: str) -> Message:
    if not isinstance(given, dict):
        raise _wrong(name, given, "an object with role and content")
    if unknown := set(given) - {"role", "content", "name"}:
        raise InvalidRequestError(
            f"unknown field {_shown(min(unknown))} in '{name}'; known: content, name, role",
            param=name,
        )
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{name}.role", role, f"one of {', '.join(_ROLES)}")
    content = given.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{name}.content") for part in content)
    if not isinstance(content, str):
        raise _wrong(f"{name}.content", content, "a string, or a list of text parts")
    return Message(_ROLES[role], _text(content, f"{name}.content"))  # type: ignore[arg-type]


def _part(given: Any, name: str) -> str:
    if not isinstance(given, dict) or given.get("type") != "text":
        raise _wrong(name, given, 'made of {"type": "text", "text": ...}')
    if not isinstance(text := given.get("text"), str):
        raise _wrong(f"{name}.text", text, "a string")
    return text
