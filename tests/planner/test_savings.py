from typing import Any

import pytest

from planner.load import Load
from planner.savings import Saving, attention_flops, dense, full_attention, multi_head, savings
from tests.planner.common import NAMES, model


def of(name: str, slug: str, quantity: str, **load: Any) -> list[Saving]:
    asked = Load(**load).of(model(name))
    found = savings(model(name), asked)
    return [row for row in found if (row.slug, row.quantity) == (slug, quantity)]


def test_deepseek_v3_uses_94_percent_fewer_parameters_a_token_than_it_has() -> None:
    [row] = of("deepseek-v3", "moe", "parameters a token")
    assert (row.with_it, row.without) == (37_552_282_624, 671_026_404_352)
    assert row.saved == pytest.approx(0.944, abs=5e-4)
    assert row.reached is True
    assert row.confidence == "computed"


def test_mixtrals_experts_fall_short_of_the_maps_85_percent() -> None:
    [row] = of("mixtral-8x7b", "moe", "parameters a token")
    assert row.saved == pytest.approx(0.724, abs=5e-4)
    assert row.reached is False


def test_experts_save_less_the_larger_the_batch() -> None:
    shares = [
        of("deepseek-v3", "moe", "bytes read a decode step", concurrent=n)[0].saved
        for n in (1, 8, 64, 512)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9
    assert shares[-1] < 0.1


def test_latents_save_98_percent_of_the_cache() -> None:
    [row] = of("deepseek-v3", "mla", "cache bytes a token")
    assert (row.with_it, row.without) == (70_272, 3_997_696)
    [wide] = of("deepseek-v3", "mla", "cache bytes a token, keys as wide as they are")
    assert wide.without == 4_997_120


@pytest.mark.parametrize(("context", "saved"), [(64, 0.374), (4096, 0.25)])
def test_grouped_queries_save_25_to_40_percent_of_llama_3s_attention(
    context: int, saved: float
) -> None:
    [row] = of("llama-3-8b", "gqa", "attention operations a decode step", context=context)
    assert row.saved == pytest.approx(saved, abs=2e-3)
    assert row.reached is True


def test_grouped_queries_save_nothing_of_scores_so_less_at_length() -> None:
    [long] = of("llama-3.1-8b", "gqa", "attention operations a decode step", context=131_072)
    assert 0 < long.saved < 0.03
    assert long.reached is False


def test_gemma_3_27b_saves_75_percent_of_its_cache_at_length_only() -> None:
    rows = of("gemma-3-27b", "sliding_window", "cache bytes of a sequence", context=4096)
    saved = {row.inputs["tokens"]: round(row.saved, 3) for row in rows}
    assert saved == {4096: 0.629, 8192: 0.734, 32_768: 0.812}
    assert [row.reached for row in rows] == [False, False, True]


def test_normalization_costs_less_than_a_hundredth_of_a_percent() -> None:
    [row] = of("olmo-2-7b", "normalization", "parameters")
    assert row.with_it - row.without == 32 * 2 * 4096  # two norms as wide as all heads, a layer
    assert -1e-4 < row.saved < 0
    assert row.reached is None


def test_a_plain_model_saves_nothing() -> None:
    plain = multi_head(model("llama-3-8b"))
    assert savings(plain, Load().of(plain)) == []


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-30b-a3b"])
def test_the_dense_model_has_the_same_size_but_for_routers_and_biases(name: str) -> None:
    sparse = model(name)
    routers = sum(layer.feed_forward.experts * sparse.hidden for layer in sparse.layers)
    assert sparse.parameters - dense(sparse).parameters == routers
    assert dense(sparse).active_parameters == dense(sparse).parameters


@pytest.mark.parametrize("name", NAMES)
def test_without_an_innovation_a_model_has_it_in_no_layer(name: str) -> None:
    plain = dense(multi_head(full_attention(model(name))))
    assert set(plain.innovations) <= {"normalization"}
    assert attention_flops(plain, 4096) >= attention_flops(multi_head(model(name)), 4096)
