"""What a decode step and a training step of a mixture of experts cost.

Beside a dense model of as many parameters, beside transformers' of the same config, and beside
what the machine would need for the active parameters alone.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.moe_models import SMALL, WIDE, dense_like
from bench.reading import read
from bench.row import Row, interleaved
from model_code.common.architecture import parse
from model_code.common.cache import KVCache
from model_code.common.decoder import Decoder
from model_code.common.engine.native import choose_dtype
from model_code.common.span import Span
from model_code.moe.train.experts import mixtures
from model_code.moe.train.language_model import LanguageModel, initialize, place
from model_code.moe.train.recipe import Recipe, Training

_CHEAPER = 1 / (1 - 0.85)  # the map: up to 85% cheaper
_WAYS = ("eager", "grouped_mm")
_BEFORE, _DECODED = 64, 32  # tokens in the cache, and tokens of a timed run
_SEQUENCES, _LENGTH = 16, 128  # of a training step
_GEMM = 2048
_STD = 0.02


@torch.inference_mode()
def decode() -> Iterator[Row]:
    """One token after another, each through all layers, each to experts of its own."""
    dtype = choose_dtype("auto")
    torch.manual_seed(0)
    architecture = parse(WIDE)
    runs: dict[str, Callable[[], object]] = {
        "ours": _decoding(_decoder(WIDE, dtype)),
        "dense": _decoding(_decoder(dense_like(WIDE, active=False), dtype)),
    }
    theirs = _theirs(WIDE, dtype)
    for way in _WAYS:
        runs[way] = _their_decoding(theirs, way)
    active = architecture.active_parameters - architecture.embedding_parameters
    runs["read"] = _reading(active * dtype.itemsize, architecture.parameters * dtype.itemsize)
    took = {name: seconds / _DECODED for name, seconds in interleaved(runs, rounds=5).items()}
    name = f"decode step, {_sizes(WIDE)}, {str(dtype).removeprefix('torch.')}"
    yield _row(name, took, "dense", "dense of equal total", _CHEAPER)
    for way in _WAYS:
        yield _row(name, took, way, f"transformers {way}", 1.0)
    yield _row(name, took, "read", "reading the active weights once", 0.5)


def training() -> Iterator[Row]:
    """Forward, backward, clipping and AdamW on a batch of random tokens, in float32."""
    torch.manual_seed(0)
    architecture = parse(SMALL)
    tokens = torch.randint(architecture.vocabulary, (_SEQUENCES, _LENGTH + 1))
    ours = _learner(SMALL)
    runs: dict[str, Callable[[], object]] = {
        "ours": _step(ours, partial(ours, tokens)),
        "dense": _dense_step(tokens),
    }
    theirs = _theirs(SMALL, torch.float32).requires_grad_(True).train()
    for way in _WAYS:
        runs[way] = _step(theirs, partial(_their_loss, theirs, way, tokens))
    left, right = torch.randn(2, _GEMM, _GEMM)
    runs["gemm"] = lambda: left @ right
    took = interleaved(runs, rounds=2)
    flops = _SEQUENCES * architecture.training_flops(_LENGTH)
    took["ideal"] = flops / (2 * _GEMM**3 / took["gemm"])
    name = f"training step, {_sizes(SMALL)}, {_SEQUENCES * _LENGTH:,} tokens, float32"
    yield _row(name, took, "dense", "dense of equal total", _CHEAPER)
    for way in _WAYS:
        yield _row(name, took, way, f"transformers {way}", 1.0)
    yield _row(name, took, "ideal", f"its FLOPs at the rate of a {_GEMM}^3 product", 0.3)


def _sizes(config: dict[str, Any]) -> str:
    architecture = parse(config)
    whole, active = architecture.parameters / 1e6, architecture.active_parameters / 1e6
    return f"{whole:.0f}M parameters, {active:.1f}M active"


def _row(name: str, took: dict[str, float], peer: str, called: str, target: float) -> Row:
    ours, theirs = took["ours"], took[peer]
    return Row(
        name=name, ours=f"{1e3 * ours:.3g} ms", peer=f"{called}: {1e3 * theirs:.3g} ms",
        ratio=theirs / ours, target=target,
    )  # fmt: skip


def _decoder(config: dict[str, Any], dtype: torch.dtype) -> Decoder:
    decoder = Decoder(parse(config), context=2 * _BEFORE, dtype=dtype).requires_grad_(False).eval()
    for name, tensor in [*decoder.named_parameters(), *decoder.named_buffers()]:
        tensor.fill_(1.0) if "norm" in name else tensor.normal_(std=_STD)
    return decoder


def _decoding(decoder: Decoder) -> Callable[[], object]:
    cache = KVCache(decoder.architecture, slots=1, context=2 * _BEFORE, dtype=decoder.dtype)
    span = Span(0, torch.tensor([_BEFORE]), 1)

    def run() -> None:
        for token in torch.randint(decoder.architecture.vocabulary, (_DECODED, 1, 1)):
            decoder.logits(decoder(token, cache, span))

    return run


def _their_decoding(model: Any, way: str) -> Callable[[], object]:
    from transformers import DynamicCache

    cache = DynamicCache()
    model(torch.randint(model.config.vocab_size, (1, _BEFORE)), past_key_values=cache)

    def run() -> None:
        model.set_experts_implementation(way)
        for token in torch.randint(model.config.vocab_size, (_DECODED, 1, 1)):
            model(token, past_key_values=cache)
            cache.crop(-1)

    return run


def _reading(size: int, whole: int) -> Callable[[], object]:
    """Read `size` bytes for each token, from here and there in as many as the model has."""
    memory = torch.ones(whole // 4)
    count = size // 4
    starts = torch.randint(len(memory) - count, (_DECODED,)).tolist()
    return lambda: [read(memory[start : start + count]) for start in starts]


def _theirs(given: dict[str, Any], dtype: torch.dtype) -> Any:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config: Any = DeepseekV3Config(**given)
    with torch.no_grad():
        model: Any = DeepseekV3ForCausalLM(config).to(dtype).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=_STD)
    return model


def _recipe(config: dict[str, Any]) -> Recipe:
    training = Training(context=_LENGTH, batch=_SEQUENCES, micro_batch=_SEQUENCES, rate=1e-4)
    return Recipe(name="bench", source="bench", model=config, training=training)


def _learner(config: dict[str, Any]) -> LanguageModel:
    recipe = _recipe(config)
    model = LanguageModel(recipe)
    place(model, torch.device("cpu"))
    initialize(model, recipe, 0)
    return model


def _dense_step(tokens: Tensor) -> Callable[[], object]:
    model = _learner(dense_like(SMALL, active=False))
    return _step(model, partial(model, tokens))


def _their_loss(model: Any, way: str, tokens: Tensor) -> Tensor:
    model.set_experts_implementation(way)
    logits = model(tokens[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run() -> None:
        torch.autograd.backward(loss())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for mixture in mixtures(model):
            if (visits := mixture.router.visits_E) is not None:
                mixture.router.correct(visits, 1e-3)
            mixture.router.visits_E = None

    return run
