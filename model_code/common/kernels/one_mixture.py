"""A mixture of experts in one call of C++: the router's choices, the experts, their weighted sum.

Shape letters: T tokens, K experts of a token, E experts, D model width, F inner width of an expert.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from model_code.common import kernels
from model_code.common.kernels import Weight, check, check_weight
from model_code.common.kernels.layout import INT64, POINTER, Matrix, Mixture


class Choice(NamedTuple):
    """How a router chooses: see `Router` in model_code/common/layers.py.

    Args:
        best_of_group: How many of a group's scores add up to what the group is worth.
    """

    chosen: int
    sigmoid: bool
    normalize: bool
    scale: float
    groups: int = 1
    kept_groups: int = 1
    best_of_group: int = 1

    def check(self, experts: int) -> None:
        """Refuse what C++ would read beyond an end."""
        size = experts // self.groups if self.groups > 0 else 0
        whole = size > 0 and size * self.groups == experts
        kept = 0 < self.kept_groups <= self.groups and 0 < self.best_of_group <= size
        if not (whole and kept and 0 < self.chosen <= experts):
            raise ValueError(f"{experts} experts cannot be chosen from by {self}")


class Chooser(NamedTuple):
    """A router as C++ takes it.

    Args:
        weight_ED: float32 or bfloat16.
        bias_E: float32 or bfloat16, added to the logits.
        correction_E: float32, added to the scores for the choice alone.
        rules: How scores are made and experts chosen.
    """

    weight_ED: Tensor
    bias_E: Tensor | None
    correction_E: Tensor | None
    rules: Choice

    def check(self, width: int) -> None:
        """Refuse what C++ would read beyond an end, or as numbers of another kind."""
        count = len(self.weight_ED)
        check_weight((self.weight_ED,), count, width)
        if self.bias_E is not None:
            check_weight((self.bias_E[None],), 1, count)
        if self.correction_E is not None:
            check(self.correction_E, torch.float32, (count,))
        self.rules.check(count)

    def described(self) -> Mixture:
        """Return where it is, for as long as its tensors live."""
        rules, correction = self.rules, self.correction_E
        return Mixture(
            router=Matrix.of((self.weight_ED,), self.bias_E),
            correction=None if correction is None else correction.data_ptr(),
            experts=len(self.weight_ED), chosen=rules.chosen, groups=rules.groups,
            kept_groups=rules.kept_groups, best_of_group=rules.best_of_group,
            sigmoid=rules.sigmoid, normalize=rules.normalize, scale=rules.scale,
        )  # fmt: skip


class _Call(ctypes.Structure):
    """See one_mixture.h."""

    _fields_ = (
        ("routed", Mixture), ("gate_up", Matrix), ("down", Matrix),
        ("x", POINTER), ("choices", POINTER), ("shares", POINTER), ("out", POINTER),
        ("tokens", INT64), ("width", INT64), ("threads", INT64),
    )  # fmt: skip


def route(x_TD: Tensor, by: Chooser) -> tuple[Tensor, Tensor]:
    """Return each token's experts [T, K] and their weights; only where our kernels are loaded.

    Args:
        x_TD: float32.
        by: The router.

    Raises:
        ValueError: Shapes, dtypes or layout are not these.
    """
    x_TD = x_TD.contiguous()
    tokens, width = x_TD.shape
    check(x_TD, torch.float32, (tokens, width))
    by.check(width)
    choices_TK = torch.empty(tokens, by.rules.chosen, dtype=torch.int64)
    shares_TK = torch.empty(tokens, by.rules.chosen)
    _call(x_TD, choices_TK, shares_TK, routed=by.described())
    return choices_TK, shares_TK


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
    if kernels.loaded() is not None:
        return OneMixture(gate_up, down).visit(x_TD, choices_TK, shares_TK)
    results_TKD = torch.empty(*choices_TK.shape, x_TD.shape[1])
    kernels.visit(x_TD, choices_TK, gate_up, down, results_TKD, low=0)
    return kernels.combine(results_TKD, shares_TK)


class OneMixture:
    """Experts and their router, checked and described once: that takes as long as a token does.

    Only where our kernels are loaded.

    Args:
        gate_up: [E x 2F, D], gate above value.
        down: [E x D, F], of the same kind.
        by: The router. Without it, whoever calls says which experts are visited.

    Raises:
        ValueError: Shapes, dtypes or layout are not these.
    """

    def __init__(self, gate_up: Weight, down: Weight, by: Chooser | None = None) -> None:
        self._width = kernels.inputs_of(gate_up)
        self._count, _ = kernels.check_experts(gate_up, down, self._width)
        self._described = Matrix.of(gate_up), Matrix.of(down)
        self._kept = gate_up, down, by  # what the pointers point to
        if by is None:
            return
        by.check(self._width)
        if self._count != len(by.weight_ED):
            raise ValueError(
                f"a router of {len(by.weight_ED)} experts got the weights of {self._count}"
            )
        self._chosen, self._routed = by.rules.chosen, by.described()

    def __call__(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `experts` makes of `route`'s choices [T, D], and the choices [T, K].

        Args:
            x_TD: float32.

        Raises:
            ValueError: It is of another shape or kind.
        """
        x_TD = self._checked(x_TD)
        choices_TK = torch.empty(len(x_TD), self._chosen, dtype=torch.int64)
        out_TD, shares_TK = torch.empty_like(x_TD), torch.empty(len(x_TD), self._chosen)
        _call(x_TD, choices_TK, shares_TK, self._routed, *self._described, out_TD)
        return out_TD, choices_TK

    def visit(self, x_TD: Tensor, choices_TK: Tensor, shares_TK: Tensor) -> Tensor:
        """Return what `experts` does.

        Args:
            x_TD: float32.
            choices_TK: int64, each from 0 to E - 1.
            shares_TK: float32.

        Raises:
            ValueError: Shapes, dtypes or layout are not these, or a choice is no expert.
        """
        x_TD, choices_TK = self._checked(x_TD), choices_TK.contiguous()
        shares_TK, out_TD = shares_TK.contiguous(), torch.empty_like(x_TD)
        check(choices_TK, torch.int64, (len(x_TD), choices_TK.shape[-1]))
        check(shares_TK, torch.float32, tuple(choices_TK.shape))
        given = Mixture(experts=self._count, chosen=choices_TK.shape[1])
        if not _call(x_TD, choices_TK, shares_TK, given, *self._described, out_TD):
            raise ValueError(f"an expert is chosen that is not one of 0 to {self._count - 1}")
        return out_TD

    def _checked(self, x_TD: Tensor) -> Tensor:
        x_TD = x_TD.contiguous()
        check(x_TD, torch.float32, (len(x_TD), self._width))
        return x_TD


def _call(
    x_TD: Tensor, choices_TK: Tensor, shares_TK: Tensor, routed: Mixture,
    gate_up: Matrix | None = None, down: Matrix | None = None, out_TD: Tensor | None = None,
) -> bool:  # fmt: skip
    library = kernels.loaded()
    assert library is not None  # noqa: S101  the caller asked kernels.usable()
    tokens, width = x_TD.shape
    return bool(library.isomorph_mixture(
        ctypes.byref(
            _Call(
                routed=routed, gate_up=gate_up or Matrix(), down=down or Matrix(),
                x=x_TD.data_ptr(), choices=choices_TK.data_ptr(), shares=shares_TK.data_ptr(),
                out=None if out_TD is None else out_TD.data_ptr(),
                tokens=tokens, width=width, threads=torch.get_num_threads(),
            )
        )
    ))  # fmt: skip
