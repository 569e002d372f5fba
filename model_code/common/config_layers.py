"""Turns the fields of a config.json into layers, by the rules of the model's family."""

import math
from collections.abc import Mapping
from typing import Any

from model_code.common.config_fields import Fields
from model_code.common.families import Family
from model_code.common.layers import Attention, FeedForward, Layer, Rope, Router

ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu", "relu", "swish")
LAYER_TYPES = ("full_attention", "sliding_attention")
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def read_layers(family: Family, fields: Fields) -> tuple[Layer, ...]:
    """Return every layer of the model, in order."""
    count = fields.whole("num_hidden_layers", high=4096)
    feed_forwards = _feed_forwards(family, fields, count)
    windows = _windows(family, fields, count)
    full, sliding = _ropes(family, fields)
    attentions: dict[int | None, Attention] = {
        window: _attention(family, fields, window=window, rope=sliding if window else full)
        for window in set(windows)
    }
    return tuple(
        Layer(attention=attentions[window], feed_forward=part, norms=family.norms)
        for window, part in zip(windows, feed_forwards, strict=True)
    )


def _attention(family: Family, fields: Fields, *, window: int | None, rope: Rope) -> Attention:
    heads = fields.whole("num_attention_heads", high=65_536)
    hidden = fields.whole("hidden_size")
    biased = fields.flag("attention_bias")
    if not family.mla and family.bias == "none" and biased:
        raise fields.error("attention_bias is true, but this family has no attention biases")
    if family.fixed_bias and not biased:
        raise fields.error("attention_bias is false, but this family always has those biases")
    kv_heads = fields.optional_whole("num_key_value_heads", high=65_536) or heads
    if heads % kv_heads:
        raise fields.error(
            f"num_key_value_heads is {kv_heads}; it must divide num_attention_heads, {heads}"
        )
    shape: dict[str, Any]
    if family.mla:
        if kv_heads != heads:
            raise fields.error(
                f"num_key_value_heads is {kv_heads}; latent attention shares one latent between "
                f"all heads, so it must be num_attention_heads, {heads}"
            )
        rope_dim = fields.whole("qk_rope_head_dim", high=65_536)
        head_dim = fields.whole("qk_nope_head_dim", high=65_536) + rope_dim
        shape = {
            "value_dim": fields.whole("v_head_dim", high=65_536),
            "latent_rank": fields.whole("kv_lora_rank"),
            "query_rank": fields.optional_whole("q_lora_rank"),
            "rope_dim": rope_dim,
        }
    else:
        head_dim = _head_dim(fields, hidden, heads)
        shape = {"value_dim": head_dim}
    scalar = fields.number("query_pre_attn_scalar") if family.unit_offset else None
    use_qk_norm = family.optional_qk_norm and fields.flag("use_qk_norm")
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=(scalar or head_dim) ** -0.5 * (_yarn_correction(rope) if family.mla else 1.0),
        rope=rope,
        window=window,
        bias_qkv=biased,
        bias_output=biased and family.bias == "all",
        qk_norm="head" if use_qk_norm else family.qk_norm,
        sinks=family.sinks,
        softcap=fields.number("attn_logit_softcapping") if family.unit_offset else None,
        **shape,
    )


def _yarn_correction(rope: Rope) -> float:
    """Return what stretched positions multiply MLA's scores by (DeepSeek-V2, section 3.1.4)."""
    values = dict(rope.parameters)
    factor, weight = values.get("factor", 1.0), values.get("mscale_all_dim", 0.0)
    if rope.kind == "default" or isinstance(factor, tuple) or isinstance(weight, tuple):
        return 1.0
    return (0.1 * weight * math.log(factor) + 1.0) ** 2 if factor > 1 else 1.0


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    given = fields.optional_whole("head_dim", high=65_536)
    if given is not None:
        return given
    if hidden % heads:
        raise fields.error(
            f"num_attention_heads is {heads}; it must divide hidden_size, {hidden}, "
            "or head_dim must say the size of a head"
        )
    return hidden // heads


