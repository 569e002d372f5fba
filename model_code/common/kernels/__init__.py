"""Products with weights of few bits, and experts: in C++ where a compiler is there, or stock ops.

Both ways give the same results: within 1e-5 of the largest where weights are floats, and 1e-2 where
they have few bits. There ours rounds the inputs to 8 bits in groups of 32 (see `rounded`), and the
stock op to bfloat16. `loaded()` says which one is in use; ISOMORPH_KERNELS=off turns ours off.
one_mixture.py has a whole mixture of experts in one call, step.py a decoder's whole step.

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
GROUP = 32  # inputs that share a scale in int4, and a step when they are rounded
# torch 2.13's _weight_int8pack_mm reads beyond the end of rows that are no multiple of a register.
_STOCK_WIDTH = 32
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}  # as in matmul.h
_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES = {
    "isomorph_multiply": [_INT, *[_POINTER] * 4, *[_INT64] * 3, _INT],
    "isomorph_visit": [_INT, *[_POINTER] * 7, *[_INT64] * 5, _INT],
    "isomorph_combine": [*[_POINTER] * 3, *[_INT64] * 3, _INT],
    "isomorph_mixture": [_POINTER],
    "isomorph_attend_one_token": [_POINTER],
    "isomorph_step": [_POINTER],
}
_RESULTS = {"isomorph_mixture": ctypes.c_bool}
Weight = tuple[Tensor, ...]


@functools.cache
def loaded() -> ctypes.CDLL | None:
    """Return our kernels, or None where stock ops do the work; the log says which, once."""
    try:
        library = load()
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, _RESULTS.get(name)
        _check_itself(library)
    except BuildError as error:
        _LOG.info("matrices: torch's own operations (%s)", error)
        return None
    _LOG.info("matrices: our C++ kernels")
    return library


def usable(*tensors: Tensor) -> bool:
    """Whether our kernels can take these: on the CPU, without gradients, which they do not make."""
    if torch.compiler.is_compiling():  # torch.export and its like see torch's operations only
        return False
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        return False
    return all(each.device.type == "cpu" for each in tensors) and loaded() is not None


def rounded(x_RI: Tensor) -> Tensor:
    """Return inputs as they count beside weights of few bits: [R, I] float32, rounded in groups.

    The largest of a group of 32 becomes 127, the others the nearest whole number. That is what
    llama.cpp does for its weights of 8 and 4 bits.
    """
    inputs = x_RI.shape[1]
    groups_RGI = functional.pad(x_RI, (0, -inputs % GROUP)).unflatten(1, (-1, GROUP))
    most_RG1 = groups_RGI.abs().amax(2, keepdim=True)
    # Tensor by tensor: torch takes 127 / tensor as 127 times a rounded reciprocal.
    inverse_RG1 = torch.where(most_RG1 < 1e-30, 0, torch.full_like(most_RG1, 127) / most_RG1)
    # As exact as a fused multiply-add: the product is rounded once.
    numbers_RGI = (groups_RGI.double() * inverse_RG1).round().float()
    return (numbers_RGI * (most_RG1 / 127)).flatten(1)[:, :inputs]


def multiply(x_RI: Tensor, weight: Weight) -> Tensor:
    """[R, I] float32 -> [R, O] float32. int4 only where our kernels are loaded.

    Raises:
        ValueError: Shapes, dtypes or layout are not those above.
    """
    x_RI = x_RI.contiguous()
    rows, inputs = x_RI.shape
    outputs = len(weight[0])
    check(x_RI, torch.float32, (rows, inputs))
    check_weight(weight, outputs, inputs)
    library = loaded()
    if library is None:
        return _multiply_in_torch(x_RI, weight)
    return _multiply(library, x_RI, weight)


def visit(
    x_TD: Tensor, choices_TK: Tensor, gate_up: Weight, down: Weight, results_TKD: Tensor, *,
    low: int = -1,
) -> None:  # fmt: skip
    """Write what each visited expert makes of a token to `results_TKD`, not weighted.

    Args:
        x_TD: float32.
        choices_TK: int64, each from `low` to E - 1.
        gate_up: [E x 2F, D], gate above value.
        down: [E x D, F], of the same kind.
        results_TKD: float32. Rows whose choice is below 0 are left as they are.
        low: -1 to leave out such choices, 0 to refuse them.

    Raises:
        ValueError: Shapes, dtypes or layout are not these, or a choice is no expert.
    """
    x_TD, choices_TK = x_TD.contiguous(), choices_TK.contiguous()
    (tokens, width), chosen = x_TD.shape, choices_TK.shape[-1]
    check(x_TD, torch.float32, (tokens, width))
    check(choices_TK, torch.int64, (tokens, chosen))
    count, inner = check_experts(gate_up, down, width)
    if tokens and not low <= int(choices_TK.min()) <= int(choices_TK.max()) < count:
        raise ValueError(f"an expert is chosen that is not one of 0 to {count - 1}")
    check(results_TKD, torch.float32, (tokens, chosen, width))
    library = loaded()
    if library is None:
        _visit_in_torch(x_TD, choices_TK, gate_up, down, results_TKD)
        return
    library.isomorph_visit(
        *(KINDS[down[0].dtype], x_TD.data_ptr(), choices_TK.data_ptr()),
        *(*_pointers(gate_up), *_pointers(down), results_TKD.data_ptr()),
        *(tokens, chosen, count, width, inner, torch.get_num_threads()),
    )


def inputs_of(weight: Weight) -> int:
    """Return how wide a weight's inputs are."""
    return weight[0].shape[1] * (2 if weight[0].dtype == torch.uint8 else 1)


