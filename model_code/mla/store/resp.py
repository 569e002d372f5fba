"""One connection that speaks RESP, the protocol of Redis and Valkey; payloads are never copied.

Protocol: https://valkey.io/topics/protocol/ (version 2, which every server begins with). What comes
in is taken for hostile: each length and depth has a bound, and what does not parse closes the
connection. Each call has a deadline, in seconds of time.monotonic().
"""

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from model_code.mla.store.errors import AuthError, ProtocolError, ReplyError, UnavailableError

Reply: TypeAlias = "bytes | int | list[Reply] | None"
Buffer: TypeAlias = "bytes | bytearray | memoryview"

# Bytes of the read buffer, and of the longest line. What is read beyond a line is copied once more,
# so the buffer is small: a block's own bytes go straight to their place.
_LINE = 1 << 12
_LONGEST_BULK = 1 << 20  # of replies other than blocks
_MOST_ITEMS, _DEEPEST = 1 << 14, 8  # a full CLUSTER SLOTS reply stays far below
_SKIPPED = 64 << 20  # a value of another size is read past up to here
_SEND_AT_MOST = 1 << 20  # bytes that TLS encrypts between two looks at the clock
_AUTH_CODES = ("WRONGPASS", "NOAUTH", "NOPERM")


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return host:port."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Credentials:
    """What AUTH sends. The password is in no message and no repr."""

    username: str
    password: str

    def __repr__(self) -> str:
        """Return all but the password."""
        return f"Credentials({self.username!r})"