def _windows(family: Family, fields: Fields, count: int) -> list[int | None]:
    """Return the window of each layer, None where it sees everything."""
    if family.windows == "none":
        return [None] * count
    window = fields.optional_whole("sliding_window", high=2**30)
    if family.gated_windows and not fields.flag("use_sliding_window"):
        window = None
    if family.windows == "all":
        return [window] * count
    kinds = fields.choices("layer_types", LAYER_TYPES, length=count)
    if kinds is None and family.windows == "late":
        first = fields.optional_whole("max_window_layers", low=0) or 0
        kinds = [LAYER_TYPES[layer >= first and window is not None] for layer in range(count)]
    elif kinds is None:
        period = fields.optional_whole("sliding_window_pattern") or family.pattern
        kinds = [LAYER_TYPES[(layer + 1) % period != 0] for layer in range(count)]
    else:
        fields.take("sliding_window_pattern")
    if "sliding_attention" in kinds and window is None:
        raise fields.error("layer_types has sliding_attention, but sliding_window is not given")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _ropes(family: Family, fields: Fields) -> tuple[Rope, Rope]:
    """Return the rotary embedding of full layers and of sliding ones."""
    given = fields.object("rope_parameters") or {}
    if isinstance(given.get("full_attention"), dict):  # transformers 5 writes one for each kind
        full, local = given["full_attention"], given.get("sliding_attention") or {}
    else:
        full, local = given, {}
    scaling = fields.object("rope_scaling") or {}
    theta = fields.number("rope_theta") or 10_000.0
    fraction = fields.number("partial_rotary_factor", high=1.0) or 1.0
    interleaved = family.mla and fields.flag("rope_interleave")
    base = Rope(theta=theta, fraction=fraction, interleaved=interleaved)
    original = fields.optional_whole("original_max_position_embeddings", high=2**30)
    if original is not None and scaling | full:  # Phi-3 gives it outside of the object
        scaling = {"original_max_position_embeddings": original, **scaling}
    full_rope = _rope(fields, base, scaling | full)
    if not family.pattern:
        return full_rope, full_rope
    # Where layers alternate, scaling stretches the full ones, except in gpt-oss (one for all).
    if family.sinks:
        return full_rope, full_rope
    local_theta = fields.number("rope_local_base_freq") if family.local_theta else None
    return full_rope, _rope(fields, Rope(theta=local_theta or theta, fraction=fraction), local)


def _rope(fields: Fields, base: Rope, values: Mapping[str, Any]) -> Rope:
    """Return `base` with what a rope_scaling or rope_parameters object says."""
    inner = Fields(values, source=fields.error("rope parameters").args[0])
    kind = values.get("rope_type", values.get("type", "default"))
    kind = {"su": "longrope"}.get(kind, kind) if isinstance(kind, str) else kind
    if kind not in ROPE_KINDS:
        raise inner.error(f"rope_type is {kind!r:.60}; allowed is {', '.join(ROPE_KINDS)}")
    parameters: list[tuple[str, float | bool | tuple[float, ...]]] = []
    for key, value in sorted(values.items(), key=lambda item: str(item[0])):
        if key in ("rope_type", "type", "rope_theta", "partial_rotary_factor") or value is None:
            continue
        if isinstance(value, list) and all(type(entry) in (int, float) for entry in value):
            parameters.append((key, tuple(value)))
        elif isinstance(value, bool | int | float):
            parameters.append((key, value))
        else:
            raise inner.error(f"{key} is {value!r:.60}; allowed is a number or a list of numbers")
    return Rope(
        theta=inner.number("rope_theta") or base.theta,
        fraction=inner.number("partial_rotary_factor", high=1.0) or base.fraction,
        kind=kind,
        interleaved=base.interleaved,
        parameters=tuple(parameters),
    )


