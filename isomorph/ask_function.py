"""One request to a Lambda function, through its URL, signed as every caller's must be."""

import json
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from isomorph.ask import Answer, answer_of, body_of, said
from isomorph.environments import Environment
from isomorph.errors import UserError


def ask_function(
    environment: Environment,
    slug: str,
    prompt: str,
    *,
    max_tokens: int,
    chat: bool = False,
    timeout: float = 180,
) -> Answer:
    """Send `prompt` to a deployed function and return its answer, decoded greedily.

    Raises:
        UserError: there is no function, it has no weights, or it refuses or does not answer.
    """
    outputs = environment.outputs(slug)
    if "FunctionUrl" not in outputs:
        raise UserError(f"{environment.stack(slug)} has no function; `--on fleet` asks its fleet")
    body = body_of(prompt, max_tokens=max_tokens, chat=chat)
    path = "/v1/chat/completions" if chat else "/v1/completions"
    request = signed(environment, outputs["FunctionUrl"], path, body)
    start = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise UserError(f"{slug}'s function answered {error.code}: {said(error.read())}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{slug}'s function does not answer: {error}") from None
    seconds = time.monotonic() - start
    return answer_of(answer, engine="llama.cpp in Lambda", chat=chat, seconds=seconds)


def signed(environment: Environment, url: str, path: str, body: bytes) -> urllib.request.Request:
    """Return a POST to a function URL with a signature of the caller's own credentials.

    The embedded AWS has no DNS: the URL's name goes into the Host header there.

    Raises:
        UserError: the output is no URL, or there are no credentials to sign with.
    """
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest

    host = urlsplit(url).hostname
    if not host:
        raise UserError(f"the stack's output FunctionUrl is {url!r}, which is no http(s) URL")
    base = environment.variables["AWS_ENDPOINT_URL"] if environment.embedded else f"https://{host}"
    credentials = environment.session.get_credentials()
    if credentials is None:
        raise UserError("no AWS credentials: a function URL takes only signed requests")
    headers = {"Host": host, "Content-Type": "application/json"}
    request = AWSRequest("POST", base + path, headers=headers, data=body)
    SigV4Auth(credentials, "lambda", environment.config.region).add_auth(request)
    return urllib.request.Request(base + path, body, dict(request.headers), method="POST")  # noqa: S310
