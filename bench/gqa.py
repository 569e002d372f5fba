"""Grouped-query attention and the native decoder, beside torch, transformers and the memory bus."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch.nn import functional

from bench.reading import reader
from bench.row import Row, interleaved
from model_code.common.architecture import parse
from model_code.common.attention import KVCache, Span, grouped_attention
from model_code.common.checkpoint import load_decoder
from model_code.common.decoder import Decoder

_HEADS, _KV_HEADS, _HEAD_DIM = 16, 4, 128
_CLAIM = 1 / (1 - 0.25)  # the map: 25 to 40% less computation than attention with all heads
# SmolLM2-135M's dimensions; the numbers themselves do not matter for the time.
_SMALL: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 1e5,
    "tie_word_embeddings": True,
}  # fmt: skip
_PROMPT, _LONG, _TOKENS, _AHEAD = 64, 16_384, 8, 16


@torch.inference_mode()
def attention() -> Iterator[Row]:
    """One decode step's attention core: ours against torch's, with all heads and with groups."""
    for dtype, length in product((torch.float32, torch.bfloat16), (512, 4096)):
        took = interleaved(_cores(dtype, length), rounds=30, warmups=3)
        kind = str(dtype).removeprefix("torch.")
        for peer in ("sdpa, all heads", "sdpa enable_gqa"):
            yield Row(
                name=f"attention core, {_HEADS}:{_KV_HEADS} heads, {length} tokens, {kind}",
                ours=_milliseconds(took["ours"]),
                peer=f"{peer}: {_milliseconds(took[peer])}",
                ratio=took[peer] / took["ours"],
                target=_CLAIM,
            )


def _cores(dtype: torch.dtype, length: int) -> dict[str, Callable[[], object]]:
    query = torch.randn(1, 1, _HEADS, _HEAD_DIM, dtype=dtype)
    keys, values = torch.randn(2, 1, _KV_HEADS, length, _HEAD_DIM, dtype=dtype).unbind()
    all_keys, all_values = torch.randn(2, 1, _HEADS, length, _HEAD_DIM, dtype=dtype).unbind()
    mask, turned = torch.ones(1, 1, length, dtype=torch.bool), query.transpose(1, 2)
    sdpa = functional.scaled_dot_product_attention
    return {
        "ours": lambda: grouped_attention(query, keys, values, mask, _HEAD_DIM**-0.5),
        "sdpa, all heads": lambda: sdpa(turned, all_keys, all_values),
        "sdpa enable_gqa": lambda: sdpa(turned, keys, values, enable_gqa=True),
    }


@torch.inference_mode()
def decode() -> Iterator[Row]:
    """One sequence's tokens: our decoder against transformers', and against reading the weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs: Any = LlamaForCausalLM(LlamaConfig(**_SMALL))
    state = theirs.state_dict()
    architecture = parse(_SMALL)
    ours = load_decoder(architecture, lambda name: state[name], context=1024, dtype=torch.float32)
    took = interleaved(
        {
            "ours": _our_tokens(ours, _PROMPT),
            "theirs": _their_tokens(theirs, _PROMPT),
            "read": reader(architecture.weight_bytes("fp32")),
        },
        rounds=5,
    )
    speed = f"{_TOKENS / took['ours']:.1f} tokens/s"
    yield Row(
        name="native decode, SmolLM2-135M's size, fp32",
        ours=speed,
        peer=f"transformers: {_TOKENS / took['theirs']:.1f} tokens/s",
        ratio=took["theirs"] / took["ours"],
        target=1.2,
    )
    yield Row(
        name="native decode, SmolLM2-135M's size, fp32",
        ours=speed,
        peer=f"reading the weights once a token: {1 / took['read']:.1f} tokens/s",
        ratio=_TOKENS * took["read"] / took["ours"],
        target=0.6,
    )


@torch.inference_mode()
def long_decode() -> Iterator[Row]:
    """The same model after 16,384 tokens, whose keys and values are random, in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = _SMALL | {"max_position_embeddings": 2 * _LONG, "torch_dtype": "bfloat16"}
    theirs: Any = LlamaForCausalLM(LlamaConfig(**config)).bfloat16().eval()
    state, architecture = theirs.state_dict(), parse(config)
    ours = load_decoder(
        architecture, lambda name: state[name], context=_LONG + _AHEAD, dtype=torch.bfloat16
    )
    took = interleaved(
        {"ours": _our_tokens(ours, _LONG), "theirs": _their_tokens(theirs, _LONG)}, rounds=3
    )
    yield Row(
        name=f"decode after {_LONG:,} tokens, SmolLM2-135M's size, bf16",
        ours=f"{_TOKENS / took['ours']:.1f} tokens/s",
        peer=f"transformers: {_TOKENS / took['theirs']:.1f} tokens/s",
        ratio=took["theirs"] / took["ours"], target=2.5,
    )  # fmt: skip


def _our_tokens(decoder: Decoder, length: int) -> Callable[[], None]:
    """Return what decodes some tokens after so many, whose keys and values are random."""
    cache = KVCache(decoder.architecture, slots=1, context=length + _AHEAD, dtype=decoder.dtype)
    for layer in cache.layers:
        for store in layer.stores:
            store.normal_()

    def run() -> None:
        token = torch.tensor([[1]])
        for step in range(_TOKENS):
            span = Span(0, torch.tensor([length + step]), 1)
            token = decoder.logits(decoder(token, cache, span)).argmax(-1)

    return run


def _their_tokens(model: Any, length: int) -> Callable[[], None]:
    from transformers import DynamicCache

    config, cache = model.config, DynamicCache()
    for layer in range(config.num_hidden_layers):
        shape = 2, 1, config.num_key_value_heads, length, config.head_dim
        cache.update(*torch.randn(shape, dtype=model.dtype).unbind(), layer)

    def run() -> None:
        token = torch.tensor([[1]])
        for _ in range(_TOKENS):
            token = model(token, past_key_values=cache, use_cache=True).logits.argmax(-1)
        cache.crop(-_TOKENS)

    return run


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
