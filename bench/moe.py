"""A mixture of experts: a token's cost, its limit, its peers; and experts out of a cache.

The model of the first rows has random weights and layers of Qwen3-30B-A3B's sizes, with 48 of its
128 experts: 1.9 GB in float32, larger than any cache of a CPU.
The rows of the expert cache and of pools are the trained tiny-moe on real text.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.reading import reader
from bench.row import Row, interleaved
from isomorph import trained
from model_code.common.architecture import Architecture, parse, read
from model_code.common.cache import KVCache
from model_code.common.checkpoint import all_sources
from model_code.common.decoder import Decoder
from model_code.common.engine.native import choose_dtype
from model_code.common.model_folder import load_folder
from model_code.common.span import Span
from model_code.moe.experts.cache import ExpertCache
from model_code.moe.experts.index import read_index
from model_code.moe.experts.metrics import ExpertMetrics
from model_code.moe.experts.module import install
from model_code.moe.experts.source import DiskSource
from model_code.moe.layers import mixtures
from model_code.moe.route import POOLS_FILE, PoolRouter
from model_code.moe.train_tiny import texts_of_python

_CLAIM = 1 / (1 - 0.60)  # the map: 60-85% less
_BOUND = 1 / 1.5  # of reading the active bytes once
_CONTEXT = 64
_MODEL: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
    "moe_intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 8192, "num_experts": 48,
    "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "tie_word_embeddings": False, "attention_bias": False, "hidden_act": "silu",
}  # fmt: skip
_TEXT_TOKENS, _TURN = 256, 64  # of each text, decoded one by one; so many before the other text's

Visits = list[tuple[int, list[int]]]


def rows() -> Iterator[Row]:
    """All rows."""
    torch.manual_seed(0)
    with torch.inference_mode():
        yield from tokens()
        yield from cache()


def tokens() -> Iterator[Row]:
    """A token through a whole model, beside a dense one of equal size, a limit and transformers."""
    dtype = choose_dtype("auto")
    sparse = parse(_MODEL, name="48 experts")
    width = _MODEL["num_experts"] * _MODEL["moe_intermediate_size"]
    layers = [*range(_MODEL["num_hidden_layers"])]
    dense = parse(_MODEL | {"mlp_only_layers": layers, "intermediate_size": width}, name="dense")
    ours, equal = _random(sparse, dtype), _random(dense, dtype)
    theirs = {way: _transformers(ours, way) for way in ("eager", "grouped_mm")}
    kind = str(dtype).removeprefix("torch.")
    for count, rounds in ((1, 15), (16, 5), (256, 2)):
        given = torch.randint(_MODEL["vocab_size"], (count, 1) if count <= 16 else (1, count))
        variants: dict[str, Callable[[], object]] = {
            "ours": _step(ours, given), "dense": _step(equal, given),
            **{way: partial(model, given, use_cache=False) for way, model in theirs.items()},
        }  # fmt: skip
        if count == 1:
            active = _active_bytes(sparse, dtype)
            variants["read"] = reader(active)
        took = interleaved(variants, rounds=rounds)
        saved = 1 - took["ours"] / took["dense"]
        what = f"{count} token{'s at once' if 1 < count <= 16 else 's of a prompt' * (count > 16)}"
        name = f"{what}, 8 of 48 experts, {kind}"
        yield _row(f"{name}, {saved:.0%} less", took, "dense", "dense of equal size", _CLAIM)
        for way in theirs:
            yield _row(name, took, way, f"transformers {way}", 1.0)
        if count == 1:
            read = f"reading the active {active / 2**20:.0f} MiB once"
            yield _row(name, took, "read", read, _BOUND)


def _random(architecture: Architecture, dtype: torch.dtype) -> Decoder:
    decoder = Decoder(architecture, context=_CONTEXT * 8, dtype=dtype).requires_grad_(False).eval()
    for parameter in decoder.parameters():
        parameter.fill_(1) if parameter.dim() == 1 else parameter.normal_(0, 0.02)
    return decoder


def _step(decoder: Decoder, tokens: Tensor) -> Callable[[], object]:
    slots, count = tokens.shape
    kept = KVCache(
        decoder.architecture, slots=slots, context=max(_CONTEXT, count), dtype=decoder.dtype
    )
    span = Span(0, torch.zeros(slots, dtype=torch.int64), count)

    def step() -> object:
        return decoder.logits(decoder(tokens, kept, span)[:, -1])

    return step


def _transformers(decoder: Decoder, way: str) -> Any:
    """Return transformers' model with the same weights, computed in one of its ways."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config: Any = Qwen3MoeConfig(
        **{key: value for key, value in _MODEL.items() if key != "model_type"},
        experts_implementation=way,
    )
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config)
    model = model.to_empty(device="cpu").to(decoder.dtype).eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    state = model.state_dict()
    for source in all_sources(decoder):
        if ".experts." not in source.name:
            state[source.name].copy_(source.place)
    for layer, mixture in mixtures(decoder).items():
        block = model.model.layers[layer].mlp
        experts: Any = mixture.experts
        block.experts.gate_up_proj.data = experts.gate_up.data  # the same memory, not a copy
        block.experts.down_proj.data = experts.down.data
    return model


