"""A matrix as a module. Shape letters: R rows of the input, I and O widths of input and output."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.common import kernels
from model_code.common.quantize import Packed, pack

_FEW_ROWS = 16  # of bfloat16; for more, torch's product is faster where the CPU has instructions


class Linear(nn.Module):
    """x times the transposed weight, plus a bias. Its numbers come from a checkpoint.

    Unlike torch.nn.Linear it does not fill itself with random numbers first, which takes longer
    than reading a small model; and it can keep its weight in 8 or 4 bits.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype)) if bias else None
        self.packed: Packed | None = None

    def quantize(self, name: str, quantization: str) -> None:
        """Keep the weight in int8 or int4 from now on, and free its floats."""
        if name == "weight" and self.weight is not None:
            self.packed = pack(self.weight, quantization)
            self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        if self.packed is None:
            assert self.weight is not None  # noqa: S101
            return linear(x, self.weight, self.bias)
        rows = x.reshape(-1, x.shape[-1])
        out = self.packed(rows).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Multiply, in the order that streams the weight fastest.

    For a few float32 rows MKL reads the weight faster as the left factor: a decode step of 8
    sequences takes a quarter less.
    """
    rows = x.numel() // x.shape[-1]
    if _ours_is_faster(rows, x.dtype) and kernels.usable(x, weight_OI):
        floats_RI = x.reshape(rows, -1).float()
        out_RO = kernels.multiply(floats_RI, (weight_OI,)).to(x.dtype)
    elif x.dtype != torch.float32 or rows == 1:
        return functional.linear(x, weight_OI, bias_O)
    else:
        out_RO = (weight_OI @ x.reshape(rows, -1).t()).t()
    out = out_RO.reshape(*x.shape[:-1], -1)
    return out if bias_O is None else out + bias_O


def _ours_is_faster(rows: int, dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return rows <= _FEW_ROWS or not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 and rows == 1
