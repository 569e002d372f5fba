"""Two servers, and 32 clients whose prompts begin alike: with the store, and without."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from bench.gqa_server import _free_port
from bench.mla_store import valkey
from bench.row import Row
from model_code.common.text import text_of_python

_ROOT = Path(__file__).parents[1]
_CLIENTS, _DOCUMENTS, _DOCUMENT_CHARACTERS = 32, 4, 9_000


def shared_prefixes(weights: Path) -> Iterator[Row]:
    """Each client asks one question of one of four documents; both servers get all documents."""
    with valkey() as address:
        url = f"redis://{address.host}:{address.port}"
        with _servers(weights, url) as ports:
            with_store, reused, tokens = asyncio.run(_ask_all(ports))
    with _servers(weights, "") as ports:
        without, _, _ = asyncio.run(_ask_all(ports))
    yield Row(
        name=f"{_CLIENTS} clients, {_DOCUMENTS} documents, 2 servers, tiny-deepseek",
        ours=f"{with_store:.1f} s, {100 * reused / tokens:.0f}% of the prompts' tokens reused",
        peer=f"no store: {without:.1f} s", ratio=without / with_store, target=2.0,
    )  # fmt: skip


async def _ask_all(ports: list[int]) -> tuple[float, int, int]:
    """Return the seconds, and the tokens of prompts that were reused, and all of them."""
    text = text_of_python()
    limits = httpx.Limits(max_connections=_CLIENTS)

    async def ask(http: httpx.AsyncClient, number: int) -> tuple[int, int]:
        start = number % _DOCUMENTS * _DOCUMENT_CHARACTERS
        document = text[start : start + _DOCUMENT_CHARACTERS]
        body = {"prompt": f"{document}\n\nQuestion {number}:", "temperature": 0, "max_tokens": 4}
        port = ports[number // _DOCUMENTS % len(ports)]
        answer = await http.post(f"http://127.0.0.1:{port}/v1/completions", json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"port {port}: {answer.status_code} {answer.text[:200]}")
        usage = answer.json()["usage"]
        details = usage.get("prompt_tokens_details", {})
        return details.get("cached_tokens", 0), usage["prompt_tokens"]

    async with httpx.AsyncClient(timeout=300, limits=limits) as http:
        since = time.perf_counter()
        found = await asyncio.gather(*(ask(http, number) for number in range(_CLIENTS)))
        took = time.perf_counter() - since
    return took, sum(reused for reused, _ in found), sum(tokens for _, tokens in found)


@contextmanager
def _servers(weights: Path, url: str) -> Iterator[list[int]]:
    """Run two servers until both are ready, and end them afterwards."""
    ports = [_free_port(), _free_port()]
    with tempfile.TemporaryDirectory() as state:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "model_code.mla.serve"], cwd=_ROOT,
                stderr=subprocess.DEVNULL,
                env=os.environ | {
                    "ISOMORPH_MODEL": "tiny-deepseek", "ISOMORPH_ENGINE": "native",
                    "ISOMORPH_WEIGHTS": str(weights), "ISOMORPH_STATE": state,
                    "ISOMORPH_PORT_OVERRIDE": str(port), "ISOMORPH_SLOTS": "4",
                    "ISOMORPH_CONTEXT": "8192", "ISOMORPH_DTYPE": "float32",
                    "ISOMORPH_DEADLINE_S": "300", "ISOMORPH_LATENT_STORE_URL": url,
                    "OMP_NUM_THREADS": "1",
                },
            )
            for port in ports
        ]  # fmt: skip
        try:
            end = time.monotonic() + 180
            while not all(_healthy(port) for port in ports):
                if time.monotonic() > end or any(each.poll() is not None for each in processes):
                    raise RuntimeError("model_code.mla.serve does not come up")
                time.sleep(0.2)
            yield ports
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
