"""The router's kernel, and visits in parts, beside torch's own operations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_code.common import kernels
from model_code.common.kernels import one_mixture
from model_code.common.layers import FeedForward
from model_code.common.layers import Router as Rules
from model_code.moe.model import MixtureOfExperts, Router

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("two_threads")]


def feed_forward(groups: int, kept: int, rules: dict[str, bool]) -> FeedForward:
    scoring = "sigmoid" if rules["sigmoid"] else "softmax"
    return FeedForward(
        width=8, experts=12, active=3, activation="silu",
        router=Rules(
            scoring=scoring, normalize=rules["normalize"], scale=2.5, groups=groups,
            kept_groups=kept, bias=rules["bias"], correction=rules["correction"],
        ),
    )  # fmt: skip


def router(groups: int, kept: int, rules: dict[str, bool], dtype: torch.dtype) -> Router:
    made = Router(24, feed_forward(groups, kept, rules), dtype).requires_grad_(False)
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
@pytest.mark.parametrize("bits", ["", "int8"])
@pytest.mark.parametrize("tokens", [1, 7, 90])
def test_a_mixture_in_one_call_is_its_parts_one_after_the_other(
    dtype: torch.dtype, bits: str, tokens: int
) -> None:
    torch.manual_seed(tokens)
    rules = {"sigmoid": True, "normalize": True, "bias": True, "correction": True}
    made = MixtureOfExperts(24, feed_forward(4, 2, rules), dtype).requires_grad_(False)
    for parameter in made.parameters():
        parameter.normal_(0, 0.3)
    assert made.router.correction is not None
    made.router.correction.normal_(0, 0.1)
    for name in ("gate_up", "down") if bits else ():
        made.experts.quantize(name, bits)  # type: ignore[operator]
    x, seen = torch.randn(tokens, 24).to(dtype), list[torch.Tensor]()
    made.watch = seen.append
    whole = made(x)
    choices, shares = made.router(x)
    assert torch.equal(seen[0], choices)
    assert torch.equal(whole, made.experts(x, choices, shares))
    if not bits:
        with torch.enable_grad():  # torch does the work
            apart = made(x.requires_grad_(True)).detach()
        torch.testing.assert_close(whole, apart, rtol=1e-1 if dtype == torch.bfloat16 else 1e-4,
                                   atol=3e-2 if dtype == torch.bfloat16 else 1e-4)  # fmt: skip


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
        whole = one_mixture.experts(x, choices, shares, (gate_up,), (down,))
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
    found = one_mixture.experts(x, twice, torch.tensor([[0.25, 0.75]]), weight[:1], weight[1:])
    once = one_mixture.experts(x, twice[:, :1], torch.ones(1, 1), weight[:1], weight[1:])
    torch.testing.assert_close(found, once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (one_mixture.Choice(5, True, True, 1.0), "4 experts cannot be chosen from by"),
        (one_mixture.Choice(2, True, True, 1.0, groups=3), "4 experts cannot be chosen from by"),
        (
            one_mixture.Choice(2, True, True, 1.0, groups=2, kept_groups=3),
            "cannot be chosen from by",
        ),
        (
            one_mixture.Choice(2, True, True, 1.0, groups=2, best_of_group=3),
            "cannot be chosen from",
        ),
    ],
)
def test_rules_that_do_not_fit_are_refused(choice: one_mixture.Choice, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_mixture.route(
            torch.randn(1, 8), one_mixture.Chooser(torch.randn(4, 8), None, None, choice)
        )


def test_a_router_of_other_experts_is_refused() -> None:
    by = one_mixture.Chooser(torch.randn(4, 8), None, None, one_mixture.Choice(2, True, True, 1.0))
    weights = (torch.randn(3 * 2 * 16, 8),), (torch.randn(3 * 8, 16),)
    with pytest.raises(ValueError, match="a router of 4 experts got the weights of 3"):
        one_mixture.OneMixture(*weights, by)
    fits = one_mixture.OneMixture((torch.randn(4 * 2 * 16, 8),), (torch.randn(4 * 8, 16),), by)
    with pytest.raises(ValueError, match=r"a kernel got torch.float32 \(1, 9\)"):
        fits(torch.randn(1, 9))
    with pytest.raises(ValueError, match=r"a kernel got torch.float64"):
        one_mixture.route(torch.randn(1, 8), by._replace(correction_E=torch.zeros(4).double()))
    with pytest.raises(ValueError, match=r"a kernel got torch.float32 \(1, 3\)"):
        one_mixture.route(torch.randn(1, 8), by._replace(bias_E=torch.zeros(3)))


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
