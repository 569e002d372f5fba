"""Latent attention's decode step: on the latents, beside transformers', which expands the cache.

One layer with DeepSeek-V2-Lite's dimensions; `isomorph bench common` and `isomorph bench mla` both
print it.
"""

from collections.abc import Iterator
from typing import Any

import torch

from bench.reading import reader
from bench.row import Row, beside, interleaved
from model_code.common.cache import WholeLayer, parts_of
from model_code.common.engine.native import choose_dtype
from model_code.common.layers import Attention, Rope
from model_code.common.rotary import Rotary
from model_code.common.span import Span
from model_code.mla.model import LatentAttention

_TARGETS = {4096: 35.0, 16_384: 70.0}  # times transformers


@torch.inference_mode()
def rows(lengths: tuple[int, ...]) -> Iterator[Row]:
    """One token after so many, in the dtype that the native engine would choose here."""
    for length in lengths:
        yield from _after(length, choose_dtype("auto"))


def _after(length: int, dtype: torch.dtype) -> Iterator[Row]:
    from transformers import DeepseekV3Config
    from transformers.cache_utils import DynamicCache
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    heads, rank, turned, plain, value, hidden = 16, 512, 64, 128, 128, 2048
    config: Any = DeepseekV3Config(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=heads, q_lora_rank=None,
        kv_lora_rank=rank, qk_rope_head_dim=turned, qk_nope_head_dim=plain, v_head_dim=value,
        attn_implementation="sdpa",
    )  # fmt: skip
    theirs = DeepseekV3Attention(config, layer_idx=0).to(dtype).eval()
    rules = Attention(
        heads=heads, kv_heads=heads, head_dim=plain + turned, value_dim=value,
        latent_rank=rank, rope_dim=turned, scale=(plain + turned) ** -0.5,
        rope=Rope(kind="default", theta=1e4),
    )  # fmt: skip
    ours = LatentAttention(hidden, rules, dtype).requires_grad_(False)
    for parameter in ours.parameters():
        parameter.normal_(0, 0.02)
    layer = WholeLayer(parts_of(rules), slots=1, context=length + 1, dtype=dtype)
    rotary = Rotary(rules.rope, turned, context=length + 1, trained=length + 1, dtype=dtype)
    span, x = Span(0, torch.tensor([length]), 1), torch.randn(1, 1, hidden, dtype=dtype)
    cache = DynamicCache()
    cache.update(
        torch.randn(1, 1, length, rank, dtype=dtype),
        torch.randn(1, 1, length, turned, dtype=dtype), 0,
    )  # fmt: skip
    angles = torch.ones(1, 1, turned, dtype=dtype), torch.zeros(1, 1, turned, dtype=dtype)

    def step_of_theirs() -> None:
        theirs(x, position_embeddings=angles, attention_mask=None, past_key_values=cache)
        cache.crop(-1)

    read = reader(length * (rank + turned) * dtype.itemsize)
    took = interleaved(
        {"ours": lambda: ours(x, rotary, layer, span), "theirs": step_of_theirs, "read": read},
        rounds=3,
    )  # fmt: skip
    kind = str(dtype).removeprefix("torch.")
    name = f"latent attention, 1 token after {length}, {heads} heads, {kind}"
    yield beside(name, took, "ours", "theirs", "transformers, which expands", _TARGETS[length])
    yield beside(name, took, "ours", "read", "reading the latents once", 0.2)
