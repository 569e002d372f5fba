"""Where the time goes in what `isomorph bench common` does not reach: `python -m bench.profile`.

Each line is a part of one of its rows, timed alone or within the whole, beside reading the bytes
that the part must read. Medians of runs that take turns.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.common import INNER, VISITED, WIDTH, mixtures
from bench.reading import reader
from bench.row import PAUSE_S, interleaved
from model_code.common import kernels
from model_code.common.cache import WholeLayer, parts_of
from model_code.common.kernels import one_mixture, one_token
from model_code.common.layers import Attention, Rope
from model_code.common.linear import Linear
from model_code.common.rotary import Rotary
from model_code.common.span import Span
from model_code.mla.model import LatentAttention

_ROUNDS = 15
_MORE_THAN_CACHES = 64 * 2**20  # bytes that are read in between, so that weights are not in a cache


@torch.inference_mode()
def main() -> int:
    """Print all tables."""
    torch.manual_seed(0)
    for title, lines in (
        ("One token through 256 experts, float32", experts()),
        ("Latent attention after 16,384 tokens, 16 heads, float32", latents()),
        ("One token through one matrix at a time", matrices()),
    ):
        print(f"\n{title}\n{'part':<44}{'ms':>8}{'MB':>8}{'its bytes, ms':>15}")
        for name, seconds, size, read in lines:
            print(f"{name:<44}{seconds * 1e3:8.3f}{size / 1e6:8.1f}{read * 1e3:15.3f}")
    return 0


Line = tuple[str, float, float, float]


def experts() -> Iterator[Line]:
    """The call that routes and visits, and what remains of the module."""
    ours, _ = mixtures(torch.float32)
    size = ours.router.weight.nbytes + VISITED * 3 * INNER * WIDTH * 4
    run = partial(ours, torch.randn(1, 1, WIDTH))
    yield from _parts(run, [(one_mixture.OneMixture, "__call__", size)])


def latents() -> Iterator[Line]:
    """Attention on the latents, the layer's own matrices, and what remains of the module."""
    heads, rank, turned, plain, hidden, length = 16, 512, 64, 128, 2048, 16_384
    rules = Attention(
        heads=heads, kv_heads=heads, head_dim=plain + turned, value_dim=plain, latent_rank=rank,
        rope_dim=turned, scale=(plain + turned) ** -0.5, rope=Rope(kind="default", theta=1e4),
    )  # fmt: skip
    layer = LatentAttention(hidden, rules, torch.float32).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_(0, 0.02)
    cache = WholeLayer(parts_of(rules), slots=1, context=length + 1, dtype=torch.float32)
    rotary = Rotary(rules.rope, turned, context=length + 1, trained=length + 1, dtype=torch.float32)
    run = partial(
        layer, torch.randn(1, 1, hidden), rotary, cache, Span(0, torch.tensor([length]), 1)
    )
    own = sum(each.nbytes for each in layer.parameters()) - layer.expand_NXR.nbytes
    kept = length * (rank + turned) * 4
    yield from _parts(run, [(one_token, "attend", kept), (kernels, "multiply", own)])


def matrices() -> Iterator[Line]:
    """A small and a large matrix of each kind, one call each, out of memory."""
    for inputs, outputs in ((2048, 2048), (2048, 16_384)):
        for kind, bits in (("bf16", 16.0), ("int8", 8.0), ("int4", 5.0)):
            size = inputs * outputs * bits / 8
            layers = [
                _matrix(inputs, outputs, kind) for _ in range(2 + int(_MORE_THAN_CACHES / size))
            ]
            x = torch.randn(1, inputs)
            x = x.bfloat16() if kind == "bf16" else x
            variants: dict[str, Callable[[], object]] = {
                "ours": partial(_through, layers, x),
                "read": reader(size * len(layers)),
            }
            took = interleaved(variants, rounds=_ROUNDS)
            count = len(layers)
            yield f"{inputs} x {outputs}, {kind}", took["ours"] / count, size, took["read"] / count


def _through(layers: list[Linear], x: Tensor) -> None:
    for layer in layers:
        layer(x)


def _matrix(inputs: int, outputs: int, kind: str) -> Linear:
    layer = Linear(inputs, outputs, bias=False, dtype=torch.bfloat16)
    assert layer.weight is not None  # noqa: S101
    layer.weight.requires_grad_(False).normal_(0, 0.02)
    if kind != "bf16":
        layer.quantize("weight", kind)
    return layer


def _parts(run: Callable[[], object], parts: list[tuple[Any, str, int]]) -> Iterator[Line]:
    """Yield functions of modules as they are called by `run`, the rest, and the whole."""
    took: dict[str, list[float]] = {name: [] for _, name, _ in parts}
    whole, others, sizes = [], torch.ones(_MORE_THAN_CACHES // 4), {n: s for _, n, s in parts}
    with _timed(parts, took):
        for _ in range(_ROUNDS):
            others.sum()
            time.sleep(PAUSE_S)
            before = {name: sum(found) for name, found in took.items()}
            since = time.perf_counter()
            run()
            whole.append(time.perf_counter() - since)
            for name, found in took.items():  # calls of one run count as one
                found[:] = [*found[: len(whole) - 1], sum(found) - before[name]]
    medians = {name: statistics.median(found) for name, found in took.items()}
    for name, seconds in medians.items():
        yield name, seconds, sizes[name], _reading(sizes[name])
    total = statistics.median(whole)
    yield "the rest, in torch and Python", total - sum(medians.values()), 0, 0.0
    yield "the whole", total, sum(sizes.values()), _reading(sum(sizes.values()))


@contextmanager
def _timed(parts: list[tuple[Any, str, int]], took: dict[str, list[float]]) -> Iterator[None]:
    originals = [(module, name, getattr(module, name)) for module, name, _ in parts]

    def timed(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            since = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                took[name].append(time.perf_counter() - since)

        return call

    for module, name, function in originals:
        setattr(module, name, timed(name, function))
    try:
        yield
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def _reading(size: float) -> float:
    """Return the seconds in which torch reads so many bytes that are in no cache."""
    values, others = reader(size), torch.ones(_MORE_THAN_CACHES // 4)
    found = []
    for _ in range(_ROUNDS):
        others.sum()
        time.sleep(PAUSE_S)
        since = time.perf_counter()
        values()
        found.append(time.perf_counter() - since)
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
