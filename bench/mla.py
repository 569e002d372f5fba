"""Latent attention: what a token leaves behind, a decode step, and the first token of a prompt."""

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from bench.mla_store import valkey
from bench.row import Row, interleaved
from model_code.common.architecture import Architecture, parse, read
from model_code.common.batch import Batch, Sequence
from model_code.common.cache import KVCache
from model_code.common.decoder import Decoder
from model_code.common.model_folder import Model, load_folder
from model_code.common.sampling import Sampler
from model_code.common.span import Span
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
# DeepSeek-V2-Lite's attention, once; the rest is as small as it can be.
_ONE_LAYER: dict[str, Any] = {
    "model_type": "deepseek_v3", "hidden_size": 2048, "intermediate_size": 16, "vocab_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 16, "num_key_value_heads": 16,
    "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "first_k_dense_replace": 1, "n_routed_experts": 2, "num_experts_per_tok": 1,
    "moe_intermediate_size": 16, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "max_position_embeddings": 32_768, "rope_theta": 10_000.0, "rms_norm_eps": 1e-6,
}  # fmt: skip


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


@torch.inference_mode()
def decode() -> Iterator[Row]:
    """One token after 4k and 16k, one layer: on the latents, beside transformers' attention."""
    from transformers import DynamicCache
    from transformers.models.deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    dtype = torch.bfloat16
    decoder = Decoder(parse(_ONE_LAYER), context=16_385, dtype=dtype).requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.normal_(std=0.02)
    config: Any = DeepseekV3Config(**_ONE_LAYER)
    config._attn_implementation = "sdpa"
    theirs = DeepseekV3Attention(config, layer_idx=0).to(dtype).eval()
    x, angles = torch.randn(1, 1, 2048, dtype=dtype), torch.ones(1, 1, 64, dtype=dtype)
    block: Any = decoder.layers[0]
    attention, rotary = block.attention, decoder.rotaries[0]
    for length in (4096, 16_384):
        cache = KVCache(decoder.architecture, slots=1, context=length + 1, dtype=dtype)
        past = DynamicCache()
        past.update(torch.randn(1, 1, length, 512, dtype=dtype),
                    torch.randn(1, 1, length, 64, dtype=dtype), 0)  # fmt: skip
        span = Span(0, torch.tensor([length]), 1)

        def ours(cache: KVCache = cache, span: Span = span) -> None:
            attention(x, rotary, cache.layers[0], span)

        def peer(past: DynamicCache = past) -> None:
            theirs(x, position_embeddings=(angles, angles), attention_mask=None,
                   past_key_values=past)  # fmt: skip
            past.crop(-1)

        took = interleaved({"ours": ours, "theirs": peer}, rounds=3)
        yield Row(
            name=f"latent attention, a token after {length}, 16 heads, bf16",
            ours=f"{1e3 * took['ours']:.3g} ms",
            peer=f"transformers, which expands the cache: {1e3 * took['theirs']:.4g} ms",
            ratio=took["theirs"] / took["ours"], target=35.0 if length == 4096 else 70.0,
        )  # fmt: skip


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

    took = interleaved({"miss": miss, "prepare": other_node, "hit": hit}, rounds=2, warmups=0)
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
    return LatentPrefixes(store, decoder.dtype, metrics)


async def _stored(prefixes: LatentPrefixes, prompt: list[int]) -> None:
    """Wait until all of a prompt's blocks were sent."""
    for _ in range(1000):
        if prefixes.settled:
            return
        await asyncio.sleep(0.01)
    raise RuntimeError("the blocks were not stored in time")
