"""Norm placements that no family of transformers has, beside their formulas."""

from functools import partial

import pytest
import torch

from model_code.common.layers import NormPlacement
from model_code.common.norm import PreNorm, RMSNorm
from model_code.normalization.model import Residual

pytestmark = pytest.mark.torch
NORM = partial(RMSNorm, eps=1e-6, dtype=torch.float32)


def filled(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.uniform_(0.5, 1.5, generator=generator)
    return module


def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("placement", ["pre", "post", "reordered", "sandwich"])
def test_a_placement_computes_its_formula(placement: NormPlacement) -> None:
    x, part = torch.randn(2, 3, 8), torch.tanh
    block = filled(Residual(placement, 8, NORM))
    weights = dict(block.named_parameters())
    before, after = weights.get("before.weight"), weights.get("after.weight")
    expected = {
        "pre": lambda: x + part(plain(x, before)),
        "post": lambda: plain(x + part(x), after),
        "reordered": lambda: x + plain(part(x), after),
        "sandwich": lambda: x + plain(part(plain(x, before)), after),
    }[placement]()
    assert torch.allclose(block(x, part), expected, atol=1e-6)


def test_common_s_own_norm_before_a_part_is_the_same() -> None:
    x = torch.randn(2, 3, 8)
    ours, general = filled(PreNorm(8, NORM)), filled(Residual("pre", 8, NORM))
    assert torch.equal(ours(x, torch.tanh), general(x, torch.tanh))
