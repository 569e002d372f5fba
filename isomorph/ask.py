"""One request to a fleet, through its load balancer."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from isomorph.environments import Environment
from isomorph.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said, and how long it took from the caller's side."""

    text: str
    engine: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Return the answer's tokens over the whole request's time, prefill included."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, object]:
        """Return the fields and the rate, for JSON."""
        return {**asdict(self), "tokens_per_second": round(self.tokens_per_second, 2)}


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
) -> Answer:
    """Send `prompt` to a deployed fleet and return its answer, decoded greedily.

    Raises:
        UserError: the stack or its weights are missing, or the fleet refuses or does not answer.
    """
    outputs = environment.outputs(slug)
    if outputs.get("Weights", "").startswith("none"):
        raise UserError(f"{environment.stack(slug)} has no weights: {outputs['Weights']}")
    body: dict[str, object] = {"max_tokens": max_tokens, "temperature": 0}
    if chat:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    path = "/v1/chat/completions" if chat else "/v1/completions"
    request = request_to(environment, outputs["Endpoint"], path)
    request.add_header("Content-Type", "application/json")
    start = time.monotonic()
    try:
        with urllib.request.urlopen(request, json.dumps(body).encode(), timeout) as response:  # noqa: S310
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise UserError(f"{slug} answered {error.code}: {said(error.read())}") from None
    except OSError as error:
        where = urlsplit(outputs["Endpoint"]).hostname
        hint = "" if environment.embedded else "; it is internal: ask from inside the VPC"
        raise UserError(f"{slug} does not answer at {where}: {error}{hint}") from None
    seconds = time.monotonic() - start
    choice = answer["choices"][0]
    return Answer(
        text=choice["message"]["content"] if chat else choice["text"],
        engine=outputs.get("Engine", ""),
        prompt_tokens=answer["usage"]["prompt_tokens"],
        completion_tokens=answer["usage"]["completion_tokens"],
        seconds=round(seconds, 4),
    )


def said(body: bytes) -> str:
    """Return the message of an error's body, on one line."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.decode(errors="replace").split())[:200] or "nothing"
