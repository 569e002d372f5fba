"""Holds an answer about a changing stack back: the CDK CLI would ask again after five seconds."""

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import ministack.app
from ministack.services import cloudformation

_CLI = re.compile(r"\baws-cdk/\d")
_LONGEST_S = 60.0  # then the answer is that it is still changing
_PAUSE_S = 0.05


def hold_back_from_the_cli() -> None:
    """Let DescribeStacks wait for a stack that is changing, when the CDK CLI asks."""
    behind = ministack.app.SERVICE_HANDLERS["cloudformation"]

    async def handle(
        method: str, path: str, headers: Mapping[str, str], body: bytes, query: Mapping[str, object]
    ) -> Any:
        if _CLI.search(headers.get("user-agent", "")):
            asked = parse_qs(body.decode(errors="replace"))
            if asked.get("Action") == ["DescribeStacks"] and "StackName" in asked:
                await _settled(asked["StackName"][0])
        return await behind(method, path, headers, body, query)

    ministack.app.SERVICE_HANDLERS["cloudformation"] = handle


async def _settled(stack: str) -> None:
    """Return when a stack, by name or id, is in no operation."""
    deadline = time.monotonic() + _LONGEST_S
    while _changing(stack) and time.monotonic() < deadline:
        await asyncio.sleep(_PAUSE_S)


def _changing(stack: str) -> bool:
    """Return whether an operation is in progress; a change set under review is none."""
    found = [
        row
        for row in cloudformation._stacks.values()
        if stack in (row["StackName"], row["StackId"])
    ]
    status = [str(row["StackStatus"]) for row in found]
    return any(each.endswith("_IN_PROGRESS") and each != "REVIEW_IN_PROGRESS" for each in status)
