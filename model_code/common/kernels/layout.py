"""A decoder's layers as layer.h has them: the same fields in the same order, 8 bytes each."""

import ctypes

from torch import Tensor

from model_code.common.kernels import KINDS, Weight, inputs_of

POINTER, INT64, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Vector(ctypes.Structure):
    """See layer.h; without numbers it is not there."""

    _fields_ = (("numbers", POINTER), ("kind", INT64))

    @classmethod
    def of(cls, tensor: Tensor | None) -> "Vector":
        """Point to a contiguous tensor of float32 or bfloat16."""
        return cls() if tensor is None else cls(tensor.data_ptr(), KINDS[tensor.dtype])


class Matrix(ctypes.Structure):
    """See layer.h."""

    _fields_ = (
        ("numbers", POINTER), ("scales", POINTER), ("bias", Vector),
        ("kind", INT64), ("outputs", INT64), ("inputs", INT64),
    )  # fmt: skip

    @classmethod
    def of(cls, weight: Weight, bias: Tensor | None = None) -> "Matrix":
        """Point to a weight as model_code/common/kernels takes it."""
        numbers = weight[0]
        inputs = inputs_of(weight)
        scales = weight[1].data_ptr() if len(weight) > 1 else None
        return cls(
            numbers.data_ptr(), scales, Vector.of(bias), KINDS[numbers.dtype],
            len(numbers), inputs,
        )  # fmt: skip


class Norms(ctypes.Structure):
    """See layer.h."""

    _fields_ = (("before", Vector), ("after", Vector), ("after_sum", INT64))


class SelfAttention(ctypes.Structure):
    """See layer.h."""

    _fields_ = (
        ("norms", Norms), ("qkv", Matrix), ("output", Matrix),
        ("heads", INT64), ("kv_heads", INT64), ("width", INT64),
        ("scale", DOUBLE), ("softcap", DOUBLE),
        ("query_norm", Vector), ("key_norm", Vector), ("all_heads", INT64),
        ("cosine", Vector), ("sine", Vector), ("turned", INT64),
    )  # fmt: skip


class Gated(ctypes.Structure):
    """See layer.h."""

    _fields_ = (("gate_up", Matrix), ("down", Matrix), ("gelu", INT64))


class Mixture(ctypes.Structure):
    """See layer.h."""

    _fields_ = (
        ("router", Matrix), ("correction", POINTER),
        ("experts", INT64), ("chosen", INT64), ("groups", INT64), ("kept_groups", INT64),
        ("best_of_group", INT64), ("sigmoid", INT64), ("normalize", INT64), ("scale", DOUBLE),
    )  # fmt: skip


class Layer(ctypes.Structure):
    """See layer.h."""

    _fields_ = (
        ("attention", SelfAttention), ("norms", Norms), ("gated", Gated), ("mixture", Mixture),
        ("shared", Gated),
    )  # fmt: skip


class Kept(ctypes.Structure):
    """See layer.h."""

    _fields_ = (("keys", POINTER), ("values", POINTER), ("kind", INT64), ("length", INT64))


class Step(ctypes.Structure):
    """See layer.h."""

    _fields_ = (
        ("layers", POINTER), ("kept", POINTER),
        ("layer_count", INT64), ("rows", INT64), ("width", INT64), ("first_slot", INT64),
        ("tokens", INT64), ("positions", POINTER), ("x", POINTER), ("states", POINTER),
        ("choices", POINTER),
        ("most_chosen", INT64), ("norm", Vector), ("eps", DOUBLE), ("offset", DOUBLE),
        ("threads", INT64),
    )  # fmt: skip
