"""Sliding windows: bytes of the cache, with the formula beside what is allocated, and starts.

The windows' own rows need torch; those of whole starts need Gemma's weights (`isomorph up
--accept-gemma-terms` fetches them) and say so where they are missing.
"""

import ctypes
import dataclasses
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.row import Row, interleaved
from isomorph import samples
from model_code.common.architecture import Architecture, parse
from model_code.common.cache import KVCache
from planner.planning import resolve
from stacks.wheelhouse import FOLDER, function_libraries_name

_CLAIM = 1 / (1 - 0.75)  # the map: 75% less memory
_GEMMA = "gemma-3-270m"
# Gemma 3 4B's language model, from the text_config of google/gemma-3-4b-it's config.json.
_GEMMA_4B: dict[str, Any] = {
    "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "sliding_window": 1024, "vocab_size": 262208, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
}  # fmt: skip
_MIB = 2**20
_LARGEST = 2**31  # a full cache beyond this is computed and not allocated


def memory() -> Iterator[Row]:
    """One sequence's cache in bfloat16: rings in the local layers, beside no window at all."""
    small, large = resolve(_GEMMA), parse(_GEMMA_4B, name="gemma-3-4b")
    for architecture, tokens in ((small, 8192), (small, 32768), (large, 131072)):
        full = _without_windows(architecture)
        ring_bytes, ring_resident = _allocated(architecture, tokens)
        formula, full_formula = architecture.kv_bytes(tokens), full.kv_bytes(tokens)
        if full_formula <= _LARGEST:
            full_bytes, full_resident = _allocated(full, tokens)
            peer = f"{_mib(full_bytes)} (formula {_mib(full_formula)}, resident {full_resident})"
        else:
            full_bytes, peer = (
                full_formula,
                f"{_mib(full_formula)}, computed: too large to allocate",
            )
        saved = 1 - ring_bytes / full_bytes
        yield Row(
            name=f"cache of {tokens:,} tokens, {architecture.name}, {saved:.1%} saved",
            ours=f"{_mib(ring_bytes)} (formula {_mib(formula)}, resident {ring_resident})",
            peer=f"every layer keeps all: {peer}",
            ratio=full_bytes / ring_bytes,
            target=_CLAIM,
        )


def _without_windows(architecture: Architecture) -> Architecture:
    layers = tuple(
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=None))
        for layer in architecture.layers
    )
    return dataclasses.replace(architecture, layers=layers)


def _allocated(architecture: Architecture, tokens: int) -> tuple[int, str]:
    """Return the bytes of a cache that is really there, and by how much the process grew."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not be what is counted now
    before = _resident()
    cache = KVCache(architecture, slots=1, context=tokens, dtype=torch.bfloat16)
    for layer in cache.layers:
        for store in layer.stores:
            store.fill_(1)  # memory that nobody has touched is not there yet
    return cache.nbytes, _mib(_resident() - before)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _mib(nbytes: int) -> str:
    return f"{nbytes / _MIB:,.1f} MiB"


_START = {
    "ours": """
from pathlib import Path
from model_code.common.engine.llama_cpp import LlamaCppEngine as E
engine = E(Path({folder!r}), slots=1, context=2048)
""",
    "torch": """
from pathlib import Path
from model_code.common.engine.native import NativeEngine as E
engine = E.load(Path({folder!r}), slots=1, context=2048, dtype="bfloat16")
""",
}
_FIRST = """
import asyncio
from model_code.common.engine import Generation
async def first():
    async for piece in engine.generate(Generation(prompt="The capital of", temperature=0,
                                                  max_tokens=1)):
        if piece.completion_tokens:
            return
asyncio.run(first())
import os
os._exit(0)
"""


def starts() -> Iterator[Row]:
    """From a process's start to the first token of Gemma 3 270M, and what must be shipped."""
    folder = samples.folder(_GEMMA)
    if not list(folder.glob("*.gguf")):
        raise FileNotFoundError(f"no weights in {folder}: run `isomorph up --accept-gemma-terms`")

    def start(name: str) -> None:
        script = _START[name].format(folder=str(folder)) + _FIRST
        root = Path(__file__).parents[1]
        subprocess.run([sys.executable, "-c", script], check=True, cwd=root, capture_output=True)

    took = interleaved({"ours": lambda: start("ours"), "torch": lambda: start("torch")}, rounds=3)
    yield Row(
        name=f"process to first token, {_GEMMA}",
        ours=f"{took['ours']:.2f} s (llama.cpp, Q4_K_M mapped)",
        peer=f"our decoder on torch, bfloat16: {took['torch']:.2f} s",
        ratio=took["torch"] / took["ours"],
        target=1.0,
    )
    yield Row(
        name=f"process to first token, {_GEMMA}",
        ours=f"{took['ours']:.2f} s",
        peer="limit: 3 s to load and 1 s to the first token",
        ratio=4 / took["ours"],
        target=1.0,
    )
    yield _package()


def _package() -> Row:
    path = FOLDER / function_libraries_name("sliding_window", "host", "x86_64")
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: run `isomorph wheelhouses`")
    with zipfile.ZipFile(path) as archive:
        ours = sum(entry.file_size for entry in archive.infolist())
    theirs = sum(
        file.size or 0
        for name in ("torch", "numpy", "tokenizers", "gguf")
        for file in metadata.files(name) or []
    )
    return Row(
        name="libraries of the function, unzipped",
        ours=_mib(ours),
        peer=f"torch, numpy, tokenizers, gguf as installed: {_mib(theirs)}; Lambda's zip: 250 MiB",
        ratio=theirs / ours,
        target=1.0,
    )
