"""Which tensors of a Hugging Face checkpoint each of our parameters is made of, for every family.

Some of ours hold several of theirs, one below the other (query, key and value), or one for each
expert. Some have their numbers in another order; `Order` says which, and can undo it.

Shape letters: N heads, H head width, E experts, D model width, F inner width of an expert.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model_code.common.architecture import Architecture, Layer


class Order(Protocol):
    """A checkpoint's order of a tensor's numbers, there and back."""

    def ours(self, theirs: Tensor) -> Tensor:
        """Return the checkpoint's tensor in our order."""
        ...

    def theirs(self, ours: Tensor) -> Tensor:
        """Return our tensor in the checkpoint's order."""
        ...

    def shape(self, ours: torch.Size) -> torch.Size:
        """Return the shape of the checkpoint's tensor, given ours."""
        ...


class SameShape:
    """What orders have in common whose numbers only change places."""

    def shape(self, ours: torch.Size) -> torch.Size:
        """See `Order`."""
        return ours


class Same(SameShape):
    """No difference."""

    def ours(self, theirs: Tensor) -> Tensor:
        """See `Order`."""
        return theirs

    def theirs(self, ours: Tensor) -> Tensor:
        """See `Order`."""
        return ours


@dataclass(frozen=True)
class PairedRows(SameShape):
    """Rows that RoPE turns together are side by side there, and half a rotated part apart here.

    Args:
        heads: Into how many the rows are divided.
        turned: The last rows of each that are rotated.
    """

    heads: int
    turned: int

    def ours(self, theirs: Tensor) -> Tensor:
        """See `Order`."""
        return self._each(theirs, lambda rows: rows.unflatten(1, (-1, 2)).transpose(1, 2))

    def theirs(self, ours: Tensor) -> Tensor:
        """See `Order`."""
        return self._each(ours, lambda rows: rows.unflatten(1, (2, -1)).transpose(1, 2))

    def _each(self, tensor: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        heads = tensor.unflatten(0, (self.heads, -1))
        plain, rows = heads.tensor_split([heads.shape[1] - self.turned], dim=1)
        return torch.cat([plain, turn(rows).flatten(1, 2)], dim=1).flatten(0, 1)


@dataclass(frozen=True)
class Transposed:
    """gpt-oss: columns are outputs; those of gate and value alternate if they are `paired`."""

    paired: bool

    def ours(self, theirs: Tensor) -> Tensor:
        """[E, I, O] -> [E, O, I], and biases [E, O] -> [E, O]."""
        rows = theirs.mT if theirs.dim() == 3 else theirs
        return rows.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2) if self.paired else rows

    def theirs(self, ours: Tensor) -> Tensor:
        """[E, O, I] -> [E, I, O], and biases [E, O] -> [E, O]."""
        rows = ours.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2) if self.paired else ours
        return rows.mT if rows.dim() == 3 else rows

    def shape(self, ours: torch.Size) -> torch.Size:
        """[E, O, I] -> [E, I, O], and biases [E, O] -> [E, O]."""
        return torch.Size([ours[0], *ours[:0:-1]])


@dataclass(frozen=True)
class Source:
    """One tensor of the checkpoint, and the part of ours that it fills."""

    name: str
    place: Tensor
    order: Order = Same()  # noqa: RUF009


@dataclass(frozen=True)
class Names:
    """What a family calls things.

    Args:
        fused: Whether query, key and value are one tensor, and gate and value too (Phi-3).
        block: The mixture of experts in a layer.
        router: The router in `block`.
        expert: Gate, value and way back of one expert; None where all experts are one tensor.
    """

    fused: bool = False
    block: str = "mlp"
    router: str = "gate"
    expert: tuple[str, str, str] | None = ("gate_proj", "up_proj", "down_proj")


_NAMES = {
    "phi3": Names(fused=True),
    "mixtral": Names(block="block_sparse_moe", expert=("w1", "w3", "w2")),
    "gpt_oss": Names(router="router", expert=None),
}
_NORMS = {
    "pre": ("input_layernorm", "post_attention_layernorm"),
    "reordered": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "sandwich": (
        "input_layernorm", "post_attention_layernorm",
        "pre_feedforward_layernorm", "post_feedforward_layernorm",
    ),
}  # fmt: skip
_MODEL = {
    "embedding_VD": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head_VD": "lm_head.weight",
}


