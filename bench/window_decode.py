"""Decoding Gemma 3 270M at long contexts: our rings beside transformers and llama.cpp.

Beside transformers both compute in float32 on the same numbers. Beside llama.cpp both keep matrices
in 8 bits: ours with a scale an output, Q8_0 with one for each 32 inputs (8.5 bits in all), rounded
from the same file; keys and values are float32 here and float16 there.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType

from bench import gemma
from bench.gguf_files import requantised
from bench.row import Row
from model_code.common.decoder import Decoder
from model_code.common.gguf_model import find_gguf
from model_code.common.span import Span

CONTEXTS = (8192, 32_000)  # the second leaves room for what is generated below 32,768
_TOKENS, _ROUNDS = 4, 5
_AHEAD = _TOKENS * (_ROUNDS + 1)


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
    with _llama_cpp(most) as ask, torch.inference_mode():
        for length in contexts:
            prompt = text[:length]
            ask(prompt)  # reads it; the others' caches are filled with random numbers instead
            took = _in_turn(
                {
                    "ours": _our_steps(full, length),
                    "transformers": _their_steps(theirs, length),
                    "int8": _our_steps(int8, length),
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


def _in_turn(variants: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Return each variant's median seconds a token, by its own account."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(_ROUNDS + 1):
        for name, run in variants.items():
            found = run()
            if turn:
                times[name].append(found)
    return {name: statistics.median(found) for name, found in times.items()}


def _our_steps(decoder: Decoder, length: int) -> Callable[[], float]:
    cache = gemma.our_cache(decoder, length + _TOKENS)
    for layer in cache.layers:
        for store in layer.stores:
            store.normal_()

    def run() -> float:
        token = torch.tensor([[1]])
        since = time.perf_counter()
        for step in range(_TOKENS):
            span = Span(0, torch.tensor([length + step]), 1)
            token = decoder.logits(decoder(token, cache, span)).argmax(-1)
        return (time.perf_counter() - since) / _TOKENS

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
        for _ in range(_TOKENS):
            token = model(token, past_key_values=cache, use_cache=True).logits.argmax(-1)
        return (time.perf_counter() - since) / _TOKENS

    return run


@contextmanager
def _llama_cpp(context: int) -> Iterator[Callable[[list[int]], float]]:
    """Yield what returns seconds a token after a prompt of tokens.

    The seconds are llama.cpp's own, without anything that Python adds. It keeps what it has read:
    asked again, it computes the last token of the prompt only.
    """
    import xllamacpp

    source = find_gguf(gemma.folder())
    with requantised(source, GGMLQuantizationType.Q8_0) as folder:
        params = xllamacpp.CommonParams()
        params.model.path = str(find_gguf(folder))
        params.n_parallel, params.n_ctx, params.fit_params = 1, context, False
        params.cache_ram_mib, params.verbosity, params.ui = 0, -1, False
        server: Any = xllamacpp.Server(params)

        def ask(prompt: list[int]) -> float:
            last: dict[str, Any] = {}
            body = {
                "prompt": prompt, "max_tokens": _TOKENS + 1, "temperature": 0, "stream": True,
                "timings_per_token": True, "ignore_eos": True,
            }  # fmt: skip

            def take(chunk: dict[str, Any]) -> bool:
                last.update(chunk)
                return False

            server.handle_completions(body, take)
            if "timings" not in last:
                raise RuntimeError(f"llama.cpp: {last.get('error')}")
            found = last["timings"]
            return float(found["predicted_ms"]) / 1e3 / int(found["predicted_n"] - 1)

        try:
            yield ask
        finally:
            server = None
