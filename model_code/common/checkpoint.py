"""Fills a `Decoder` from tensors with Hugging Face's names, wherever they are stored."""

from collections.abc import Callable

import torch
from torch import Tensor

from model_code.common.architecture import Architecture
from model_code.common.decoder import Decoder
from model_code.common.errors import WeightsError

# Our parameter -> the tensors of Hugging Face's Llama that it is made of, one below the other.
_LAYER = {
    "attention_norm.weight": ["input_layernorm.weight"],
    "attention.qkv.weight": [f"self_attn.{x}_proj.weight" for x in "qkv"],
    "attention.qkv.bias": [f"self_attn.{x}_proj.bias" for x in "qkv"],
    "attention.output.weight": ["self_attn.o_proj.weight"],
    "attention.output.bias": ["self_attn.o_proj.bias"],
    "feed_forward_norm.weight": ["post_attention_layernorm.weight"],
    "feed_forward.gate_up.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "feed_forward.gate_up.bias": ["mlp.gate_proj.bias", "mlp.up_proj.bias"],
    "feed_forward.down.weight": ["mlp.down_proj.weight"],
    "feed_forward.down.bias": ["mlp.down_proj.bias"],
}
_MODEL = {
    "embedding_VD": ["model.embed_tokens.weight"],
    "norm.weight": ["model.norm.weight"],
    "head_VD": ["lm_head.weight"],
}


def load_decoder(
    architecture: Architecture,
    tensor: Callable[[str], Tensor],
    *,
    context: int,
    dtype: torch.dtype,
) -> Decoder:
    """Return the model, each tensor read once, straight into its place: never twice the memory.

    `tensor` returns the tensor with a name of Hugging Face's, in any dtype, or raises WeightsError.
    """
    decoder = Decoder(architecture, context=context, dtype=dtype).requires_grad_(False).eval()
    for name, parameter in decoder.named_parameters():
        sources = _sources(name)
        places = parameter.split(_rows(architecture, sources) or len(parameter))
        for source, place in zip(sources, places, strict=True):
            part = tensor(source)
            if part.shape != place.shape:
                raise WeightsError(
                    f"{source} has shape {tuple(part.shape)}, the model's config says "
                    f"{tuple(place.shape)}"
                )
            place.copy_(part)
        if not parameter.sum(dtype=torch.float32).isfinite():  # one pass, and no mask in memory
            raise WeightsError(f"{name} holds values that are not finite")
    return decoder


def tensor_names(decoder: Decoder) -> set[str]:
    """Return Hugging Face's names of all tensors that the model is made of."""
    return {source for name, _ in decoder.named_parameters() for source in _sources(name)}


def _rows(architecture: Architecture, sources: list[str]) -> list[int]:
    """Return the rows of each of several tensors that we keep as one; nothing for a single one."""
    attention, part = architecture.layers[0].attention, architecture.layers[0].feed_forward
    cached = attention.kv_heads * attention.head_dim
    rows: dict[int, list[int]] = {
        1: [],
        2: [part.width] * 2,
        3: [attention.heads * attention.head_dim, cached, cached],
    }
    return rows[len(sources)]


def _sources(name: str) -> list[str]:
    if name in _MODEL:
        return _MODEL[name]
    _, index, rest = name.split(".", 2)
    return [f"model.layers.{index}.{source}" for source in _LAYER[rest]]