def _active_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Return the bytes of the matrices that a token is multiplied with."""
    hidden = architecture.hidden
    matrices = sum(layer.matrix_parameters(hidden, active=True) for layer in architecture.layers)
    return (matrices + architecture.vocabulary * hidden) * dtype.itemsize


def _row(name: str, took: dict[str, float], peer: str, called: str, target: float) -> Row:
    return Row(
        name=name, ours=f"{1e3 * took['ours']:.3g} ms", peer=f"{called}: {1e3 * took[peer]:.3g} ms",
        ratio=took[peer] / took["ours"], target=target,
    )  # fmt: skip


def cache() -> Iterator[Row]:
    """Tokens a second by memory budget, and who is thrown out; pages of files are not kept."""
    folder, _ = trained.fetch("tiny-moe")
    texts = {name: text[-40_000:] for name, text in texts_of_python().items()}
    whole = _Reader(folder, None)
    given = {name: whole.tokens_of(text) for name, text in texts.items()}
    mixed = [
        token for at in range(0, _TEXT_TOKENS, _TURN) for of in given.values()
        for token in of[at : at + _TURN]
    ]  # fmt: skip
    readers = {share: _Reader(folder, share) for share in (1.0, 0.5, 0.25)}
    runs: dict[str, Callable[[], object]] = {"all": partial(whole.read, mixed)}
    runs |= {f"{share:.0%}": partial(each.read, mixed) for share, each in readers.items()}
    took = interleaved(runs, rounds=3)
    for share, each in readers.items():
        seconds = took[f"{share:.0%}"]
        yield Row(
            name=f"memory for {share:.0%} of the experts, tiny-moe, code and prose: "
            f"{each.hit_rate:.1%} hits, {each.stalled:.0%} of the time waited",
            ours=f"{len(mixed) / seconds:.0f} tokens/s",
            peer=f"all in memory, no cache: {len(mixed) / took['all']:.0f} tokens/s",
            ratio=took["all"] / seconds, target=0.9 if share == 1 else share,
        )  # fmt: skip
        each.close()
    visits = whole.trace(mixed)
    for share in (0.5, 0.25):
        yield _policy(whole, visits, share)
    yield _pools(whole, {name: whole.trace(tokens) for name, tokens in given.items()}, texts)


class _Reader:
    """A model that reads tokens one by one, its experts out of a cache or all in memory."""

    def __init__(self, folder: Path, share: float | None) -> None:
        self.index = read_index(folder, read(folder))
        self._metrics, self._seconds = ExpertMetrics(), 0.0
        self._cache: ExpertCache | None = None
        prepare: Callable[[Decoder], None] | None = None
        if share is not None:
            source = DiskSource(folder, self.index, forget=True)
            self._cache = ExpertCache(
                self.index, source, self._metrics, budget_bytes=self.budget_bytes(share)
            )
            prepare = partial(install, cache=self._cache)
        model = load_folder(folder, context=1024, dtype=torch.float32, prepare=prepare)
        self._decoder, self._tokenizer = model.decoder, model.tokenizer
        self.router = PoolRouter.read(folder / POOLS_FILE)

    def budget_bytes(self, share: float) -> int:
        """Return the memory of a share of all experts."""
        return int(share * self.index.count) * self.index.expert_bytes

    def tokens_of(self, text: str) -> list[int]:
        """Return the first tokens of a text."""
        return self._tokenizer.encode(text)[:_TEXT_TOKENS]

    def read(self, tokens: Sequence[int]) -> None:
        """Read the tokens, each in a step of its own."""
        since = time.perf_counter()
        kept = KVCache(self._decoder.architecture, slots=1, context=1024, dtype=torch.float32)
        for at, token in enumerate(tokens):
            span = Span(0, torch.tensor([at]), 1)
            self._decoder.logits(self._decoder(torch.tensor([[token]]), kept, span)[:, -1])
        self._seconds += time.perf_counter() - since

    def trace(self, tokens: Sequence[int]) -> Visits:
        """Return which experts each token visits: (layer, experts) in order."""
        found: Visits = []
        for layer, mixture in mixtures(self._decoder).items():
            mixture.watch = partial(_note, found, layer)
        self.read(tokens)
        for mixture in mixtures(self._decoder).values():
            mixture.watch = None
        return found

    @property
    def hit_rate(self) -> float:
        """Share of asked experts that were in memory."""
        return _hit_rate(self._metrics)

    @property
    def stalled(self) -> float:
        """Share of the time in which layers waited for experts."""
        return self._metrics.total("ExpertStallMs") / 1e3 / self._seconds

    def close(self) -> None:
        """Stop the cache's threads."""
        if self._cache:
            self._cache.close()


