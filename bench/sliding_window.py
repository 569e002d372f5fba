"""Sliding windows: bytes of the cache, with the formula beside what is allocated."""

import ctypes
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.row import Row
from model_code.common.architecture import Architecture, parse
from model_code.common.cache import KVCache
from planner.planning import resolve

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
