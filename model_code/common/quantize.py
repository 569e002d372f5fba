"""Weights of 8 or 4 bits for the numbers that a checkpoint holds. What is multiplied stays float.

int8 has one scale an output row: the largest number of the row becomes 127. int4 has a scale and an
offset for each 32 inputs, so that the smallest becomes 0 and the largest 15 (4-bit groups as in
GPTQ, arXiv 2210.17323, section 4, but rounded to the nearest). Embeddings, norms and biases stay as
they are; a head, also one that is the embedding, is int8 in both.

Shape letters: R rows, I inputs, O outputs, G groups of 32 inputs.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from model_code.common import huge_pages, kernels
from model_code.common.errors import SettingsError
from model_code.common.kernels import GROUP

QUANTIZATIONS = ("none", "int8", "int4")
_FEW_ROWS = 16  # more of them are worth turning the weight into floats, where bf16 is fast
_BLOCK = 2048  # outputs that are floats at a time, so that a large weight never is as a whole


class Packed(Protocol):
    """A weight that is not kept in floats."""

    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        ...

    def __call__(self, x_RI: Tensor) -> Tensor:
        """[R, I] -> [R, O], in the dtype of x."""
        ...


@runtime_checkable
class Quantizable(Protocol):
    """A module that can keep some of its parameters in fewer bits."""

    def quantize(self, name: str, quantization: str) -> None:
        """Pack the parameter called `name`, if it is a matrix to pack, and free its floats."""
        ...


class Int8Weight:
    """int8 numbers [O, I] and a float32 scale for each output."""

    def __init__(self, weight_OI: Tensor) -> None:
        self.shape = (weight_OI.shape[0], weight_OI.shape[1])
        self.numbers_OI = huge_pages.advise(torch.empty(self.shape, dtype=torch.int8))
        largest_O = torch.empty(self.shape[0])
        for rows in _blocks(self.shape[0]):
            block = weight_OI[rows].float()
            largest_O[rows] = block.abs().amax(1)
            scale_O1 = _scale(largest_O[rows, None], 127)
            self.numbers_OI[rows] = (block / scale_O1).round_().to(torch.int8)
        self.scale_O = _scale(largest_O, 127)
        self.tensors = self.numbers_OI, self.scale_O

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def __call__(self, x_RI: Tensor) -> Tensor:
        """[R, I] -> [R, O], in the dtype of x."""
        if _through_floats(len(x_RI)):
            return _multiply_dense(x_RI, self)
        found = kernels.multiply(x_RI.float(), self.tensors)
        return found.to(x_RI.dtype)

    def dense(self, rows: slice) -> Tensor:
        """Return some outputs as they count: [.., I] float32."""
        return self.numbers_OI[rows] * self.scale_O[rows, None]

    def embed(self, tokens: Tensor) -> Tensor:
        """Return a row for each token, [..., I] float32: an embedding that is also the head."""
        return self.numbers_OI[tokens] * self.scale_O[tokens, None]


class Int4Weight:
    """int4 numbers, and a bfloat16 scale and offset for each group, as our kernel reads them."""

    def __init__(self, weight_OI: Tensor) -> None:
        self.shape = outputs, inputs = (weight_OI.shape[0], weight_OI.shape[1])
        if not fits_int4(outputs, inputs):
            raise ValueError(
                f"int4 takes multiples of {GROUP} inputs and of 16 outputs, got {self.shape}"
            )
        self.scales_OG2 = torch.empty(outputs, inputs // GROUP, 2, dtype=torch.bfloat16)
        self.nibbles = huge_pages.advise(torch.empty(outputs, inputs // 2, dtype=torch.uint8))
        for rows in _blocks(outputs):
            self._fill(rows, weight_OI[rows].float().unflatten(1, (-1, GROUP)))
        self.tensors = self.nibbles, self.scales_OG2

    def _fill(self, rows: slice, block_OGI: Tensor) -> None:
        low, high = block_OGI.aminmax(dim=2)
        scales = torch.stack([_scale(high - low, 15), low], dim=2).bfloat16()
        scale, offset = scales.float()[..., None].unbind(2)
        numbers = ((block_OGI - offset) / scale).round_().clamp_(0, 15).to(torch.uint8)
        self.scales_OG2[rows] = scales
        pairs = numbers[..., : GROUP // 2] | numbers[..., GROUP // 2 :] << 4
        self.nibbles[rows] = pairs.flatten(1)

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def __call__(self, x_RI: Tensor) -> Tensor:
        """[R, I] -> [R, O], in the dtype of x."""
        if _through_floats(len(x_RI)):
            return _multiply_dense(x_RI, self)
        return kernels.multiply(x_RI.float(), self.tensors).to(x_RI.dtype)

    def numbers(self, rows: slice) -> Tensor:
        """Return the numbers of some outputs, from 0 to 15: [.., I] uint8."""
        pairs = self.nibbles[rows].unflatten(1, (-1, GROUP // 2))
        return torch.cat([pairs & 15, pairs >> 4], dim=2).flatten(1)

    def dense(self, rows: slice) -> Tensor:
        """Return some outputs as they count: [.., I] float32."""
        scale, offset = self.scales_OG2[rows].float()[..., None].unbind(2)
        return (self.numbers(rows).unflatten(1, (-1, GROUP)) * scale + offset).flatten(1)


class StockInt4Weight:
    """The same numbers as torch's own op reads them: less 8, in an order that the CPU likes."""

    def __init__(self, weight: Int4Weight) -> None:
        self.shape = weight.shape
        numbers = weight.numbers(slice(None)).int()
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
        scale, offset = weight.scales_OG2.float().unbind(2)
        pairs_OG2 = torch.stack([scale, offset + 8 * scale], dim=2)
        self.scales_GO2 = pairs_OG2.transpose(0, 1).bfloat16().contiguous()

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.packed.nbytes + self.scales_GO2.nbytes

    def __call__(self, x_RI: Tensor) -> Tensor:
        """[R, I] -> [R, O], in the dtype of x."""
        found = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x_RI.bfloat16(), self.packed, GROUP, self.scales_GO2
        )
        return found.to(x_RI.dtype)


