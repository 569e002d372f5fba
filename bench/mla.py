"""Latent attention: what a token leaves behind, and the first token of a prompt."""

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry

from bench.mla_store import valkey
from bench.row import Row, in_turn, seconds_of_one
from model_code.common.architecture import Architecture, parse, read
from model_code.common.batch import Batch, Sequence
from model_code.common.cache import KVCache
from model_code.common.model_folder import Model, load_folder
from model_code.common.sampling import Sampler
from model_code.common.text import text_of_python
from model_code.mla.prefixes import LatentPrefixes, block_layout
from model_code.mla.store.client import Client
from model_code.mla.store.latents import LatentStore
from model_code.mla.store.metrics import LatentMetrics
from model_code.mla.store.resp import Address

_MODELS = Path(__file__).parents[1] / "config" / "models"
_CLAIM = 1 / (1 - 0.85)  # the map: prompt caching takes 85% off the latency
_BLOCK = 256
_FRESH = count(1)  # first tokens that no prompt had before, so that no block is known


def cache_bytes() -> Iterator[Row]:
    """Bytes of cache a token: by the configs, and by the tensors that torch allocates."""
    deepseek = read(_MODELS / "deepseek-v3.json")
    attention = deepseek.layers[0].attention
    plain = 2 * len(deepseek.layers) * attention.heads * (attention.head_dim - attention.rope_dim
                                                          + attention.value_dim)  # fmt: skip
    llama = read(_MODELS / "llama-3.1-405b.json")
    ours = deepseek.kv_bytes_per_token("bf16")
    for peer, theirs in (
        (f"its {attention.heads} heads with keys and values of their own (MHA)", plain),
        ("Llama 3.1 405B (GQA, 8 of 128 heads)", llama.kv_bytes_per_token("bf16")),
    ):
        yield Row(name="cache of a token, DeepSeek-V3, bf16", ours=f"{ours:,} B",
                  peer=f"{peer}: {theirs:,} B", ratio=theirs / ours, target=_CLAIM)  # fmt: skip
    config = json.loads((_MODELS / "tiny-deepseek.json").read_text())
    heads = {"num_attention_heads": 8, "hidden_size": 192, "head_dim": 48, "vocab_size": 16,
             "num_hidden_layers": 4, "intermediate_size": 16, "max_position_embeddings": 64,
             "model_type": "llama"}  # fmt: skip
    ours_tensors = _allocated(parse(config))
    for name, groups in (("MHA", 8), ("GQA 8:2", 2)):
        theirs_tensors = _allocated(parse(heads | {"num_key_value_heads": groups}))
        yield Row(name="cache of a token, tiny-deepseek, tensors, fp32",
                  ours=f"{ours_tensors:,} B", peer=f"{name} of its heads: {theirs_tensors:,} B",
                  ratio=theirs_tensors / ours_tensors, target=2.0)  # fmt: skip


def _allocated(architecture: Architecture) -> int:
    return KVCache(architecture, slots=1, context=64, dtype=torch.float32).nbytes // 64


def first_token(weights: Path) -> Iterator[Row]:
    """From a prompt of real text to its first token: its blocks in the store, or not."""
    lengths = (1024, 4096, 16_384)
    context = lengths[-1] + 2 * _BLOCK
    model = load_folder(weights, context=context, dtype=torch.float32)
    tokens = model.tokenizer.encode(text_of_python()[:200_000])
    with valkey() as address:
        for length in lengths:
            yield _first_token(model, tokens[: length + 40], address)


def _first_token(model: Model, prompt: list[int], address: Address) -> Row:
    """The last 40 tokens are new in each case, as a question after a document would be."""
    batch = Batch(model.decoder, slots=1, context=len(prompt) + _BLOCK)
    writer = _prefixes(model, address, prompt)
    batch.prefixes = writer
    _ask(batch, prompt)
    asyncio.run(_stored(writer, prompt))
    made: list[LatentPrefixes] = [writer]

    def hit() -> None:
        batch.prefixes = made[-1]
        if _ask(batch, prompt) < len(prompt) - _BLOCK - 40:
            raise RuntimeError("the store did not have the prompt")

    def other_node() -> None:
        made[-1].close()
        made.append(_prefixes(model, address, prompt))

    def miss() -> None:
        other = _prefixes(model, address, prompt)
        batch.prefixes = other
        if _ask(batch, [next(_FRESH), *prompt[1:]]):
            raise RuntimeError("the store had a prompt that is new")
        other.close()

    turns = {"miss": miss, "prepare": other_node, "hit": hit}
    took = in_turn(
        {name: partial(seconds_of_one, run) for name, run in turns.items()}, rounds=2, warmups=0
    )
    made[-1].close()
    return Row(
        name=f"first token after {len(prompt) - 40} tokens of text, tiny-deepseek",
        ours=f"{1e3 * took['hit']:.1f} ms with its blocks in Valkey",
        peer=f"computed: {1e3 * took['miss']:.0f} ms, {100 * (1 - took['hit'] / took['miss']):.1f}%"
        " less", ratio=took["miss"] / took["hit"], target=_CLAIM,
    )  # fmt: skip


def _ask(batch: Batch, prompt: list[int]) -> int:
    assert batch.prefixes is not None  # noqa: S101
    sequence = Sequence(prompt=prompt, limit=1, ends=set(),
                        sampler=Sampler(temperature=0, top_p=1, seed=0))  # fmt: skip
    sequence.digests = asyncio.run(batch.prefixes.fetch(prompt))
    batch.add(sequence)
    while sequence.finish is None:
        list(batch.step())
    return sequence.reused


def _prefixes(model: Model, address: Address, prompt: list[int]) -> LatentPrefixes:
    """Return what a node has that starts now: nothing at hand."""
    decoder = model.decoder
    layout = block_layout(decoder.architecture, decoder.dtype, model="bench", block=_BLOCK,
                          tenant="bench")  # fmt: skip
    metrics = LatentMetrics(CollectorRegistry())
    connect: Callable[[], Client] = partial(Client, address, cluster=False, tls=None)
    store = LatentStore(layout, connect, metrics, arena_blocks=len(prompt) // _BLOCK + 2,
                        ttl_s=3600, deadline_s=5.0)  # fmt: skip
    return LatentPrefixes(store, decoder.architecture, decoder.dtype, metrics)


async def _stored(prefixes: LatentPrefixes, prompt: list[int]) -> None:
    """Wait until all of a prompt's blocks were sent."""
    for _ in range(1000):
        if prefixes.settled:
            return
        await asyncio.sleep(0.01)
    raise RuntimeError("the blocks were not stored in time")
