"""What a decoder is made of, for its step in one call; or that it has parts which that lacks.

It lacks latent attention, sinks, experts with biases or out of a cache, and activations but SiLU
and GELU by tanh. Whatever has been put in the place of a module of ours is not ours either.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from model_code.common.attention import GroupedQueryAttention
from model_code.common.feed_forward import GatedFeedForward
from model_code.common.kernels import KINDS, layout
from model_code.common.linear import Linear
from model_code.common.norm import PreNorm, RMSNorm
from model_code.common.quantize import Int4Weight, Int8Weight
from model_code.common.rotary import Rotary

_GELU = {"silu": False, "swish": False, "gelu_pytorch_tanh": True}


class OtherPartError(Exception):
    """The decoder has a part that the step in one call does not compute."""


class Part(NamedTuple):
    """Something that a module has, where it was found: another one there makes a table stale."""

    place: Mapping[str, Any]
    name: str
    found: object


def parts_of(decoder: nn.Module) -> list[Part]:
    """Return the modules and parameters of a decoder, these by their addresses."""
    found = []
    for module in decoder.modules():
        found += [Part(module._modules, name, each) for name, each in module._modules.items()]
        for place in (module._parameters, module._buffers):
            found += [
                Part(place, name, each.data_ptr())
                for name, each in place.items() if each is not None
            ]  # fmt: skip
    return found


def stale(parts: list[Part]) -> bool:
    """Whether one of them is no longer what or where it was."""
    for place, name, found in parts:
        now = place.get(name)
        if now is not found and (not isinstance(now, Tensor) or now.data_ptr() != found):
            return True
    return False


def layer(block: Any, rotary: Rotary) -> layout.Layer:
    """Return one layer.

    Raises:
        OtherPartError: It has a part that the step in one call does not compute.
    """
    part = block.feed_forward
    dense = type(part) is GatedFeedForward
    feed_forward = {"gated": _gated(part)} if dense else _mixture(part)
    return layout.Layer(
        attention=_attention(block.attention, block.attention_norms, rotary),
        norms=_norms(block.feed_forward_norms), **feed_forward,
    )  # fmt: skip


def _attention(part: Any, norms: nn.Module, rotary: Rotary) -> layout.SelfAttention:
    if type(part) is not GroupedQueryAttention or part.sinks_N is not None:
        raise OtherPartError
    qk_norm = part.qk_norm
    if qk_norm is not None:
        from model_code.normalization.model import QueryKeyNorm

        _expect(qk_norm, QueryKeyNorm)
    return layout.SelfAttention(
        norms=_norms(norms), qkv=_matrix(part.qkv), output=_matrix(part.output),
        heads=part.heads, kv_heads=part.kv_heads, width=part.head_dim,
        scale=part.rules.scale, softcap=part.rules.softcap or 0.0,
        query_norm=_norm(qk_norm and qk_norm.query), key_norm=_norm(qk_norm and qk_norm.key),
        all_heads=qk_norm is not None and qk_norm.all_heads,
        cosine=_vector(rotary.cos_TF), sine=_vector(rotary.sin_TF), turned=rotary.turned,
    )  # fmt: skip


def _norms(module: Any) -> layout.Norms:
    if type(module) is PreNorm:
        return layout.Norms(before=_norm(module.before))
    from model_code.normalization.model import Residual

    _expect(module, Residual)
    return layout.Norms(
        before=_norm(module.before), after=_norm(module.after),
        after_sum=module.placement == "post",
    )  # fmt: skip


def _norm(module: Any) -> layout.Vector:
    if module is None:
        return layout.Vector()
    _expect(module, RMSNorm)
    return _vector(module.weight)


def _gated(part: Any) -> layout.Gated:
    rules = part.part
    if rules.activation not in _GELU or rules.clamp is not None:
        raise OtherPartError
    return layout.Gated(
        gate_up=_matrix(part.gate_up), down=_matrix(part.down), gelu=_GELU[rules.activation]
    )


def _mixture(part: Any) -> dict[str, Any]:
    from model_code.moe.model import Experts, MixtureOfExperts, Router

    _expect(part, MixtureOfExperts)
    _expect(part.router, Router)
    _expect(part.experts, Experts)
    weights = part.experts.weights()
    if weights is None:
        raise OtherPartError
    router, rules = part.router, part.router.choice
    correction = None if router.correction is None else router.correction.data_ptr()
    found = {
        "gated": layout.Gated(*(layout.Matrix.of(_checked(each)) for each in weights)),
        "mixture": layout.Mixture(
            router=layout.Matrix.of(_checked((router.weight,)), router.bias),
            correction=correction, experts=len(router.weight), chosen=rules.chosen,
            groups=rules.groups, kept_groups=rules.kept_groups,
            best_of_group=rules.best_of_group, sigmoid=rules.sigmoid,
            normalize=rules.normalize, scale=rules.scale,
        ),
    }  # fmt: skip
    if part.shared is not None:
        _expect(part.shared, GatedFeedForward)
        found["shared"] = _gated(part.shared)
    return found


def _matrix(linear: Any) -> layout.Matrix:
    _expect(linear, Linear)
    if linear.packed is None:
        return layout.Matrix.of(_checked((linear.weight,)), linear.bias)
    if type(linear.packed) not in (Int8Weight, Int4Weight):
        raise OtherPartError
    return layout.Matrix.of(linear.packed.tensors, linear.bias)


def _vector(tensor: Tensor) -> layout.Vector:
    return layout.Vector.of(_checked((tensor,))[0])


def _checked(weight: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Refuse what C++ would read wrongly."""
    for tensor in weight:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
        if not plain or tensor.dtype not in KINDS or not tensor.is_contiguous():
            raise OtherPartError
    return weight


def _expect(module: object, kind: type) -> None:
    if type(module) is not kind:
        raise OtherPartError