def pack(weight_OI: Tensor, quantization: str) -> Packed:
    """Return the weight in the wanted format; one that int4 cannot hold becomes int8."""
    if check_quantization(quantization) == "int4" and fits_int4(*weight_OI.shape):
        weight = Int4Weight(weight_OI)
        return weight if kernels.loaded() else StockInt4Weight(weight)
    return Int8Weight(weight_OI)


def check_quantization(name: str) -> str:
    """Return the name of a quantization, or refuse it."""
    if name not in QUANTIZATIONS:
        raise SettingsError(
            f"ISOMORPH_QUANTIZATION is {name!r}; allowed: {', '.join(QUANTIZATIONS)}"
        )
    return name


def fits_int4(outputs: int, inputs: int) -> bool:
    """Whether a matrix has whole groups, and as many outputs as torch's op wants."""
    return inputs % GROUP == 0 and outputs % 16 == 0


def _multiply_dense(x_RI: Tensor, weight: Int8Weight | Int4Weight) -> Tensor:
    out_RO = x_RI.new_empty(len(x_RI), weight.shape[0])
    for rows in _blocks(weight.shape[0]):
        block = weight.dense(rows).to(x_RI.dtype)
        out_RO[:, rows] = functional.linear(x_RI, block)
    return out_RO


def _through_floats(rows: int) -> bool:
    """Whether torch's product of floats is faster than reading numbers of few bits."""
    return rows > _FEW_ROWS and (
        kernels.loaded() is None or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _blocks(outputs: int) -> list[slice]:
    return [slice(o, min(o + _BLOCK, outputs)) for o in range(0, outputs, _BLOCK)]


def _scale(span: Tensor, steps: int) -> Tensor:
    """Return the step between numbers; rows of zeros, or too small ones, get any but 0."""
    return (span / steps).clamp(min=torch.finfo(torch.float32).tiny)
