"""How the next token is chosen."""

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model_code.common.sampling import Sampler

pytestmark = pytest.mark.torch
LOGITS = torch.tensor([1.0, 3.0, 2.0, 0.0])


def draws(
    count: int, *, temperature: float = 1.0, top_p: float = 1.0, seed: int = 5, **more: Any
) -> list[int]:
    sampler = Sampler(temperature=temperature, top_p=top_p, seed=seed, **more)
    return [sampler(LOGITS) for _ in range(count)]


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-5])
def test_at_temperature_0_or_next_to_it_the_likeliest_token_wins(temperature: float) -> None:
    assert set(draws(20, temperature=temperature)) == {1}


def test_tokens_come_as_often_as_the_softmax_says() -> None:
    found = Counter(draws(4000))
    for token, probability in enumerate(LOGITS.softmax(-1).tolist()):
        assert found[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_a_higher_temperature_is_flatter() -> None:
    assert Counter(draws(1000, temperature=2.0))[1] < Counter(draws(1000, temperature=0.5))[1]


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    first, second = LOGITS.softmax(-1)[[1, 2]].tolist()
    assert set(draws(300, top_p=first - 0.01)) == {1}
    assert set(draws(300, top_p=first + 0.01)) == {1, 2}
    assert set(draws(300, top_p=first + second + 0.01)) == {0, 1, 2}
    assert set(draws(300, top_p=1e-9)) == {1}


def test_a_seed_repeats_itself() -> None:
    assert draws(30, seed=1) == draws(30, seed=1) != draws(30, seed=2)


def test_top_k_keeps_so_many_and_min_p_those_that_come_near_the_likeliest() -> None:
    assert set(draws(300, top_k=1)) == {1}
    assert set(draws(300, top_k=2)) == {1, 2}
    assert set(draws(300, top_k=99)) == {0, 1, 2, 3}
    share = float((LOGITS[2] - LOGITS[1]).exp())
    assert set(draws(300, min_p=share - 0.01)) == {1, 2}
    assert set(draws(300, min_p=share + 0.01)) == {1}


def test_what_may_be_drawn_is_what_transformers_leaves() -> None:
    rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 3
    before = [3, 4, 4, 9]
    theirs = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(0.8), TopKLogitsWarper(12),
         TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)]
    )  # fmt: skip
    for row in rows:
        sampler = Sampler(
            temperature=0.8, top_p=0.9, seed=1, top_k=12, min_p=0.05, repetition_penalty=1.3
        )
        weights: list[torch.Tensor] = []
        sampler._draw = lambda w, kept=weights: kept.append(w) or 0  # type: ignore[method-assign]
        sampler(row, before)
        expected = theirs(torch.tensor([before]), row[None])[0].softmax(-1)
        found = (weights[0] / weights[0].sum()).sort(descending=True).values
        ordered = expected.sort(descending=True).values[: len(found)]
        assert torch.allclose(found, ordered, atol=1e-6)


def test_a_penalty_turns_a_greedy_choice_away_from_what_was_there() -> None:
    sampler = Sampler(temperature=0, top_p=1, seed=0, repetition_penalty=2.0)
    assert sampler(LOGITS) == 1
    assert sampler(LOGITS, [1]) == 2
    assert sampler(torch.tensor([-1.0, -1.5]), [0]) == 1