def _note(found: Visits, layer: int, experts: Tensor) -> None:
    found.append((layer, experts[0].tolist()))


def _hit_rate(metrics: ExpertMetrics) -> float:
    hits, misses = metrics.total("ExpertHits"), metrics.total("ExpertMisses")
    return hits / (hits + misses)


class _Nowhere:
    """A source that brings nothing: who is thrown out does not depend on what is loaded."""

    def read(self, layer: int, number: int, places: Sequence[memoryview]) -> None:
        """See `Source`."""

    def close(self) -> None:
        """See `Source`."""


def _policy(reader: _Reader, visits: Visits, share: float) -> Row:
    """Our cache's misses on a trace, without prefetch, beside least recently used's."""
    ours = _replayed(reader, visits, share)
    slots = int(share * reader.index.count)
    kept: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits = asked = 0
    for layer, experts in visits:
        for expert in experts:
            asked += 1
            hits += (layer, expert) in kept
            kept[layer, expert] = None
            kept.move_to_end((layer, expert))
            if len(kept) > slots:
                kept.popitem(last=False)
    return Row(
        name=f"who is thrown out at {share:.0%} of the experts, no prefetch",
        ours=f"{ours:.1%} hits", peer=f"least recently used: {hits / asked:.1%} hits",
        ratio=(1 - hits / asked) / max(1 - ours, 1e-9), target=1.0,
    )  # fmt: skip


def _replayed(reader: _Reader, visits: Visits, share: float) -> float:
    """Return our cache's hit rate on a trace."""
    metrics = ExpertMetrics()
    cache = ExpertCache(reader.index, _Nowhere(), metrics, budget_bytes=reader.budget_bytes(share))
    for layer, experts in visits:
        for _ in cache.visit(layer, experts):
            pass
    cache.close()
    return _hit_rate(metrics)


def _pools(reader: _Reader, visits: Mapping[str, Visits], texts: Mapping[str, str]) -> Row:
    """Misses when a pool gets what the router sends it, beside two that get all in turns."""
    share, size = 0.5, _TURN * len(reader.index.layers)
    of: dict[str, Visits] = {name: [] for name in visits}
    for name, found in visits.items():
        of[reader.router.pool(texts[name])] += found
    routed = sum(_replayed(reader, each, share) * len(each) for each in of.values() if each)
    routed /= sum(map(len, of.values()))
    turns = [part for at in range(0, min(map(len, visits.values())), size)
             for each in visits.values() for part in each[at : at + size]]  # fmt: skip
    mixed = _replayed(reader, turns, share)
    return Row(
        name=f"misses of pools at {share:.0%} of the experts, requests by their text",
        ours=f"{1 - routed:.1%}", peer=f"any request on any pool: {1 - mixed:.1%}",
        ratio=(1 - mixed) / max(1 - routed, 1e-9), target=1.0,
    )  # fmt: skip
