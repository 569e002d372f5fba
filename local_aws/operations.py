"""Operations of services that are answered here, in front of whoever has the service."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import ministack.app
from ministack.core.responses import error_response_json, json_response

Asked = dict[str, Any]
Operation = Callable[[Asked], dict[str, Any]]


class RefusedError(Exception):
    """An operation that AWS would refuse.

    Args:
        code: AWS's own, such as ValidationException.
        message: What was given, and what is allowed.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def answer(service: str, operations: Mapping[str, Operation]) -> None:
    """Answer some operations of a service of the JSON protocol, and pass the others on.

    Args:
        service: As the control plane calls it; it must have a handler already.
        operations: Name, such as DescribeCluster -> what returns its answer. It is called in a
            thread, for the account and region of the request.
    """
    behind = ministack.app.SERVICE_HANDLERS[service]

    async def handle(
        method: str, path: str, headers: Mapping[str, str], body: bytes, query: Mapping[str, object]
    ) -> Any:
        operation = operations.get(headers.get("x-amz-target", "").rpartition(".")[2])
        if operation is None:
            return await behind(method, path, headers, body, query)
        try:
            given: Asked = json.loads(body or b"{}")
            return json_response(await asyncio.to_thread(operation, given))
        except RefusedError as refused:
            return error_response_json(refused.code, str(refused), 400)

    ministack.app.SERVICE_HANDLERS[service] = handle