def _feed_forwards(family: Family, fields: Fields, count: int) -> list[FeedForward]:
    activation = (
        fields.choice("hidden_act", ACTIVATIONS)
        if not family.unit_offset
        else fields.choice("hidden_activation", ACTIVATIONS)
    ) or "silu"
    if family.unit_offset:
        fields.choice("hidden_act", ACTIVATIONS)  # older Gemma files repeat it there
    bias = fields.flag("mlp_bias")
    if bias and not family.mlp_bias:
        raise fields.error("mlp_bias is true, but this family has no biases there")
    width = fields.whole("intermediate_size")
    dense = FeedForward(width=width, bias=bias, activation=activation)
    if family.experts == "none":
        return [dense] * count
    name, experts = _experts(family, fields)
    active = fields.whole("num_experts_per_tok", high=65_536)
    if active > experts:
        raise fields.error(f"num_experts_per_tok is {active}; it cannot exceed {name}, {experts}")
    inner = width if family.experts == "local" else fields.whole("moe_intermediate_size")
    shared = 0
    if family.experts == "deepseek":
        shared = fields.optional_whole("n_shared_experts", low=0, high=4096) or 0
    sparse = FeedForward(
        width=inner,
        experts=experts,
        active=active,
        shared_width=shared * inner,
        bias=bias,
        expert_bias=family.sinks,
        router=_router(family, fields, experts=experts),
        activation=activation,
        slope=(fields.number("swiglu_alpha") or 1.0) if family.sinks else 1.0,
        clamp=fields.number("swiglu_limit") if family.sinks else None,
    )
    return [sparse if is_sparse else dense for is_sparse in _sparse(family, fields, count)]


def _experts(family: Family, fields: Fields) -> tuple[str, int]:
    """Return the count of routed experts and its field, which transformers has renamed twice."""
    own = {"local": "num_local_experts", "qwen": "num_experts", "deepseek": "n_routed_experts"}
    names = [own[family.experts], "num_local_experts", "num_experts"]
    given = {name: fields.whole(name, high=65_536) for name in names if fields.has(name)}
    if len(set(given.values())) > 1:
        raise fields.error(f"{' and '.join(given)} differ; they are two names of one number")
    return next(iter(given.items())) if given else (own[family.experts], fields.whole(names[0]))


def _router(family: Family, fields: Fields, *, experts: int) -> Router:
    groups, kept = 1, 1
    if family.experts == "deepseek":
        groups = fields.optional_whole("n_group", high=65_536) or 1
        kept = fields.optional_whole("topk_group", high=65_536) or 1
    if experts % groups or kept > groups:
        raise fields.error(
            f"n_group is {groups} and topk_group {kept}; n_group must divide the {experts} experts "
            "and topk_group cannot exceed it"
        )
    method = fields.choice("topk_method", ("greedy", "group_limited_greedy", "noaux_tc"))
    if method == "greedy":  # the groups that DeepSeek-V2-Lite names are not used then
        groups, kept = 1, 1
    scoring = fields.choice("scoring_func", ("softmax", "sigmoid"))
    return Router(
        scoring="sigmoid" if scoring == "sigmoid" else "softmax",
        normalize=fields.flag("norm_topk_prob"),
        scale=fields.number("routed_scaling_factor") or 1.0,
        groups=groups,
        kept_groups=kept,
        bias=family.sinks,
        correction=family.router_buffer,
    )


def _sparse(family: Family, fields: Fields, count: int) -> list[bool]:
    """Return which layers hold experts."""
    if family.experts == "qwen":
        step = fields.optional_whole("decoder_sparse_step") or 1
        only = fields.take("mlp_only_layers") or []
        if not isinstance(only, list) or not all(type(entry) is int for entry in only):
            raise fields.error("mlp_only_layers is not a list of layer numbers")
        return [layer not in only and (layer + 1) % step == 0 for layer in range(count)]
    if family.experts == "deepseek":
        if fields.optional_whole("moe_layer_freq") not in (None, 1):
            raise fields.error(
                "moe_layer_freq is not 1; every layer after the dense ones has experts"
            )
        first = fields.optional_whole("first_k_dense_replace", low=0)
        if first is None:
            raise fields.error("first_k_dense_replace is missing; it counts the dense layers")
        if first > count:
            raise fields.error(
                f"first_k_dense_replace is {first}; it cannot exceed num_hidden_layers, {count}"
            )
        return [layer >= first for layer in range(count)]
    return [True] * count
