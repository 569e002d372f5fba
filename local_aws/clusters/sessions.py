"""Session Manager on nodes of clusters: one command, and what it prints.

The real service and its plugin speak over a web socket; here the plugin (`plugin/`) asks for the
same StreamUrl with the same token over HTTP. Everything up to the plugin is as on AWS.
"""

import asyncio
import re
import secrets
import shlex
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from ministack.core.responses import get_account_id, get_region

from local_aws.clusters.node import Node
from local_aws.clusters.runner import Clusters
from local_aws.operations import Asked, RefusedError
from local_aws.settings import SESSIONS

DOCUMENT = "AWS-StartNonInteractiveCommand"
_TARGET = re.compile(r"sagemaker-cluster:([a-z0-9]{12})_([A-Za-z0-9-]+)-(i-[0-9a-f]{17})")

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Session:
    """A command that waits for the plugin which may see what it prints."""

    token: str
    node: Node
    command: tuple[str, ...]


class Sessions:
    """Starts sessions, and runs each one's command once.

    Args:
        endpoint: Of the embedded AWS.
        clusters: Whose nodes can be reached.
    """

    def __init__(self, endpoint: str, clusters: Clusters) -> None:
        self._endpoint, self._clusters = endpoint, clusters
        self._waiting: dict[str, Session] = {}

    def start(self, asked: Asked) -> dict[str, Any]:
        """Answer StartSession."""
        target, document = str(asked.get("Target")), asked.get("DocumentName")
        node = self._node(target)
        if document != DOCUMENT:
            raise RefusedError("InvalidDocument", f"document {document} is not played: {DOCUMENT}")
        given = asked.get("Parameters", {}).get("command", [])
        if len(given) != 1:
            raise RefusedError("InvalidParameters", "command must be given once")
        name = f"isomorph-{secrets.token_hex(8)}"
        session = Session(secrets.token_urlsafe(32), node, tuple(shlex.split(given[0])))
        self._waiting[name] = session
        return {
            "SessionId": name,
            "TokenValue": session.token,
            "StreamUrl": f"{self._endpoint}{SESSIONS}{name}",
        }

    def terminate(self, asked: Asked) -> dict[str, Any]:
        """Answer TerminateSession."""
        self._waiting.pop(str(asked.get("SessionId")), None)
        return {"SessionId": asked.get("SessionId")}

    def _node(self, target: str) -> Node:
        match = _TARGET.fullmatch(target)
        if match is None:
            raise RefusedError("TargetNotConnected", f"{target} is not connected.")
        identity, group, instance = match.groups()
        for cluster in self._clusters.all():
            mine = (cluster.account, cluster.region) == (str(get_account_id()), str(get_region()))
            for node in cluster.of(group) if mine and cluster.identity == identity else []:
                if node.instance_id == instance and node.machine.running:
                    return node
        raise RefusedError("TargetNotConnected", f"{target} is not connected.")

    async def stream(self, path: str, headers: Mapping[str, str], send: Send) -> None:
        """Run the command of a session, and send what it prints while it prints it."""
        session = self._waiting.pop(path.removeprefix(SESSIONS), None)
        told = headers.get("x-session-token", "")
        if session is None or not secrets.compare_digest(session.token, told):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"no such session"})
            return
        process = await asyncio.create_subprocess_exec(
            *session.command,
            cwd=session.node.machine.folder,
            env=session.node.machine.variables,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while process.stdout and (part := await process.stdout.read(1 << 16)):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await process.wait()
        await send({"type": "http.response.body", "body": b""})
