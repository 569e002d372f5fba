"""Experts that learn, against transformers and against experts that serve."""

from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from model_code.common.checkpoint import all_sources, fill
from model_code.common.tensor_names import sources
from model_code.moe.model import Experts, MixtureOfExperts
from model_code.moe.train.experts import BalancedRouter, GroupedExperts, mixtures
from model_code.moe.train.language_model import LanguageModel, initialize, place
from model_code.moe.train.parallel import recompute_layers
from tests.model_code.with_torch import moe_runs
from tests.model_code.with_torch.families import pair, relative

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("two_threads")]
# The shape of DeepSeek-V3's routing: the best 8 of 256, out of the best 4 of 8 groups.
V3 = {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
      "moe_intermediate_size": 8}  # fmt: skip


def trained(model: dict[str, Any] | None = None, **training: Any) -> LanguageModel:
    recipe = moe_runs.recipe(model=model, **training)
    made = LanguageModel(recipe)
    place(made, torch.device("cpu"))
    initialize(made, recipe, seed=0)
    return made


def batch(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, moe_runs.VOCABULARY, shape, generator=generator)


class Both(NamedTuple):
    """One model twice, and the losses of both."""

    theirs: Any
    ours: LanguageModel
    losses: tuple[float, float]


@pytest.fixture(scope="module")
def both() -> Both:
    """DeepSeek-V3's layers with the same numbers, after a backward pass over the same tokens."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**(moe_runs.MODEL | V3 | {"initializer_range": 0.3}))
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    ours = trained(V3, balance=0.0)
    for name, buffer in theirs.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-0.2, 0.2)
    state = theirs.state_dict()
    with torch.no_grad():
        for source in all_sources(ours.decoder):
            fill(source, _theirs(state, source.name))
    tokens = batch(3, 17)
    logits = theirs(tokens[:, :-1]).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    own_loss = ours(tokens)
    own_loss.backward()
    return Both(theirs, ours, (loss.item(), own_loss.item()))


def _theirs(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Return a tensor by its name in a file; in memory transformers has all experts in one."""
    if name in state:
        return state[name]
    block, expert, part, _ = name.rsplit(".", 3)
    if part == "down_proj":
        return state[f"{block}.down_proj"][int(expert)]
    halves = state[f"{block}.gate_up_proj"][int(expert)].chunk(2)
    return halves[part == "up_proj"]


def test_the_loss_of_deepseek_v3_is_that_of_transformers(both: Both) -> None:
    theirs, ours = both.losses
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_every_gradient_of_deepseek_v3_is_that_of_transformers(both: Both) -> None:
    theirs, ours, _ = both
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    compared = 0
    for name, parameter in ours.decoder.named_parameters():
        assert parameter.grad is not None, name
        for source in sources(ours.decoder.architecture, name, parameter.grad):
            found, wanted = source.order.theirs(source.place), _theirs(expected, source.name)
            if wanted.abs().max() > 0 or found.abs().max() > 0:
                assert relative(found, wanted) < 1e-4, source.name
                compared += 1
    assert compared > 200  # 3 for each visited expert, and the rest


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_experts_in_one_product_equal_experts_one_by_one(name: str) -> None:
    mixture = next(m for m in pair(name).ours.modules() if isinstance(m, MixtureOfExperts))
    one_by_one: Experts = mixture.experts
    hidden = one_by_one.down.shape[1]
    grouped = GroupedExperts(hidden, one_by_one.part, torch.float32)
    grouped.load_state_dict(one_by_one.state_dict())
    x = torch.randn(37, hidden, generator=torch.Generator().manual_seed(0))
    chosen, weights = mixture.router(x)
    with torch.no_grad():
        assert relative(grouped(x, chosen, weights), one_by_one(x, chosen, weights)) < 1e-5


def test_experts_without_a_token_take_part_without_harm() -> None:
    part = moe_runs.recipe().architecture.layers[1].feed_forward
    experts = GroupedExperts(32, part, torch.float32)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 32, requires_grad=True)
    chosen = torch.tensor([[3, 3]]).expand(5, 2)
    experts(x, chosen, torch.ones(5, 2)).square().sum().backward()
    assert experts.down.grad is not None
    assert experts.down.grad[3].abs().sum() > 0
    assert experts.down.grad[[0, 1, 2, 4, 5, 6, 7]].abs().sum() == 0


def router(balance: float) -> BalancedRouter:
    part = moe_runs.recipe().architecture.layers[1].feed_forward
    made = BalancedRouter(32, part, torch.float32, balance=balance)
    torch.nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(0))
    assert made.correction is not None
    made.correction.zero_()
    return made


def test_the_balance_term_adds_the_gradient_of_the_papers_formula() -> None:
    x = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(2))
    plain, balanced = router(0.0), router(0.5)
    plain(x)[1].square().sum().backward()
    chosen, weights = balanced(x)
    weights.square().sum().backward()
    # Section 2.1.2, equations 17 to 20: f = E / (A S) visits, P the mean share, a sum over experts.
    alone = router(0.0)
    shares = torch.nn.functional.normalize(alone.scores(x.flatten(0, 1)), p=1, dim=-1)
    visits = torch.nn.functional.one_hot(chosen.view(3, 32), 8).sum(1)
    f, p = visits * 8 / (2 * 16), shares.view(3, 16, 8).mean(1)
    (0.5 * (f * p).sum(1).mean()).backward()
    assert plain.weight.grad is not None
    assert alone.weight.grad is not None
    assert balanced.weight.grad is not None
    assert relative(balanced.weight.grad - plain.weight.grad, alone.weight.grad) < 1e-3


def test_a_correction_moves_towards_experts_that_too_few_tokens_visit() -> None:
    made = router(0.0)
    made.correct(torch.tensor([4.0, 0, 2, 2, 2, 2, 2, 2]), rate=0.25)
    assert made.correction is not None
    assert made.correction.tolist() == [-0.25, 0.25, 0, 0, 0, 0, 0, 0]


def test_visits_are_counted_once_where_layers_are_computed_again() -> None:
    plain, again = trained(), trained()
    recompute_layers(again)
    for model in (plain, again):
        model(batch(2, 17)).backward()
    (one,), (other,) = mixtures(plain), mixtures(again)
    assert one.router.visits_E is not None
    assert one.router.visits_E.sum() == 2 * 16 * 2
    assert other.router.visits_E is not None
    assert torch.equal(one.router.visits_E, other.router.visits_E)


def test_gradients_stay_the_same_where_layers_are_computed_again() -> None:
    plain, again = trained(balance=0.1), trained(balance=0.1)
    recompute_layers(again)
    for model in (plain, again):
        model(batch(2, 17)).backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


@torch.no_grad()
def test_measuring_counts_no_visits() -> None:
    model = trained()
    model(batch(2, 17))
    assert [each.router.visits_E for each in mixtures(model)] == [None]


def test_the_router_scores_in_float32_whatever_comes_in() -> None:
    made = router(0.0)
    x = torch.randn(4, 32).bfloat16()
    assert made.scores(x).dtype == torch.float32
    exact = functional.linear(x.double(), made.weight.double()).sigmoid()
    assert (made.scores(x).double() - exact).abs().max() < 1e-6
