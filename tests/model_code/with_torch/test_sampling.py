"""How the next token is chosen."""

from collections import Counter

import pytest
import torch

from model_code.common.sampling import Sampler

pytestmark = pytest.mark.torch
LOGITS = torch.tensor([1.0, 3.0, 2.0, 0.0])


def draws(count: int, *, temperature: float = 1.0, top_p: float = 1.0, seed: int = 5) -> list[int]:
    sampler = Sampler(temperature=temperature, top_p=top_p, seed=seed)
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
