"""One request to a fleet, through its load balancer."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from isomorph.environments import Environment
from isomorph.errors import UserError

POOL_HEADER = "x-isomorph-pool"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said, and how long it took from the caller's side."""

    text: str
    engine: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    pool: str = ""
    experts: dict[str, Any] | None = None

    @property
    def tokens_per_second(self) -> float:
        """Return the answer's tokens over the whole request's time, prefill included."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, object]:
        """Return the fields and the rate, for JSON; pool and experts where there are any."""
        fields = {**asdict(self), "tokens_per_second": round(self.tokens_per_second, 2)}
        unset = {name for name in ("pool", "experts") if not fields[name]}
        return {name: value for name, value in fields.items() if name not in unset}


def body_of(prompt: str, *, max_tokens: int, chat: bool, experts: bool = False) -> bytes:
    """Return the JSON of a request that is decoded greedily."""
    body: dict[str, object] = {"max_tokens": max_tokens, "temperature": 0}
    if chat:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    if experts:
        body["experts"] = True
    return json.dumps(body).encode()


def answer_of(
    said: Mapping[str, Any], *, engine: str, chat: bool, seconds: float, pool: str = ""
) -> Answer:
    """Return what a completion's JSON says."""
    choice, usage = said["choices"][0], said["usage"]
    return Answer(
        text=choice["message"]["content"] if chat else choice["text"],
        engine=engine,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        seconds=round(seconds, 4),
        pool=pool,
        experts=usage.get("experts"),
    )


def request_to(environment: Environment, endpoint: str, path: str) -> urllib.request.Request:
    """Return a request for `path` at an endpoint that the stack put out.

    The embedded AWS has no DNS: the load balancer's name goes into the Host header there, and the
    connection to the emulator's own address.
    """
    base = urlsplit(endpoint)
    if base.scheme not in {"http", "https"} or not base.hostname:
        raise UserError(f"the stack's output Endpoint is {endpoint!r}, which is no http(s) URL")
    if not environment.embedded:
        return urllib.request.Request(f"{endpoint.rstrip('/')}{path}")  # noqa: S310
    request = urllib.request.Request(environment.variables["AWS_ENDPOINT_URL"] + path)  # noqa: S310
    request.add_header("Host", base.hostname)
    return request


def ask(
    environment: Environment,
    slug: str,
    prompt: str,
    *,
    max_tokens: int,
    chat: bool = False,
    timeout: float = 120,
    pool: str | None = None,
) -> Answer:
    """Send `prompt` to a deployed fleet and return its answer, decoded greedily.

    Args:
        environment: Where it is.
        slug: Its stack.
        prompt: What it continues.
        max_tokens: Of the answer.
        chat: As a conversation instead of a completion.
        timeout: Seconds.
        pool: Which of several pools; they tell which experts worked.

    Raises:
        UserError: the stack or its weights are missing, or the fleet refuses or does not answer.
    """
    outputs = environment.outputs(slug)
    if outputs.get("Weights", "").startswith("none"):
        raise UserError(f"{environment.stack(slug)} has no weights: {outputs['Weights']}")
    body = body_of(prompt, max_tokens=max_tokens, chat=chat, experts=pool is not None)
    path = "/v1/chat/completions" if chat else "/v1/completions"
    request = request_to(environment, outputs["Endpoint"], path)
    request.add_header("Content-Type", "application/json")
    if pool:
        request.add_header(POOL_HEADER, pool)
    start = time.monotonic()
    try:
        with urllib.request.urlopen(request, body, timeout) as response:  # noqa: S310
            answer, served_by = json.load(response), response.headers.get(POOL_HEADER, "")
    except urllib.error.HTTPError as error:
        raise UserError(f"{slug} answered {error.code}: {said(error.read())}") from None
    except OSError as error:
        where = urlsplit(outputs["Endpoint"]).hostname
        hint = "" if environment.embedded else "; it is internal: ask from inside the VPC"
        raise UserError(f"{slug} does not answer at {where}: {error}{hint}") from None
    seconds = time.monotonic() - start
    return answer_of(
        answer, engine=outputs.get("Engine", ""), chat=chat, seconds=seconds, pool=served_by
    )


def said(body: bytes) -> str:
    """Return the message of an error's body, on one line."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.decode(errors="replace").split())[:200] or "nothing"
