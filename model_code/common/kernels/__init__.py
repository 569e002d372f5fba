"""Products with weights of few bits, and experts: in C++ where a compiler is there, or stock ops.

Both ways give the same results: within 1e-5 of the largest in float32, and 1e-2 where the stock op
takes bfloat16. `loaded()` says which one is in use; ISOMORPH_KERNELS=off turns ours off.

A weight is a tuple: its numbers [O, I] in float32 or bfloat16; int8 numbers and a float32 scale for
each output; or pairs of int4 numbers [O, I / 2] in uint8 and [O, G, 2] in bfloat16, the scale and
offset of each group of 32 inputs. Byte j of a group holds inputs j and j + 16.

Shape letters: R rows, I inputs, O outputs, G groups, T tokens, K experts of a token, E experts,
D model width, F inner width of an expert.
"""

import ctypes
import functools
import logging

import torch
from torch import Tensor
from torch.nn import functional

from model_code.common.kernels.build import BuildError, load

_LOG = logging.getLogger(__name__)
GROUP = 32  # inputs that share a scale in int4
# torch 2.13's _weight_int8pack_mm reads beyond the end of rows that are no multiple of a register.
_STOCK_WIDTH = 32
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}  # as in kernels.cpp
_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES = {
    "isomorph_multiply": [_INT, *[_POINTER] * 4, *[_INT64] * 3, _INT],
    "isomorph_experts": [_INT, *[_POINTER] * 8, *[_INT64] * 5, _INT],
}
Weight = tuple[Tensor, ...]


@functools.cache
def loaded() -> ctypes.CDLL | None:
    """Return our kernels, or None where stock ops do the work; the log says which, once."""
    try:
        library = load()
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, None
        _check_itself(library)
    except BuildError as error:
        _LOG.info("matrices: torch's own operations (%s)", error)
        return None
    _LOG.info("matrices: our C++ kernels")
    return library


def usable(*tensors: Tensor) -> bool:
    """Whether our kernels can take these: on the CPU, without gradients, which they do not make."""
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        return False
    return all(each.device.type == "cpu" for each in tensors) and loaded() is not None


def multiply(x_RI: Tensor, weight: Weight) -> Tensor:
    """[R, I] float32 -> [R, O] float32. int4 only where our kernels are loaded.

    Raises:
        ValueError: Shapes, dtypes or layout are not those above.
    """
    x_RI = x_RI.contiguous()
    rows, inputs = x_RI.shape
    outputs = len(weight[0])
    _check(x_RI, torch.float32, (rows, inputs))
    _check_weight(weight, outputs, inputs)
    library = loaded()
    if library is None:
        return _multiply_in_torch(x_RI, weight)
    return _multiply(library, x_RI, weight)


def experts(
    x_TD: Tensor, choices_TK: Tensor, shares_TK: Tensor, gate_up: Weight, down: Weight
) -> Tensor:
    """Return the sum of each token's experts (SwiGLU), weighted by their shares: [T, D] float32.

    Args:
        x_TD: float32.
        choices_TK: int64, each from 0 to E - 1.
        shares_TK: float32.
        gate_up: [E x 2F, D], gate above value.
        down: [E x D, F], of the same kind.

    Raises:
        ValueError: Shapes, dtypes or layout are not these, or a choice is no expert.
    """
    x_TD, choices_TK, shares_TK = (each.contiguous() for each in (x_TD, choices_TK, shares_TK))
    (tokens, width), chosen = x_TD.shape, choices_TK.shape[-1]
    count = len(down[0]) // width
    inner = len(gate_up[0]) // max(2 * count, 1)
    _check(x_TD, torch.float32, (tokens, width))
    _check(choices_TK, torch.int64, (tokens, chosen))
    _check(shares_TK, torch.float32, (tokens, chosen))
    _check_weight(gate_up, count * 2 * inner, width)
    _check_weight(down, count * width, inner)
    if gate_up[0].dtype != down[0].dtype:
        raise ValueError(
            f"experts are {gate_up[0].dtype} and {down[0].dtype}; one of them for both"
        )
    if tokens and not 0 <= int(choices_TK.min()) <= int(choices_TK.max()) < count:
        raise ValueError(f"an expert is chosen that is not one of 0 to {count - 1}")
    library = loaded()
    if library is None:
        return _experts_in_torch(x_TD, choices_TK, shares_TK, gate_up, down)
    out_TD = torch.empty(tokens, width)
    library.isomorph_experts(
        _KINDS[down[0].dtype],
        *(each.data_ptr() for each in (x_TD, choices_TK, shares_TK)),
        *(*_pointers(gate_up), *_pointers(down), out_TD.data_ptr()),
        *(tokens, chosen, count, width, inner, torch.get_num_threads()),
    )
    return out_TD