def sources(architecture: Architecture, name: str, tensor: Tensor) -> Iterator[Source]:
    """Yield the checkpoint's tensors that make up our parameter or buffer called `name`."""
    if name in _MODEL:
        yield Source(_MODEL[name], tensor)
        return
    _, index, part, rest = name.split(".", 3)
    layer = architecture.layers[int(index)]
    names = _NAMES.get(architecture.family, Names())
    kinds = {
        "attention": _attention, "attention_norms": _norms, "feed_forward_norms": _norms,
        "feed_forward": _experts if layer.feed_forward.experts else _dense,
    }  # fmt: skip
    for source in kinds[part](layer, names, f"{part}.{rest}", tensor):
        yield Source(f"model.layers.{index}.{source.name}", source.place, source.order)


def _norms(layer: Layer, names: Names, name: str, tensor: Tensor) -> Iterator[Source]:
    part, place, kind = name.split(".")
    found = iter(_NORMS[layer.norms])
    both = layer.norms == "sandwich"
    order = [
        (each, where)
        for each in ("attention_norms", "feed_forward_norms")
        for where in (("before", "after") if both else (place,))
    ]
    theirs = dict(zip(order, found, strict=True))
    yield Source(f"{theirs[part, place]}.{kind}", tensor)


def _attention(layer: Layer, names: Names, name: str, tensor: Tensor) -> Iterator[Source]:
    attention = layer.attention
    _, part, *rest = name.split(".")
    kind = rest[-1] if rest else "weight"
    if part == "qkv":
        queries, cached = attention.heads * attention.head_dim, attention.cached_values // 2
        if names.fused:
            yield Source(f"self_attn.qkv_proj.{kind}", tensor)
            return
        rows = tensor.split([queries, cached, cached])
        for letter, place in zip("qkv", rows, strict=True):
            yield Source(f"self_attn.{letter}_proj.{kind}", place)
        return
    if part == "qk_norm":
        yield Source(f"self_attn.{rest[0][0]}_norm.{kind}", tensor)
        return
    paired = attention.rope.interleaved
    plain = {
        "output": "o_proj.", "query_down": "q_a_proj.", "query_norm": "q_a_layernorm.",
        "query": "q_proj." if attention.query_rank is None else "q_b_proj.",
        "latent": "kv_a_proj_with_mqa.", "latent_norm": "kv_a_layernorm.",
        "expand_NXR": "kv_b_proj.", "sinks_N": "sinks",
    }  # fmt: skip
    order: Order = Same()
    if paired and part in ("query", "latent"):
        order = PairedRows(attention.heads if part == "query" else 1, attention.rope_dim)
    place = tensor.flatten(0, 1) if part == "expand_NXR" else tensor
    word = plain[part]
    yield Source(f"self_attn.{word}{kind if word[-1] == '.' else ''}", place, order)


def _dense(
    layer: Layer, names: Names, name: str, tensor: Tensor, block: str = "mlp"
) -> Iterator[Source]:
    *_, part, kind = name.split(".")
    if part == "down":
        yield Source(f"{block}.down_proj.{kind}", tensor)
    elif names.fused:
        yield Source(f"{block}.gate_up_proj.{kind}", tensor)
    else:
        for half, place in zip(("gate", "up"), tensor.chunk(2), strict=True):
            yield Source(f"{block}.{half}_proj.{kind}", place)


def _experts(layer: Layer, names: Names, name: str, tensor: Tensor) -> Iterator[Source]:
    _, part, kind, *_ = name.split(".")
    if part == "shared":
        yield from _dense(layer, names, name, tensor, f"{names.block}.shared_experts")
    elif part == "router":
        word = {"correction": "e_score_correction_bias"}.get(kind, kind)
        yield Source(f"{names.block}.{names.router}.{word}", tensor)
    elif names.expert is None:
        word = kind.replace("gate_up", "gate_up_proj").replace("down", "down_proj")
        order = Transposed(paired=kind.startswith("gate_up"))
        yield Source(f"{names.block}.experts.{word}", tensor, order)
    else:
        gate, up, down = names.expert
        for expert, place in enumerate(tensor):
            words = [(gate, half) for half in place.chunk(2)[:1]] + [(up, place.chunk(2)[1])]
            for word, half in words if kind == "gate_up" else [(down, place)]:
                yield Source(f"{names.block}.experts.{expert}.{word}.weight", half)
