"""One token's attention on a cache in C++; model_code/common/attention.py does it with torch's.

torch's fused kernel gives a sequence's heads to one thread, and goes through bfloat16 slowly where
the CPU has no instructions for it. Here threads share out the positions. Latents (MLA) are keys
and, without their last numbers, values: they are read once for both.

Shape letters: B sequences, T cached positions, N query heads, K key/value heads, W width of a key,
R of a value.
"""

import ctypes

import torch
from torch import Tensor

from model_code.common import kernels
from model_code.common.kernels import KINDS

_STORED = (torch.float32, torch.bfloat16)
_POINTER, _INT64, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class _OneToken(ctypes.Structure):
    """See one_token.h."""

    _fields_ = (
        ("queries", _POINTER), ("keys", _POINTER), ("values", _POINTER), ("mask", _POINTER),
        ("out", _POINTER), ("kind", _INT64), ("sequences", _INT64), ("kv_heads", _INT64),
        ("group", _INT64), ("positions", _INT64), ("width", _INT64), ("value_width", _INT64),
        ("keys_of_slot", _INT64), ("keys_of_head", _INT64), ("values_of_slot", _INT64),
        ("values_of_head", _INT64), ("value_apart", _INT64), ("scale", _DOUBLE),
        ("threads", _INT64),
    )  # fmt: skip


def fit(keys_BKTW: Tensor, values_BKTR: Tensor) -> bool:
    """Whether `attend` can read these: on the CPU, a head's keys side by side."""
    plain = keys_BKTW.dtype == values_BKTR.dtype and keys_BKTW.dtype in _STORED
    steps = keys_BKTW.stride()[2:] == (keys_BKTW.shape[3], 1) and values_BKTR.stride(3) == 1
    return plain and steps and kernels.usable(keys_BKTW, values_BKTR)


def attend(
    query_BNW: Tensor, keys_BKTW: Tensor, values_BKTR: Tensor, mask_BT: Tensor | None, *,
    scale: float,
) -> Tensor:  # fmt: skip
    """Return what the heads of one token each see of their sequence: [B, N, R] float32.

    Args:
        query_BNW: Any floats. N is a multiple of K: neighbours share their keys.
        keys_BKTW: What `fit` accepts, with the values.
        values_BKTR: May be the keys without their last numbers.
        mask_BT: Bool: which positions are seen. None: all.
        scale: What scores are multiplied by.

    Raises:
        ValueError: Shapes are not these, or there are no positions.
    """
    B, N, W = query_BNW.shape
    K, T, R = values_BKTR.shape[1:]
    right = keys_BKTW.shape == (B, K, T, W) and len(values_BKTR) == B and T > 0 and not N % K
    if not right or (mask_BT is not None and mask_BT.shape != (B, T)):
        raise ValueError(
            f"queries {tuple(query_BNW.shape)}, keys {tuple(keys_BKTW.shape)}, values "
            f"{tuple(values_BKTR.shape)} and mask {mask_BT if mask_BT is None else mask_BT.shape} "
            "do not go together"
        )
    queries_BNW, out_BNR = query_BNW.float().contiguous(), torch.empty(B, N, R)
    mask_BT = None if mask_BT is None else mask_BT.bool().contiguous()
    library = kernels.loaded()
    assert library is not None  # noqa: S101  the caller asked fit()
    library.isomorph_attend_one_token(
        ctypes.byref(
            _OneToken(
                queries=queries_BNW.data_ptr(), keys=keys_BKTW.data_ptr(),
                values=values_BKTR.data_ptr(), mask=None if mask_BT is None else mask_BT.data_ptr(),
                out=out_BNR.data_ptr(), kind=KINDS[keys_BKTW.dtype], sequences=B, kv_heads=K,
                group=N // K, positions=T, width=W, value_width=R,
                keys_of_slot=keys_BKTW.stride(0), keys_of_head=keys_BKTW.stride(1),
                values_of_slot=values_BKTR.stride(0), values_of_head=values_BKTR.stride(1),
                value_apart=values_BKTR.stride(2), scale=scale, threads=torch.get_num_threads(),
            )
        )
    )  # fmt: skip
    return out_BNR
