"""Whole requests: our server over llama.cpp's engine and our own, beside llama.cpp's own server."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx

from bench.row import Row, interleaved
from isomorph import samples
from model_code.common.gguf_model import find_gguf

_ROOT = Path(__file__).parents[1]
_REQUESTS, _TOKENS, _SLOTS, _CONTEXT = 32, 16, 8, 512
_OURS = {
    "llama.cpp, Q4_1": {"ISOMORPH_ENGINE": "llama.cpp"},
    "native, int8": {
        "ISOMORPH_ENGINE": "native", "ISOMORPH_DTYPE": "float32", "ISOMORPH_QUANTIZATION": "int8",
    },
}  # fmt: skip
_THEIR_SERVER = """
import sys, threading, xllamacpp
path, port = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.port = path, int(port)
params.n_parallel, params.n_ctx = {slots}, {slots} * {context}
params.fit_params, params.cache_ram_mib, params.verbosity = False, 0, -1
server = xllamacpp.Server(params)
threading.Event().wait()
"""


def requests() -> Iterator[Row]:
    """32 requests at once on 8 slots, each of 16 tokens: with their engine and with our own."""
    weights, _ = samples.fetch("smollm2-135m-instruct")
    their_code = _THEIR_SERVER.format(slots=_SLOTS, context=_CONTEXT)
    with ExitStack() as running:
        runs = {}
        for engine, settings in _OURS.items():
            state, port = running.enter_context(tempfile.TemporaryDirectory()), _free_port()
            env = os.environ | settings | {
                "ISOMORPH_MODEL": "m", "ISOMORPH_WEIGHTS": str(weights), "ISOMORPH_STATE": state,
                "ISOMORPH_PORT_OVERRIDE": str(port), "ISOMORPH_SLOTS": str(_SLOTS),
                "ISOMORPH_CONTEXT": str(_CONTEXT),
            }  # fmt: skip
            command = [sys.executable, "-m", "model_code.gqa.serve"]
            running.enter_context(_server(command, port, env))
            runs[engine] = partial(_ask, port)
        port = _free_port()
        command = [sys.executable, "-c", their_code, str(find_gguf(weights)), str(port)]
        running.enter_context(_server(command, port, dict(os.environ)))
        runs["theirs"] = partial(_ask, port)
        took = interleaved(runs, rounds=3)
    speed = {name: _REQUESTS * _TOKENS / seconds for name, seconds in took.items()}
    for engine in _OURS:
        yield Row(
            name=f"{_REQUESTS} requests at once on {_SLOTS} slots, SmolLM2-135M, {engine}",
            ours=f"{speed[engine]:.0f} tokens/s",
            peer=f"llama.cpp's own server, Q4_1: {speed['theirs']:.0f} tokens/s",
            ratio=speed[engine] / speed["theirs"],
            target=1.0,
        )


def _ask(port: int) -> None:
    asyncio.run(_ask_all(port))


async def _ask_all(port: int) -> None:
    async def ask(http: httpx.AsyncClient, number: int) -> None:
        # Counting goes on for all 16 tokens, where prose might end.
        body = {"prompt": f"{number} {number + 1} {number + 2}", "temperature": 0,
                "max_tokens": _TOKENS}  # fmt: skip
        answer = await http.post(f"http://127.0.0.1:{port}/v1/completions", json=body)
        found = answer.json()["usage"]["completion_tokens"]
        if found != _TOKENS:
            raise RuntimeError(f"port {port}: {found} tokens instead of {_TOKENS}")

    limits = httpx.Limits(max_connections=_REQUESTS)
    async with httpx.AsyncClient(timeout=120, limits=limits) as http:
        await asyncio.gather(*(ask(http, number) for number in range(_REQUESTS)))


@contextmanager
def _server(command: list[str], port: int, env: dict[str, str]) -> Iterator[None]:
    """Run a server until it is healthy, and end it afterwards."""
    process = subprocess.Popen(
        command, cwd=_ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(command[:3])} does not come up")
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
