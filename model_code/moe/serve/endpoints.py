"""The endpoints of SageMaker's container contract, and the header that names a pool.

GET /ping answers 200 when the container is healthy; POST /invocations takes a request (Amazon
SageMaker's developer guide, "How containers serve requests").
"""

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_code.common.server import answers
from model_code.common.server.app import Generate
from model_code.common.server.requests import (
    InvalidRequestError,
    check_json,
    parse_invocation,
)
from model_code.common.server.service import Service
from model_code.moe.experts.metrics import ExpertMetrics
from model_code.moe.route import POOL_HEADER

JSON = "application/json"


def add_sagemaker(app: Starlette, service: Service) -> None:
    """Add /ping and /invocations to the server's endpoints."""

    async def ping(_: Request) -> Response:
        status = service.status
        body = answers.json_bytes({"status": status})
        return Response(body, 200 if status == "ok" else 503, media_type=JSON)

    app.router.routes += [
        Route("/ping", ping),
        Route("/invocations", _Invocations(service), methods=["POST"]),
    ]


class _Invocations:
    """Looks at the type of the body before anything is read of it."""

    def __init__(self, service: Service) -> None:
        self._generate = Generate(service, parse_invocation)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            check_json(Headers(scope=scope).get("content-type"))
        except InvalidRequestError as error:
            await _refusal(error)(scope, receive, send)
            return
        await self._generate(scope, receive, send)


class Pools:
    """Says which pool answers, and refuses names of pools that there are not.

    A load balancer sends a request to the pool that its header names, and what names an unknown one
    to any: here it ends. A request for another pool that lands here is answered, and counted.
    """

    def __init__(
        self, app: ASGIApp, pool: str, pools: Sequence[str], metrics: ExpertMetrics
    ) -> None:
        self._app, self._pool, self._pools, self._metrics = app, pool, pools, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not self._pools:
            await self._app(scope, receive, send)
            return
        name = Headers(scope=scope).get(POOL_HEADER, "")
        own = (POOL_HEADER.encode(), self._pool.encode())

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], own]
            await send(message)

        if name and name not in self._pools:
            error = InvalidRequestError(
                f"unknown pool {name[:40]!r}; pools: {', '.join(self._pools)}", status=404
            )
            await _refusal(error)(scope, receive, named)
            return
        if name and name != self._pool:
            self._metrics.add("PoolStrays", 1)
        await self._app(scope, receive, named)


def _refusal(error: InvalidRequestError) -> Response:
    body: Any = answers.error(str(error), kind="invalid_request_error")
    return Response(body, error.status, media_type=JSON)
