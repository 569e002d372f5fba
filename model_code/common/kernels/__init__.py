"""Products with quantised weights, and experts: in C++ where a compiler is there, or in stock ops.

Both ways give the same results: within 1e-5 of the largest in float32, and 1e-2 where the stock op
takes bfloat16. `loaded()` says which one is in use; ISOMORPH_KERNELS=off turns ours off.

Shape letters: R rows, I inputs, O outputs, G groups of 32 inputs, T tokens, K experts of a token,
E experts, D model width, F inner width of an expert.
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
_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES = {
    "isomorph_bf16": [_POINTER] * 3 + [_INT64] * 3 + [ctypes.c_int],
    "isomorph_int8": [_POINTER] * 4 + [_INT64] * 3 + [ctypes.c_int],
    "isomorph_int4": [_POINTER] * 4 + [_INT64] * 3 + [ctypes.c_int],
    "isomorph_experts_f32": [_POINTER] * 6 + [_INT64] * 5 + [ctypes.c_int],
    "isomorph_experts_bf16": [_POINTER] * 6 + [_INT64] * 5 + [ctypes.c_int],
}


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


def multiply_bf16(x_RI: Tensor, weight_OI: Tensor) -> Tensor:
    """[R, I] float32 times a bfloat16 weight -> [R, O] float32."""
    _check(weight_OI, torch.bfloat16, (weight_OI.shape[0], x_RI.shape[-1]))
    library = loaded()
    if library is None:
        return functional.linear(x_RI.bfloat16(), weight_OI).float()
    return _multiply(library.isomorph_bf16, x_RI, weight_OI, weight_OI.shape[0])


def multiply_int8(x_RI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    """[R, I] float32 times int8 numbers, each output times its scale -> [R, O] float32."""
    outputs = weight_OI.shape[0]
    _check(weight_OI, torch.int8, (outputs, x_RI.shape[-1]))
    _check(scale_O, torch.float32, (outputs,))
    library = loaded()
    if library is None:  # in bfloat16: torch's op for float32 is fifty times slower
        numbers = torch.ops.aten._weight_int8pack_mm(x_RI.bfloat16(), weight_OI, scale_O.bfloat16())
        return numbers.float()
    return _multiply(library.isomorph_int8, x_RI, weight_OI, outputs, scale_O)


def multiply_int4(x_RI: Tensor, nibbles: Tensor, scales: Tensor) -> Tensor:
    """[R, I] float32 times int4 numbers -> [R, O] float32. Only where our kernels are loaded.

    Args:
        x_RI: I is a multiple of 32.
        nibbles: [O, I / 2] uint8; byte j of a group holds inputs j and j + 16.
        scales: [O, G, 2] bfloat16: a number n stands for n * scale + offset.
    """
    inputs, outputs = x_RI.shape[-1], nibbles.shape[0]
    _check(nibbles, torch.uint8, (outputs, inputs // 2))
    _check(scales, torch.bfloat16, (outputs, inputs // GROUP, 2))
    library = loaded()
    if library is None or inputs % GROUP:
        raise ValueError(f"int4 takes our kernels and a multiple of {GROUP} inputs, not {inputs}")
    return _multiply(library.isomorph_int4, x_RI, nibbles, outputs, scales)


def _multiply(
    function: "ctypes._NamedFuncPointer", x_RI: Tensor, weight: Tensor, outputs: int, *more: Tensor
) -> Tensor:
    rows, inputs = x_RI.shape
    x_RI = x_RI.contiguous()
    _check(x_RI, torch.float32, (rows, inputs))
    out_RO = torch.empty(rows, outputs)
    places = [each.data_ptr() for each in (x_RI, weight, *more, out_RO)]
    function(*places, rows, inputs, outputs, torch.get_num_threads())
    return out_RO


def experts(
    x_TD: Tensor, choices_TK: Tensor, shares_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Return the sum of each token's experts (SwiGLU), weighted by their shares: [T, D] float32.

    Args:
        x_TD: float32.
        choices_TK: int64, each from 0 to E - 1.
        shares_TK: float32.
        gate_up_E2FD: float32 or bfloat16: gate above value.
        down_EDF: The same dtype.
    """
    tokens, width = x_TD.shape
    count, inner = gate_up_E2FD.shape[0], gate_up_E2FD.shape[1] // 2
    chosen = choices_TK.shape[-1]
    dtype = gate_up_E2FD.dtype
    _check(x_TD, torch.float32, (tokens, width))
    _check(choices_TK, torch.int64, (tokens, chosen))
    _check(shares_TK, torch.float32, (tokens, chosen))
    _check(gate_up_E2FD, dtype, (count, 2 * inner, width))
    _check(down_EDF, dtype, (count, width, inner))
    if tokens and not 0 <= int(choices_TK.min()) <= int(choices_TK.max()) < count:
        raise ValueError(f"an expert is chosen that is not among the {count}")
    library = loaded()
    if library is None or dtype not in (torch.float32, torch.bfloat16):
        return _experts_in_torch(x_TD, choices_TK, shares_TK, gate_up_E2FD, down_EDF)
    kind = "f32" if dtype == torch.float32 else "bf16"
    out_TD = torch.empty(tokens, width)
    tensors = (x_TD, choices_TK, shares_TK, gate_up_E2FD, down_EDF, out_TD)
    getattr(library, f"isomorph_experts_{kind}")(
        *(each.data_ptr() for each in tensors),
        *(tokens, chosen, count, width, inner, torch.get_num_threads()),
    )
    return out_TD


def _experts_in_torch(
    x_TD: Tensor, choices_TK: Tensor, shares_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    out_TD = torch.zeros_like(x_TD)
    for expert in choices_TK.unique().tolist():
        token, rank = (choices_TK == expert).nonzero(as_tuple=True)
        rows = functional.linear(x_TD[token].to(gate_up_E2FD.dtype), gate_up_E2FD[expert])
        gate, value = rows.chunk(2, dim=-1)
        found = functional.linear(functional.silu(gate) * value, down_EDF[expert]).float()
        out_TD.index_add_(0, token, found * shares_TK[token, rank, None])
    return out_TD


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
    x, weight = torch.linspace(-1, 1, 5 * 77).view(5, 77), torch.linspace(-3, 2, 7 * 77).view(7, 77)
    numbers, scale = weight.mul(40).to(torch.int8), torch.linspace(0.1, 2, 7)
    pairs = (
        (
            _multiply(library.isomorph_bf16, x, weight.bfloat16(), 7),
            x @ weight.bfloat16().float().t(),
        ),
        (_multiply(library.isomorph_int8, x, numbers, 7, scale), x @ numbers.float().t() * scale),
    )
    for found, expected in pairs:
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
            raise BuildError("the compiled kernels do not agree with torch")
