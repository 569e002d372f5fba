"""`isomorph bench moe_training`: what it holds a mixture beside, and that its rows come."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.moe_models import MIXTURE, SMALL, WIDE, dense_like
from model_code.common.architecture import parse
from model_code.moe.train.recipe import load_recipe


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("config", [MIXTURE, SMALL, WIDE, load_recipe("tiny").model])
def test_the_dense_peer_has_as_many_parameters(config: dict, active: bool) -> None:
    mixture, dense = parse(config), parse(dense_like(config, active=active))
    wanted = mixture.active_parameters if active else mixture.parameters
    assert not any(layer.feed_forward.experts for layer in dense.layers)
    assert dense.parameters == pytest.approx(wanted, rel=0.002)
    assert [layer.attention for layer in dense.layers] == [
        layer.attention for layer in mixture.layers
    ]


def test_a_token_visits_a_share_of_the_mixture_as_small_as_the_claim_needs() -> None:
    for config in (SMALL, WIDE):
        found = parse(config)
        assert found.active_parameters < 0.15 * found.parameters


TINY = {
    "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "vocab_size": 64,
}  # fmt: skip


@pytest.mark.torch
def test_steps_are_held_beside_dense_transformers_and_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bench import moe_steps

    for name, value in (("_SEQUENCES", 2), ("_LENGTH", 16), ("_GEMM", 64), ("_DECODED", 2)):
        monkeypatch.setattr(moe_steps, name, value)
    monkeypatch.setattr(moe_steps, "SMALL", MIXTURE | TINY)
    monkeypatch.setattr(moe_steps, "WIDE", MIXTURE | TINY)
    for rows, limit in (
        (moe_steps.training(), "its FLOPs at the rate of a 64^3 product"),
        (moe_steps.decode(), "reading the active weights once"),
    ):
        found = [*rows]
        assert all(row.ratio > 0 for row in found)
        assert [row.peer.split(":")[0] for row in found] == [
            "dense of equal total", "transformers eager", "transformers grouped_mm", limit,
        ]  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One seed, two steps, and a model that learns nothing in them."""
    from bench import moe_training, sparsity

    recipe = load_recipe("tiny")
    changed = replace(
        recipe, model=dict(recipe.model) | TINY | {"vocab_size": 1024},
        training=replace(recipe.training, batch=2, micro_batch=2),
    )  # fmt: skip
    monkeypatch.setattr(moe_training, "_mixture", lambda: changed)
    for module, name, value in (
        (moe_training, "STEPS", 2), (moe_training, "SEEDS", (0,)),
        (moe_training, "_HELD_OUT", 600), (sparsity, "STEPS", 1),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    kept = moe_training.measure, moe_training._home
    for each in kept:
        each.cache_clear()
    yield
    for each in kept:
        each.cache_clear()


@pytest.mark.torch
@pytest.mark.usefixtures("small")
def test_losses_and_sparsity_are_rows_and_a_drawing(tmp_path: Path) -> None:
    from bench import moe_training

    loss, matrices, sparse = moe_training.rows()
    assert loss.name == "loss a token of unseen text after 2 steps, tiny, seed 0"
    assert loss.ratio == pytest.approx(1, abs=0.2)
    assert matrices.ratio == pytest.approx(64 / 18)
    assert sparse.ratio == pytest.approx(1, abs=0.2)
    moe_training.write(tmp_path / "loss.svg")
    assert (tmp_path / "loss.svg").read_text().count("<polyline") == 4
