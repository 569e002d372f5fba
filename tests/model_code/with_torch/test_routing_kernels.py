"""The router's kernel, and visits in parts, beside torch's own operations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_code.common import kernels
from model_code.common.layers import FeedForward
from model_code.common.layers import Router as Rules
from model_code.moe.model import Router

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("two_threads")]


def router(groups: int, kept: int, rules: dict[str, bool], dtype: torch.dtype) -> Router:
    scoring = "sigmoid" if rules["sigmoid"] else "softmax"
    part = FeedForward(
        width=8, experts=12, active=3,
        router=Rules(
            scoring=scoring, normalize=rules["normalize"], scale=2.5, groups=groups,
            kept_groups=kept, bias=rules["bias"], correction=rules["correction"],
        ),
    )  # fmt: skip
    made = Router(24, part, dtype).requires_grad_(False)
    made.weight.normal_()
    for extra in (made.bias, made.correction):
        if extra is not None:
            extra.normal_(0, 0.1)
    return made


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 9),
    groups=st.sampled_from([(1, 1), (4, 2), (3, 1), (2, 2)]),
    rules=st.fixed_dictionaries(
        {name: st.booleans() for name in ("sigmoid", "normalize", "bias", "correction")}
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_the_kernel_chooses_what_torch_chooses(
    tokens: int, groups: tuple[int, int], rules: dict[str, bool], dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    made, x = router(*groups, rules, dtype), torch.randn(tokens, 24).to(dtype)
    found, shares = made(x)
    with torch.enable_grad():  # our kernels make no gradients, so torch does the work
        made.weight.requires_grad_(True)
        expected, weights = made(x)
    # Of equal scores either may come first.
    torch.testing.assert_close(shares, weights.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.sort(1).values, expected.sort(1).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_visits_in_parts_are_those_of_one_call_bit_for_bit(
    dtype: torch.dtype, threads: int, tokens: int
) -> None:
    torch.manual_seed(tokens)
    experts, width, inner_width, chosen = 5, 40, 24, 3
    gate_up, down = (
        torch.randn(experts * 2 * inner_width, width).to(dtype),
        torch.randn(experts * width, inner_width).to(dtype),
    )
    x, shares = torch.randn(tokens, width), torch.rand(tokens, chosen)
    choices = torch.stack([torch.randperm(experts)[:chosen] for _ in range(tokens)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = kernels.experts(x, choices, shares, (gate_up,), (down,))
        results = torch.full((tokens, chosen, width), torch.nan)
        for part in ([0, 3], [1], [2, 4]):
            mine = torch.isin(choices, torch.tensor(part))
            kernels.visit(x, choices.where(mine, -1), (gate_up,), (down,), results)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(kernels.combine(results, shares), whole)
    inner = torch.einsum("td,efd->tef", x, gate_up.float().view(experts, 2 * inner_width, width))
    gate, up = inner.chunk(2, dim=-1)
    made = torch.einsum("tef,edf->ted", torch.nn.functional.silu(gate) * up,
                        down.float().view(experts, width, inner_width))  # fmt: skip
    expected = (made.gather(1, choices[..., None].expand(-1, -1, width)) * shares[..., None]).sum(1)
    torch.testing.assert_close(whole, expected, rtol=1e-3, atol=1e-3)


def test_one_token_may_visit_an_expert_twice() -> None:
    x, weight = torch.randn(1, 16), (torch.randn(2 * 2 * 8, 16), torch.randn(2 * 16, 8))
    twice = torch.tensor([[1, 1]])
    found = kernels.experts(x, twice, torch.tensor([[0.25, 0.75]]), weight[:1], weight[1:])
    once = kernels.experts(x, twice[:, :1], torch.ones(1, 1), weight[:1], weight[1:])
    torch.testing.assert_close(found, once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (kernels.Choice(5, True, True, 1.0), "4 experts cannot be chosen from by"),
        (kernels.Choice(2, True, True, 1.0, groups=3), "4 experts cannot be chosen from by"),
        (kernels.Choice(2, True, True, 1.0, groups=2, kept_groups=3), "cannot be chosen from by"),
        (kernels.Choice(2, True, True, 1.0, groups=2, best_of_group=3), "cannot be chosen from"),
    ],
)
def test_rules_that_do_not_fit_are_refused(choice: kernels.Choice, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.route(torch.randn(1, 8), torch.randn(4, 8), None, None, choice)


def test_results_of_another_shape_are_refused() -> None:
    x, choices = torch.randn(2, 16), torch.zeros(2, 1, dtype=torch.int64)
    weight = (torch.randn(16, 16),), (torch.randn(16, 8),)
    with pytest.raises(ValueError, match=r"a kernel got torch.float32"):
        kernels.visit(x, choices, *weight, torch.empty(2, 2, 16))
    with pytest.raises(ValueError, match="an expert is chosen that is not one of 0 to 0"):
        kernels.visit(x, choices - 2, *weight, torch.empty(2, 1, 16))
    with pytest.raises(ValueError, match=r"a kernel got torch.float32"):
        kernels.combine(torch.empty(2, 1, 16), torch.ones(2, 2))


def test_nothing_is_a_kernel_while_a_compiler_looks() -> None:
    seen: list[bool] = []

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(kernels.usable(x))
            return x + 1

    torch.export.export(Module(), (torch.ones(2),), strict=False)
    assert seen == [False]
    assert kernels.usable(torch.ones(2))