def check_experts(gate_up: Weight, down: Weight, width: int) -> tuple[int, int]:
    """Refuse weights that are not those of experts, and return how many these are, and F."""
    count = len(down[0]) // width
    inner = len(gate_up[0]) // max(2 * count, 1)
    check_weight(gate_up, count * 2 * inner, width)
    check_weight(down, count * width, inner)
    if gate_up[0].dtype != down[0].dtype:
        raise ValueError(
            f"experts are {gate_up[0].dtype} and {down[0].dtype}; one of them for both"
        )
    return count, inner


def combine(results_TKD: Tensor, shares_TK: Tensor) -> Tensor:
    """Return the sum of each token's results, weighted, in the order of its choices: [T, D]."""
    tokens, chosen, width = results_TKD.shape
    results_TKD, shares_TK = results_TKD.contiguous(), shares_TK.contiguous()
    check(results_TKD, torch.float32, (tokens, chosen, width))
    check(shares_TK, torch.float32, (tokens, chosen))
    library = loaded()
    if library is None:
        return (results_TKD * shares_TK[..., None]).sum(1)
    out_TD = torch.empty(tokens, width)
    library.isomorph_combine(
        *(each.data_ptr() for each in (results_TKD, shares_TK, out_TD)),
        *(tokens, chosen, width, torch.get_num_threads()),
    )
    return out_TD


def _multiply(library: ctypes.CDLL, x_RI: Tensor, weight: Weight) -> Tensor:
    (rows, inputs), outputs = x_RI.shape, len(weight[0])
    out_RO = torch.empty(rows, outputs)
    library.isomorph_multiply(
        *(KINDS[weight[0].dtype], x_RI.data_ptr(), *_pointers(weight), out_RO.data_ptr()),
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


def _visit_in_torch(
    x_TD: Tensor, choices_TK: Tensor, gate_up: Weight, down: Weight, results_TKD: Tensor
) -> None:
    width = x_TD.shape[1]
    inner = len(gate_up[0]) // (len(down[0]) // width) // 2
    for expert in choices_TK.unique().tolist():
        if expert < 0:
            continue
        token, rank = (choices_TK == expert).nonzero(as_tuple=True)
        first, last = (
            tuple(part[expert * rows : (expert + 1) * rows] for part in weight)
            for weight, rows in ((gate_up, 2 * inner), (down, width))
        )
        gate, value = _multiply_in_torch(x_TD[token], first).chunk(2, dim=-1)
        results_TKD[token, rank] = _multiply_in_torch(functional.silu(gate) * value, last)


def check_weight(weight: Weight, outputs: int, inputs: int) -> None:
    """Refuse a weight that is not one of those above."""
    numbers, *scales = weight
    kind = numbers.dtype
    if kind == torch.uint8:
        if inputs % GROUP:
            raise ValueError(f"int4 takes a multiple of {GROUP} inputs, got {inputs}")
        check(numbers, kind, (outputs, inputs // 2))
        check(scales[0], torch.bfloat16, (outputs, inputs // GROUP, 2))
        return
    if kind not in KINDS:
        raise ValueError(f"a weight is {kind}; allowed: {', '.join(map(str, KINDS))}")
    check(numbers, kind, (outputs, inputs))
    if kind == torch.int8:
        check(scales[0], torch.float32, (outputs,))


def check(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
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
        ((small[1], scale), rounded(x) @ small[1].float().t() * scale),
    ):
        found = _multiply(library, x, weight)
        if not (found - expected).abs().max() < 1e-4 * expected.abs().max():
            raise BuildError("the compiled kernels do not agree with torch")
