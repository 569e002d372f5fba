"""Measurements, each beside a named peer or limit in one run. `isomorph bench` prints them."""

import os
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from bench.row import Row
from isomorph import output
from isomorph.errors import UserError

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the engines have it, for all alike


def _gqa() -> Iterator[Row]:
    """Whole requests; attention and decode too where torch and transformers are installed."""
    from bench import gqa_server

    yield from gqa_server.requests()
    if find_spec("torch") and find_spec("transformers"):
        from bench import gqa

        yield from gqa.attention()
        yield from gqa.decode()
        yield from gqa.long_decode()


def _mla() -> Iterator[Row]:
    """Latent attention and the store of latents, on the tiny model that is trained here."""
    from bench import latent_decode, mla, mla_compression, mla_nodes, mla_store
    from isomorph import trained

    weights, _ = trained.fetch("tiny-deepseek")
    yield from mla.cache_bytes()
    if find_spec("transformers"):
        yield from latent_decode.rows((4096, 16_384))
    yield from mla.first_token(weights)
    yield from mla_store.throughput()
    yield from mla_compression.rows(weights)
    yield from mla_nodes.shared_prefixes(weights)


def _moe() -> Iterator[Row]:
    """A mixture of experts, on random weights and on the tiny model that is trained here."""
    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        raise UserError(f"bench moe needs {', '.join(missing)}; install them with `make torch`")
    from bench import moe

    yield from moe.rows()


def _planner() -> Iterator[Row]:
    from bench import planner

    for row in planner.measure():
        yield Row(**{name: value for name, value in row.items() if name != "reached"})


def _sliding_window() -> Iterator[Row]:
    """The cache's bytes, what a function ships and takes to start, and decoding Gemma 3 270M."""
    _need("sliding_window", "torch", "transformers", "gguf", "xllamacpp")
    from bench import sliding_window, window_starts

    yield from sliding_window.memory()
    yield from window_starts.rows()
    yield from _window_decode()


def _window_decode() -> Iterator[Row]:
    from bench import gemma, window_decode

    with gemma.converted() as folder:
        yield from window_decode.rows(folder)


def _sliding_window_text() -> Iterator[Row]:
    """Logits and perplexity of Gemma 3 270M on 32k tokens of real text."""
    _need("sliding_window_text", "torch", "transformers", "gguf")
    from bench import gemma, window_text

    with gemma.converted() as folder:
        yield from window_text.rows(folder)


def _moe_training() -> Iterator[Row]:
    """Losses beside a dense model, with 4:16 sparsity too, and what steps cost; all need torch."""
    _need("moe_training", "torch", "transformers")
    from bench import moe_steps, moe_training

    yield from moe_training.rows()
    yield from moe_steps.training()
    yield from moe_steps.decode()


def _common() -> Iterator[Row]:
    """The model code: experts, latents, matrices, few bits, and each engine on a real model."""
    _need("common", "torch", "transformers", "gguf")
    from bench import common, decode_1b, engines, gqa, quantization

    yield from common.rows()
    yield from quantization.rows()
    yield from gqa.long_decode()
    yield from decode_1b.rows()
    yield from engines.rows(engines.measure())
    try:
        yield from _window_decode()
    except UserError as error:  # its terms were not accepted here
        output.say(f"no rows for sliding windows: {error}")


def _need(bench: str, *modules: str) -> None:
    if missing := [name for name in modules if find_spec(name) is None]:
        raise UserError(f"bench {bench} needs {', '.join(missing)}; install them with `make torch`")


def _write_engines(path: Path) -> None:
    from bench import engines

    engines.write(path, engines.table(engines.measure()))


def _draw_losses(path: Path) -> None:
    from bench import moe_training

    moe_training.write(path)


BENCHES: dict[str, Callable[[], Iterable[Row]]] = {
    "common": _common,
    "gqa": _gqa,
    "mla": _mla,
    "moe": _moe,
    "moe_training": _moe_training,
    "planner": _planner,
    "sliding_window": _sliding_window,
    "sliding_window_text": _sliding_window_text,
}
# What some of them leave in a document: a table between marks, a drawing.
WRITERS: dict[str, Callable[[Path], None]] = {
    "common": _write_engines,
    "moe_training": _draw_losses,
}
