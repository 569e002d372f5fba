"""SageMaker's four functions: code/inference.py of a model.tar.gz.

model_fn, input_fn, predict_fn and output_fn are what AWS's serving images call (SageMaker Python
SDK, "Deploy PyTorch models", "Serve a PyTorch model"; sagemaker-inference 1.10.1 passes a context
to a function that takes one argument more). The engine batches what comes at the same time; an
image whose worker takes one request at a time gives it nothing to batch.

Only libraries that these images have are imported: torch, safetensors, tokenizers, boto3, numpy,
jinja2.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_code.common.server.answers import error as error_body
from model_code.common.server.requests import (
    MAX_BODY_BYTES,
    Ask,
    InvalidRequestError,
    check_json,
    parse_invocation,
)

if TYPE_CHECKING:
    from model_code.moe.serve.hosting import Hosted

    class _ToolkitError(Exception):
        def __init__(self, status_code: int, message: str, phrase: str) -> None: ...

else:
    try:  # the image's serving stack answers with the status of its own exceptions only
        from sagemaker_inference.errors import BaseInferenceToolkitError as _ToolkitError
    except ImportError:

        class _ToolkitError(Exception):
            """As the toolkit's: a status, a body, and a phrase for the status line."""

            def __init__(self, status_code: int, message: str, phrase: str) -> None:
                super().__init__(status_code, message, phrase)
                self.status_code, self.message, self.phrase = status_code, message, phrase


_LOG = logging.getLogger(__name__)
JSON, EVENTS = "application/json", "text/event-stream"
_ACCEPTED = (JSON, EVENTS, "*/*", "application/*", "text/*")


class RequestError(_ToolkitError):
    """What a client is told, with OpenAI's shape of errors as its body."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, body.decode(), "refused" if status < 500 else "failed")


@dataclass(frozen=True)
class Prediction:
    """An answer's bytes, and their type. What was streamed already is not in them."""

    body: bytes
    content_type: str


def model_fn(model_dir: str) -> "Hosted":
    """Load the weights in `model_dir`, or those that ISOMORPH_WEIGHTS names, and start to serve."""
    from model_code.moe.serve.hosting import Hosted

    logging.basicConfig(level=logging.INFO)
    return Hosted.start(environment(os.environ, model_dir))


def environment(env: Mapping[str, str], model_dir: str) -> dict[str, str]:
    """Return the server's variables, with what a container knows of itself."""
    given = {name: value for name, value in env.items() if value}
    return {
        "ISOMORPH_MODEL": Path(model_dir).resolve().name, "ISOMORPH_ENGINE": "native",
        "ISOMORPH_WEIGHTS": model_dir, "ISOMORPH_STATE": "/tmp/isomorph",  # noqa: S108  its own
        **given,
    }  # fmt: skip


def input_fn(request_body: bytes | str | dict[str, Any], content_type: str) -> Ask:
    """Check a request: that of /v1/completions, or with messages of /v1/chat/completions."""
    if isinstance(request_body, dict):  # some model servers parse JSON by themselves
        request_body = json.dumps(request_body)
    body = request_body.encode() if isinstance(request_body, str) else bytes(request_body)
    try:
        check_json(content_type)
        if len(body) > MAX_BODY_BYTES:
            raise InvalidRequestError(
                f"the body is larger than {MAX_BODY_BYTES:,} bytes, the most that is taken",
                status=413,
            )
        return parse_invocation(body)
    except InvalidRequestError as error:
        raise RequestError(error.status, _body_of(error)) from error


def predict_fn(data: Ask, model: "Hosted", context: object) -> Prediction:
    """Answer. What is to be streamed goes out piece by piece where the model server can do that."""
    status, body = model.answer(data, _emitter(context) if data.stream else None)
    if status != 200:
        raise RequestError(status, body)
    return Prediction(body, EVENTS if data.stream else JSON)


def output_fn(prediction: Prediction, accept: str) -> tuple[bytes, str]:
    """Return the answer and its type, whatever order of preference the client sent."""
    kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    if not any(kind in _ACCEPTED for kind in kinds):
        problem = InvalidRequestError(
            f"the client accepts {accept[:60]!r}; there are {JSON} and {EVENTS}", status=406
        )
        raise RequestError(problem.status, _body_of(problem))
    return prediction.body, prediction.content_type


def _emitter(context: object) -> Callable[[bytes], None] | None:
    """Return what sends a part of an answer ahead; None where the model server has no such thing.

    TorchServe has: ts.handler_utils.utils.send_intermediate_predict_response.
    """
    try:
        send: Any = import_module("ts.handler_utils.utils").send_intermediate_predict_response
    except ImportError:
        return None
    requests = getattr(context, "request_ids", None)
    if requests is None:
        return None
    return lambda part: send([part.decode()], requests, "Intermediate", 200, context)


def _body_of(problem: InvalidRequestError) -> bytes:
    return error_body(str(problem), kind="invalid_request_error", param=problem.param)
