"""The two requests that the vLLM engine makes, over a Unix socket."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h11

_HEALTH_S = 5.0
_LONGEST_LINE = 1 << 20


def answers(address: Path) -> bool:
    """Return whether vLLM is ready; called from wherever the engine is loaded."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_HEALTH_S)
            connection.connect(str(address))
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


async def complete(address: Path, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Send a request for text and yield its server-sent events.

    Raises:
        EOFError: The connection was closed before the answer's end.
        OSError: Nobody listens there.
        RuntimeError: vLLM refuses, or says what it should not.
    """
    rest = b""
    async for part in _send(address, json.dumps(body).encode()):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise RuntimeError(f"vllm: {event['error']}")
                yield event
        if len(rest) > _LONGEST_LINE:
            raise RuntimeError("vllm: an event of more than a megabyte")


async def _send(address: Path, body: bytes) -> AsyncIterator[bytes]:
    """Make one HTTP request and yield what is answered; see `complete`."""
    reader, writer = await asyncio.open_unix_connection(str(address))
    http = h11.Connection(h11.CLIENT)
    headers = [("host", "vllm"), ("content-type", "application/json"),
               ("content-length", str(len(body))), ("connection", "close")]  # fmt: skip
    request = h11.Request(method="POST", target="/v1/completions", headers=headers)
    try:
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(http.send(event) or b"")
        await writer.drain()
        status = 0
        while not isinstance(found := http.next_event(), h11.EndOfMessage):
            if found is h11.NEED_DATA:
                http.receive_data(await reader.read(1 << 16))
            elif isinstance(found, h11.Response):
                status = found.status_code
            elif isinstance(found, h11.Data) and status == 200:
                yield bytes(found.data)
            elif isinstance(found, h11.Data):
                raise RuntimeError(f"vllm: {status}: {bytes(found.data)[:300]!r}")
            elif isinstance(found, h11.ConnectionClosed):
                raise EOFError
        if status != 200:
            raise RuntimeError(f"vllm: {status}")
    except h11.RemoteProtocolError as error:
        raise EOFError from error
    finally:
        writer.close()
