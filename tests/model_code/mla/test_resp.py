"""The connection: a real server, a TLS front, and peers that send what they should not."""

import os
import ssl
import time
from pathlib import Path

import pytest

from model_code.mla.store.errors import AuthError, ProtocolError, ReplyError, UnavailableError
from model_code.mla.store.resp import Address, Connection, Credentials, command, set_command
from tests.model_code.mla.valkey import (
    Front,
    Valkey,
    credentials,
    make_certificate,
    scripted_server,
    soon,
)

KEY = b"isomorph:latent:test"


def connect(address: Address, **options: object) -> Connection:
    given = {"tls": None, "credentials": None, "deadline": soon()} | options
    return Connection(address, **given)  # type: ignore[arg-type]


def round_trip(connection: Connection, size: int) -> None:
    value, into = os.urandom(size), bytearray(size)
    connection.send(set_command(KEY, [value[:64], value[64:]], 60), soon())
    assert connection.reply(soon()) == b"OK"
    connection.send([command(b"GET", KEY)], soon())
    assert connection.block(memoryview(into), soon())
    assert into == value


@pytest.mark.parametrize("size", [64, 65, 65_535, 3_000_000])
def test_a_value_comes_back_as_it_was_stored(valkey: Valkey, size: int) -> None:
    round_trip(connect(valkey.address, credentials=credentials()), size)


def test_a_value_comes_back_through_tls(valkey: Valkey, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    front = Front(valkey.address, tls=server)
    trusted = ssl.create_default_context(cafile=str(certificate))
    round_trip(connect(front.address, tls=trusted, credentials=credentials()), 3_000_000)
    with pytest.raises(UnavailableError, match=r"no TLS: .*CERTIFICATE_VERIFY_FAILED"):
        connect(front.address, tls=ssl.create_default_context())
    front.close()


def test_a_value_of_another_size_is_none_and_the_connection_goes_on(valkey: Valkey) -> None:
    connection = connect(valkey.address, credentials=credentials())
    for size in (10, 1000, 500_000):
        connection.send(set_command(KEY, [b"x" * size], 60), soon())
        connection.reply(soon())
        connection.send([command(b"GET", KEY)], soon())
        assert not connection.block(memoryview(bytearray(100)), soon())
    round_trip(connection, 100)


def test_a_wrong_password_is_an_auth_error_that_does_not_show_it(valkey: Valkey) -> None:
    with pytest.raises(AuthError, match=r"user 'isomorph' is refused: WRONGPASS") as refused:
        connect(valkey.address, credentials=Credentials("isomorph", "wr0ng"))
    assert "wr0ng" not in str(refused.value) + repr(Credentials("isomorph", "wr0ng"))


def test_what_the_user_may_not_do_is_an_auth_error(valkey: Valkey) -> None:
    connection = connect(valkey.address, credentials=credentials())
    with pytest.raises(AuthError, match="NOPERM"):
        connection.call(b"FLUSHALL", deadline=soon())


def test_a_refused_command_leaves_the_connection_usable(valkey: Valkey) -> None:
    connection = connect(valkey.address)
    with pytest.raises(ReplyError, match="ERR wrong number of arguments"):
        connection.call(b"GET", deadline=soon())
    assert connection.call(b"PING", deadline=soon()) == b"PONG"


def test_replies_of_every_kind_are_read() -> None:
    with scripted_server(b"*4\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n*1\r\n+x\r\n") as address:
        assert connect(address).call(b"X", deadline=soon()) == [-7, b"a\r\n", None, [b"x"]]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "a reply begins with b'HTTP"),
        (b"$99999999999\r\n", "is no number from -1 to 1048576"),
        (b"$1e3\r\n", "is no number"),
        (b":" + b"9" * 400 + b"\r\n", "is no number"),
        (b"*99999\r\n", "is no number from -1 to 16384"),
        (b"*1\r\n" * 50, "a reply begins with b'\\*1'"),
        (b"+" + b"x" * 70_000, "a line is longer than 4096 bytes"),
        (b"$3\r\nabcde", "a string does not end where its length says"),
    ],
)
def test_a_malformed_reply_is_a_protocol_error(reply: bytes, message: str) -> None:
    with scripted_server(reply) as address, pytest.raises(ProtocolError, match=message):
        connect(address).call(b"X", deadline=soon())


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"*1\r\n$4\r\nabcd\r\n", "a GET is answered with"),
        (b"$4\r\nabcdXX", "a string does not end where its length says"),
        (b"$500000000\r\n", "a value has 500000002 bytes"),
    ],
)
def test_a_malformed_block_is_a_protocol_error(reply: bytes, message: str) -> None:
    with scripted_server(reply) as address:
        connection = connect(address)
        connection.send([b"x"], soon())
        with pytest.raises(ProtocolError, match=message):
            connection.block(memoryview(bytearray(4)), soon())


def test_silence_ends_with_the_deadline() -> None:
    with scripted_server(b"") as address:
        since = time.monotonic()
        with pytest.raises(UnavailableError, match="receiving failed: timed out"):
            connect(address).call(b"X", deadline=soon(0.1))
        with pytest.raises(UnavailableError, match="the deadline passed"):
            connect(address, deadline=time.monotonic() - 1)
        assert time.monotonic() - since < 2


def test_a_connection_that_ends_and_one_that_never_begins_are_unavailable() -> None:
    with scripted_server(b"$10\r\nabc") as address:
        connection = connect(address)
        connection.send([b"x"], soon())
        with pytest.raises(UnavailableError, match=r"the server closed|reset"):
            connection.reply(soon())
    with pytest.raises(UnavailableError, match="cannot be reached"):
        connect(address)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        connect(Address("no-such-host.invalid." + "x" * 70, 1))