def _multiply(library: ctypes.CDLL, x_RI: Tensor, weight: Weight) -> Tensor:
    (rows, inputs), outputs = x_RI.shape, len(weight[0])
    out_RO = torch.empty(rows, outputs)
    library.isomorph_multiply(
        *(_KINDS[weight[0].dtype], x_RI.data_ptr(), *_pointers(weight), out_RO.data_ptr()),
        *(rows, inputs, outputs, torch.get_num_threads()),
    )
    return out_RO


def _pointers(weight: Weight) -> tuple[int, int | None]:
    return weight[0].data_ptr(), weight[1].data_ptr() if len(weight) > 1 else None


def _multiply_in_torch(x_RI: Tensor, weight: Weight) -> Tensor:
    numbers, *scales = weight
    if numbers.dtype == torch.uint8:
        raise ValueError("int4 in this layout takes our kernels, which are not loaded here")
    if numbers.dtype == torch.int8 and numbers.shape[1] % _STOCK_WIDTH:
        return functional.linear(x_RI, numbers.float()) * scales[0]
    if numbers.dtype == torch.int8:  # in bfloat16: torch's op for float32 is many times slower
        stock = torch.ops.aten._weight_int8pack_mm
        return stock(x_RI.bfloat16(), numbers, scales[0].bfloat16()).float()
    return functional.linear(x_RI.to(numbers.dtype), numbers).float()


def _experts_in_torch(
    x_TD: Tensor, choices_TK: Tensor, shares_TK: Tensor, gate_up: Weight, down: Weight
) -> Tensor:
    out_TD = torch.zeros_like(x_TD)
    width = x_TD.shape[1]
    inner = len(gate_up[0]) // (len(down[0]) // width) // 2
    for expert in choices_TK.unique().tolist():
        token, rank = (choices_TK == expert).nonzero(as_tuple=True)
        first, last = (
            tuple(part[expert * rows : (expert + 1) * rows] for part in weight)
            for weight, rows in ((gate_up, 2 * inner), (down, width))
        )
        gate, value = _multiply_in_torch(x_TD[token], first).chunk(2, dim=-1)
        found = _multiply_in_torch(functional.silu(gate) * value, last)
        out_TD.index_add_(0, token, found * shares_TK[token, rank, None])
    return out_TD


def _check_weight(weight: Weight, outputs: int, inputs: int) -> None:
    numbers, *scales = weight
    kind = numbers.dtype
    if kind == torch.uint8:
        if inputs % GROUP:
            raise ValueError(f"int4 takes a multiple of {GROUP} inputs, got {inputs}")
        _check(numbers, kind, (outputs, inputs // 2))
        _check(scales[0], torch.bfloat16, (outputs, inputs // GROUP, 2))
        return
    if kind not in _KINDS:
        raise ValueError(f"a weight is {kind}; allowed: {', '.join(map(str, _KINDS))}")
    _check(numbers, kind, (outputs, inputs))
    if kind == torch.int8:
        _check(scales[0], torch.float32, (outputs,))


def _check(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse what C++ would read beyond its end, or as numbers of another kind."""
    fits = tensor.dtype == dtype and tensor.shape == shape
    if fits and tensor.is_contiguous() and tensor.device.type == "cpu":
        return
    raise ValueError(
        f"a kernel got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, strides "
        f"{tensor.stride()}; it takes {dtype} {shape} without gaps, on the CPU"
    )


def _check_itself(library: ctypes.CDLL) -> None:
    """Compare with torch, once: a compiler's mistake must not become a wrong answer."""
    x = torch.linspace(-1, 1, 5 * 77).view(5, 77)
    dense = torch.linspace(-3, 2, 7 * 77).view(7, 77)
    scale = torch.linspace(0.1, 2, 7)
    small = dense.bfloat16(), dense.mul(40).to(torch.int8)
    for weight, expected in (
        ((dense,), x @ dense.t()),
        ((small[0],), x @ small[0].float().t()),
        ((small[1], scale), x @ small[1].float().t() * scale),
    ):
        found = _multiply(library, x, weight)
        if not (found - expected).abs().max() < 1e-4 * expected.abs().max():
            raise BuildError("the compiled kernels do not agree with torch")