class Connection:
    """A connected, authenticated socket. After anything but a ReplyError it must be closed."""

    def __init__(
        self, address: Address, *, tls: ssl.SSLContext | None, credentials: Credentials | None,
        deadline: float,
    ) -> None:  # fmt: skip
        self._raw = bytearray(_LINE)
        self._buffer = memoryview(self._raw)
        self._start = self._end = 0
        self._socket = _connect(address, tls, deadline)
        try:
            if credentials:
                self._authenticate(credentials, deadline)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket; more than once does no harm."""
        self._socket.close()

    def call(self, *arguments: bytes, deadline: float) -> Reply:
        """Send one command and return its reply, or raise ReplyError."""
        self.send([command(*arguments)], deadline)
        return self.reply(deadline)

    def send(self, parts: Sequence[Buffer], deadline: float) -> None:
        """Send `parts` one after the other, without joining them."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        try:
            while views:
                self._socket.settimeout(_left(deadline))
                sent = self._send_some(views)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except OSError as error:
            raise UnavailableError(f"sending failed: {error}") from error

    def reply(self, deadline: float, depth: int = 0) -> Reply:
        """Read one reply of any kind but a block."""
        kind, rest = self._head(deadline)
        if kind == b"+":
            return rest
        if kind == b":":
            return _number(rest, -(2**63), 2**63 - 1)
        if kind == b"$":
            length = _number(rest, -1, _LONGEST_BULK)
            return None if length < 0 else self._bulk(length, deadline)
        if kind == b"*" and depth < _DEEPEST:
            count = _number(rest, -1, _MOST_ITEMS)
            items = range(max(count, 0))
            return None if count < 0 else [self.reply(deadline, depth + 1) for _ in items]
        raise ProtocolError(f"a reply begins with {kind + rest[:20]!r}")

    def block(self, into: memoryview, deadline: float) -> bool:
        """Read the reply to a GET straight into `into`; False if nothing of that size came."""
        kind, rest = self._head(deadline)
        if kind != b"$":
            raise ProtocolError(f"a GET is answered with {kind + rest[:20]!r}")
        length = _number(rest, -1, 1 << 29)
        if length < 0:
            return False
        if length != len(into):
            self._skip(length + 2, deadline)
            return False
        self._read(into, deadline)
        self._crlf(deadline)
        return True

    def _authenticate(self, credentials: Credentials, deadline: float) -> None:
        try:
            self.call(
                b"AUTH", credentials.username.encode(), credentials.password.encode(),
                deadline=deadline,
            )  # fmt: skip
        except (AuthError, ReplyError) as error:
            raise AuthError(f"user {credentials.username!r} is refused: {error}") from error

    def _send_some(self, views: list[memoryview]) -> int:
        if isinstance(self._socket, ssl.SSLSocket):  # it has no sendmsg
            return self._socket.send(views[0][:_SEND_AT_MOST])
        return self._socket.sendmsg(views[:64])

    def _head(self, deadline: float) -> tuple[bytes, bytes]:
        line = self._line(deadline)
        if line[:1] == b"-":
            error = ReplyError(line[1:200].decode("ascii", "replace"))
            if error.code in _AUTH_CODES:
                raise AuthError(str(error))
            raise error
        return line[:1], line[1:]

    def _line(self, deadline: float) -> bytes:
        while (at := self._raw.find(b"\r\n", self._start, self._end)) < 0:
            if self._end - self._start == _LINE:
                raise ProtocolError(f"a line is longer than {_LINE} bytes")
            self._fill(deadline)
        line = bytes(self._buffer[self._start : at])
        self._start = at + 2
        return line

    def _bulk(self, length: int, deadline: float) -> bytes:
        data = bytearray(length)
        self._read(memoryview(data), deadline)
        self._crlf(deadline)
        return bytes(data)

    def _read(self, into: memoryview, deadline: float) -> None:
        """Fill `into`: first with what was read already, then from the socket."""
        had = min(len(into), self._end - self._start)
        into[:had] = self._buffer[self._start : self._start + had]
        self._start += had
        while had < len(into):
            had += self._receive(into[had:], deadline)

    def _fill(self, deadline: float) -> None:
        """Put what is not used yet at the buffer's beginning, and receive some more behind it."""
        waiting = self._raw[self._start : self._end]
        self._raw[: len(waiting)] = waiting
        self._start, self._end = 0, len(waiting)
        self._end += self._receive(self._buffer[self._end :], deadline)

    def _crlf(self, deadline: float) -> None:
        while self._end - self._start < 2:  # together with the next reply's first line
            self._fill(deadline)
        self._start += 2
        if self._raw[self._start - 2 : self._start] != b"\r\n":
            raise ProtocolError("a string does not end where its length says")

    def _skip(self, length: int, deadline: float) -> None:
        if length > _SKIPPED:
            raise ProtocolError(f"a value has {length} bytes")
        scratch = memoryview(bytearray(min(length, _LINE)))
        while length:
            part = scratch[: min(length, len(scratch))]
            self._read(part, deadline)
            length -= len(part)

    def _receive(self, into: memoryview, deadline: float) -> int:
        try:
            self._socket.settimeout(_left(deadline))
            received = self._socket.recv_into(into)
        except OSError as error:
            raise UnavailableError(f"receiving failed: {error}") from error
        if not received:
            raise UnavailableError("the server closed the connection")
        return received


def command(*arguments: bytes) -> bytes:
    """Return a command as it is sent."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


def set_command(key: bytes, value: Sequence[Buffer], ttl_s: int) -> list[Buffer]:
    """Return `SET key value EX ttl` as parts, the value's own among them, uncopied."""
    length = sum(len(part) for part in value)
    ttl = b"%d" % ttl_s
    return [
        b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, length),
        *value,
        b"\r\n$2\r\nEX\r\n$%d\r\n%b\r\n" % (len(ttl), ttl),
    ]


def _connect(address: Address, tls: ssl.SSLContext | None, deadline: float) -> socket.socket:
    try:
        plain = socket.create_connection((address.host, address.port), _left(deadline))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, UnicodeError) as error:  # a host name may not be one
        raise UnavailableError(f"{address} cannot be reached: {error}") from error
    if tls is None:
        return plain
    try:
        plain.settimeout(_left(deadline))  # of the handshake
        return tls.wrap_socket(plain, server_hostname=address.host)
    except (OSError, ValueError) as error:
        plain.close()
        raise UnavailableError(f"{address}: no TLS: {error}") from error


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise UnavailableError("the deadline passed")
    return left


def _number(text: bytes, low: int, high: int) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 19 or not low <= int(text) <= high:
        raise ProtocolError(f"{text[:20]!r} is no number from {low} to {high}")
    return int(text)
