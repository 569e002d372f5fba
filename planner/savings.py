"""What each innovation saves, against the same model without it.

The model without it is a real record: dense of equal size, or with full multi-head attention. Both
go through the same arithmetic, so a saving is a difference of two exact counts, or of two modelled
times where the map speaks of cost.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from model_code.common.architecture import Architecture, Attention, FeedForward
from planner.load import Load
from planner.roofline import Demand

# What the map claims of each, as shares. None: it names no number.
CLAIMS: dict[tuple[str, str], tuple[float, float] | None] = {
    ("moe", "parameters a token"): (0.85, 0.85),
    ("moe", "bytes read a decode step"): (0.60, 0.85),
    ("mla", "cache bytes a token"): None,
    ("mla", "cache bytes a token, keys as wide as they are"): None,
    ("gqa", "attention operations a decode step"): (0.25, 0.40),
    ("gqa", "cache bytes a token"): None,
    ("sliding_window", "cache bytes of a sequence"): (0.75, 0.75),
    ("sliding_window", "attention operations a decode step"): None,
    ("normalization", "parameters"): None,
    ("all", "bytes read a decode step"): (0.60, 0.85),
}


@dataclass(frozen=True, kw_only=True)
class Saving:
    """One quantity with and without an innovation; negative when it costs.

    Args:
        claim: Lowest and highest share that the map claims, or None.
        confidence: computed (exact counts) or modelled (expectations among them).
    """

    slug: str
    quantity: str
    without: float
    with_it: float
    formula: str
    inputs: dict[str, Any]
    confidence: str

    @property
    def saved(self) -> float:
        """The share that is saved."""
        return 1 - self.with_it / self.without

    @property
    def claim(self) -> tuple[float, float] | None:
        """What the map says."""
        return CLAIMS[(self.slug, self.quantity)]

    @property
    def reached(self) -> bool | None:
        """Whether the lowest claim is reached, to the whole percent that it is given in."""
        return None if self.claim is None else round(self.saved, 2) >= self.claim[0]


def dense(architecture: Architecture) -> Architecture:
    """Return the model with one dense feed-forward part as large as all experts of a layer."""

    def part(before: FeedForward) -> FeedForward:
        if not before.experts:
            return before
        width = before.experts * before.width + before.shared_width
        return FeedForward(width=width, activation=before.activation)

    return _with(architecture, feed_forward=part)


def multi_head(architecture: Architecture) -> Architecture:
    """Return the model with keys and values for every head, in place of groups or of a latent."""

    def attention(before: Attention) -> Attention:
        return dataclasses.replace(
            before,
            kv_heads=before.heads,
            head_dim=before.value_dim if before.latent_rank else before.head_dim,
            latent_rank=None,
            query_rank=None,
            rope_dim=0,
        )

    return _with(architecture, attention=attention)


def full_attention(architecture: Architecture) -> Architecture:
    """Return the model with no window in any layer."""
    return _with(architecture, attention=lambda before: dataclasses.replace(before, window=None))


def _with(architecture: Architecture, **change: Any) -> Architecture:
    made: dict[Any, Any] = {}
    for layer in architecture.kinds:
        made[layer] = dataclasses.replace(
            layer, **{name: new(getattr(layer, name)) for name, new in change.items()}
        )
    return dataclasses.replace(
        architecture, layers=tuple(made[layer] for layer in architecture.layers)
    )


def attention_flops(architecture: Architecture, context: int) -> int:
    """Return the operations of attention alone, projections with it, for one decoded token."""
    return sum(
        count
        * (
            2 * layer.attention.matrix_parameters(architecture.hidden)
            + layer.attention.pairs(context, context + 1)
            * layer.attention.flops_per_pair(absorbed=True)
        )
        for layer, count in architecture.kinds.items()
    )


def savings(architecture: Architecture, load: Load) -> list[Saving]:
    """Return what each innovation that the model has saves at this load."""
    found: list[Saving] = []
    slugs = architecture.innovations
    context, batch = load.context, load.concurrent

    def add(slug: str, quantity: str, without: float, with_it: float, formula: str, **inputs: Any):  # type: ignore[no-untyped-def]
        modelled = quantity == "bytes read a decode step"
        found.append(
            Saving(
                slug=slug,
                quantity=quantity,
                without=without,
                with_it=with_it,
                formula=formula,
                inputs=inputs,
                confidence="modelled" if modelled else "computed",
            )
        )

    if "moe" in slugs:
        part = next(x.feed_forward for x in architecture.layers if x.feed_forward.experts)
        add("moe", "parameters a token", architecture.parameters, architecture.active_parameters,
            "active / total", experts=part.experts, routed=part.active,
            shared_width=part.shared_width)  # fmt: skip
        add("moe", "bytes read a decode step", _read(dense(architecture), load, batch),
            _read(architecture, load, batch), "weights touched + cache of the batch",
            batch=batch, context=context, dtype=load.dtype)  # fmt: skip
    if "mla" in slugs:
        first = architecture.layers[0].attention
        plain = multi_head(architecture)
        values = first.heads * (first.head_dim + first.value_dim) * len(architecture.layers)
        size = architecture.kv_bytes_per_token("bf16")
        add("mla", "cache bytes a token", plain.kv_bytes_per_token("bf16"), size,
            "layers x (latent + rope) against layers x 2 x heads x value width",
            layers=len(architecture.layers), latent=first.latent_rank, rope=first.rope_dim,
            heads=first.heads, width=first.value_dim)  # fmt: skip
        add("mla", "cache bytes a token, keys as wide as they are", 2 * values, size,
            "layers x (latent + rope) against layers x heads x (key + value width)",
            heads=first.heads, keys=first.head_dim, values=first.value_dim)  # fmt: skip
    if "gqa" in slugs:
        plain, first = multi_head(architecture), architecture.layers[0].attention
        add("gqa", "attention operations a decode step", attention_flops(plain, context),
            attention_flops(architecture, context), "projections + scores, heads against kv_heads",
            heads=first.heads, kv_heads=first.kv_heads, context=context)  # fmt: skip
        add("gqa", "cache bytes a token", plain.kv_bytes_per_token("bf16"),
            architecture.kv_bytes_per_token("bf16"), "kv_heads / heads",
            heads=first.heads, kv_heads=first.kv_heads)  # fmt: skip
    if "sliding_window" in slugs:
        plain = full_attention(architecture)
        windows = sorted({layer.attention.window or 0 for layer in architecture.layers} - {0})
        for tokens in sorted({context, 8192, 32_768}):
            if tokens <= max(architecture.context, context):
                add("sliding_window", "cache bytes of a sequence", plain.kv_bytes(tokens),
                    architecture.kv_bytes(tokens), "min(tokens, window) in sliding layers",
                    tokens=tokens, windows=windows, sliding_layers=len(slugs["sliding_window"]),
                    layers=len(architecture.layers))  # fmt: skip
        add("sliding_window", "attention operations a decode step",
            attention_flops(plain, context), attention_flops(architecture, context),
            "projections + scores of min(context, window) keys", context=context)  # fmt: skip
    if "normalization" in slugs:
        extra = _norm_parameters(architecture)
        add("normalization", "parameters", architecture.parameters - extra,
            architecture.parameters, "norms of queries and keys, and second norms of a layer",
            extra_parameters=extra)  # fmt: skip
    if slugs.keys() & {"moe", "mla", "gqa", "sliding_window"}:
        plain = dense(multi_head(full_attention(architecture)))
        add("all", "bytes read a decode step", _read(plain, load, batch),
            _read(architecture, load, batch), "dense, multi-head and full against what it has",
            batch=batch, context=context, dtype=load.dtype)  # fmt: skip
    return found


def _read(architecture: Architecture, load: Load, batch: int) -> float:
    demand = Demand(architecture, dtype=load.dtype, kv_dtype=load.kv_dtype, context=load.context)
    return demand.touched_bytes(batch) + batch * demand.kv


def _norm_parameters(architecture: Architecture) -> int:
    """Return the parameters that norms take beyond two a layer."""
    extra = 0
    for layer in architecture.layers:
        bare = dataclasses.replace(layer.attention, qk_norm="none")
        hidden = architecture.hidden
        extra += layer.attention.vector_parameters(hidden) - bare.vector_parameters(hidden)
        extra += layer.norm_parameters(hidden) - 2 * hidden
    return extra
