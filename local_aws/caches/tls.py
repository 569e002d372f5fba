"""A TLS front for servers that speak plain TCP: the packaged Valkey is built without TLS."""

import asyncio
import contextlib
import ssl
import threading

from local_aws.settings import HOST

_CHUNK = 1 << 18


class Fronts:
    """Passes what comes over TLS on to a plain port of the loopback address, and back.

    Args:
        context: What it speaks TLS with.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._open: dict[int, asyncio.Server] = {}
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="cache-fronts", daemon=True
        )
        self._thread.start()

    def open(self, plain: int, port: int = 0) -> int:
        """Listen for a server, at a free port unless one is named, and return the port."""
        return asyncio.run_coroutine_threadsafe(self._listen(plain, port), self._loop).result(10)

    def close(self, port: int) -> None:
        """Listen there no more."""
        asyncio.run_coroutine_threadsafe(self._close(port), self._loop).result(10)

    def stop(self) -> None:
        """Close every front."""
        for port in list(self._open):
            self.close(port)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    async def _listen(self, plain: int, port: int) -> int:
        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _pass_on(reader, writer, plain)

        server = await asyncio.start_server(
            pass_on, HOST, port, ssl=self._context, limit=_CHUNK, ssl_handshake_timeout=5
        )
        found = int(server.sockets[0].getsockname()[1])
        self._open[found] = server
        return found

    async def _close(self, port: int) -> None:
        server = self._open.pop(port, None)
        if server is not None:
            server.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, plain: int) -> None:
    try:
        behind, to_server = await asyncio.open_connection(HOST, plain, limit=_CHUNK)
    except OSError:  # the server is down: so is this connection
        writer.close()
        return
    ways = [
        asyncio.create_task(_copy(reader, to_server)),
        asyncio.create_task(_copy(behind, writer)),
    ]
    # When one side is gone, whatever the other still says goes nowhere.
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()
    await asyncio.gather(*ways, return_exceptions=True)
    for end in (writer, to_server):
        with contextlib.suppress(OSError):
            end.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
