"""Decoding Gemma 3 270M at long contexts: our rings beside transformers and llama.cpp.

Beside transformers both compute in float32 on the same numbers. Beside llama.cpp both keep matrices
in 8 bits: ours with a scale an output, Q8_0 with one for each 32 inputs (8.5 bits in all), rounded
from the same file; keys and values are float32 here and float16 there.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType

from bench import gemma, llama_cpp
from bench.gguf_files import requantised
from bench.row import Row, in_turn
from model_code.common.decoder import Decoder
from model_code.common.gguf_model import find_gguf
from model_code.common.span import Span

CONTEXTS = (8192, 32_000)  # the second leaves room for what is generated below 32,768
TOKENS = 4
_AHEAD = 64  # tokens that follow, over all rounds


def rows(folder: Path, contexts: tuple[int, ...] = CONTEXTS) -> Iterator[Row]:
    """Tokens a second at each context, all variants taking turns.

    Args:
        folder: The converted weights.
        contexts: In growing order: llama.cpp reads what a longer one adds, and no more.
    """
    most = max(contexts) + _AHEAD
    theirs = gemma.theirs(folder)
    full = gemma.ours(folder, context=most)
    int8 = gemma.ours(folder, context=most, quantization="int8")
    text = gemma.tokens(folder, max(contexts))
    q8 = requantised(find_gguf(gemma.folder()), GGMLQuantizationType.Q8_0)
    with (
        q8 as q8_folder,
        llama_cpp.steps(q8_folder, context=most, tokens=TOKENS) as ask,
        torch.inference_mode(),
    ):
        for length in contexts:
            prompt = text[:length]
            ask(prompt)  # reads it; the others' caches are filled with random numbers instead
            took = in_turn(
                {
                    "ours": our_steps(full, length),
                    "transformers": _their_steps(theirs, length),
                    "int8": our_steps(int8, length),
                    "llama.cpp": partial(ask, prompt),
                }
            )
            name = f"decode at {length:,} tokens, {gemma.NAME}"
            for kind, ours, peer, called, target in (
                ("float32", "ours", "transformers", "transformers, float32", 2.5),
                ("int8", "int8", "llama.cpp", "llama.cpp Q8_0", 1.0),
            ):
                yield Row(
                    name=f"{name}, {kind}", ours=f"{1 / took[ours]:.1f} tokens/s",
                    peer=f"{called}: {1 / took[peer]:.1f} tokens/s",
                    ratio=took[peer] / took[ours], target=target,
                )  # fmt: skip


def our_steps(decoder: Decoder, length: int) -> Callable[[], float]:
    """Return what measures the seconds of a token after so many, whose keys are random."""
    cache = gemma.our_cache(decoder, length + TOKENS)
    for layer in cache.layers:
        for store in layer.stores:
            store.normal_()

    def run() -> float:
        token = torch.tensor([[1]])
        since = time.perf_counter()
        for step in range(TOKENS):
            span = Span(0, torch.tensor([length + step]), 1)
            token = decoder.logits(decoder(token, cache, span)).argmax(-1)
        return (time.perf_counter() - since) / TOKENS

    return run


def _their_steps(model: Any, length: int) -> Callable[[], float]:
    cache = gemma.their_cache(model)
    heads, width = model.config.num_key_value_heads, model.config.head_dim
    for layer in range(model.config.num_hidden_layers):
        keys, values = torch.randn(2, 1, heads, length, width).unbind()
        cache.update(keys, values, layer)

    def run() -> float:
        # The cache grows with each run, by less than a thousandth: a ring cannot go back.
        token = torch.tensor([[1]])
        since = time.perf_counter()
        for _ in range(TOKENS):
            token = model(token, past_key_values=cache, use_cache=True).logits.argmax(-1)
        return (time.perf_counter() - since) / TOKENS

    return run
