"""Attention of one token in C++, beside torch's."""

# mypy: disable-error-code="untyped-decorator"

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model_code.common.batch import Batch, Sequence
from model_code.common.kernels import one_token
from model_code.common.sampling import Sampler
from tests.model_code.with_torch.families import pair

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("two_threads")]
_KINDS = st.sampled_from([torch.float32, torch.bfloat16])


def _expected(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return what one sequence's heads see, by the formula, in float64."""
    group = len(query) // len(keys)
    keys, values = (part.double().repeat_interleave(group, 0) for part in (keys, values))
    scores = torch.einsum("nw,ntw->nt", query.double(), keys) * scale
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return torch.einsum("nt,ntr->nr", weights, values).float()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 700),
    st.integers(1, 40), st.integers(1, 40), _KINDS, st.floats(0.05, 1), st.integers(0, 99),
)  # fmt: skip
@torch.inference_mode()
def test_equals_the_formula_at_any_shape_and_mask(
    sequences: int, kv_heads: int, group: int, positions: int, width: int, value_width: int,
    dtype: torch.dtype, seen: float, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    query = torch.randn(sequences, kv_heads * group, width).to(dtype)
    shape = (sequences, kv_heads, positions + 5)
    keys = torch.randn(*shape, width).to(dtype)[:, :, :positions]
    values = torch.randn(*shape, value_width + 3).to(dtype)[:, :, :positions, :value_width]
    mask = torch.rand(sequences, positions) < seen
    mask[:, seed % positions] = True
    assert one_token.fit(keys, values)
    found = one_token.attend(query, keys, values, mask, scale=0.3)
    assert found.shape == (sequences, kv_heads * group, value_width)
    for row in range(sequences):
        expected = _expected(query[row], keys[row], values[row], mask[row], 0.3)
        assert torch.allclose(found[row], expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 300), st.integers(1, 60), st.integers(0, 20), _KINDS,
    st.integers(0, 99),
)  # fmt: skip
@torch.inference_mode()
def test_reads_latents_as_keys_and_as_values(
    heads: int, positions: int, rank: int, turned: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    query = torch.randn(1, heads, rank + turned)
    kept = torch.randn(1, 1, positions, rank + turned).to(dtype)
    found = one_token.attend(query, kept, kept[..., :rank], None, scale=0.3)
    seen = torch.ones(positions, dtype=torch.bool)
    expected = _expected(query[0], kept[0], kept[0, ..., :rank], seen, 0.3)
    assert torch.allclose(found[0], expected, rtol=1e-4, atol=1e-4)


def test_who_sees_nothing_gets_nothing() -> None:
    kept = torch.randn(1, 2, 9, 8)
    nothing = torch.zeros(1, 9, dtype=torch.bool)
    found = one_token.attend(torch.randn(1, 4, 8), kept, kept, nothing, scale=1.0)
    assert torch.equal(found, torch.zeros(1, 4, 8))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    query, kept = torch.randn(2, 16, 96), torch.randn(2, 1, 3000, 96)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(one_token.attend(query, kept, kept[..., :64], None, scale=0.1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_refuses_what_c_would_read_beyond_an_end() -> None:
    query, keys = torch.randn(2, 4, 8), torch.randn(2, 2, 5, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)
    for given_query, given_keys, given_values, given_mask in (
        (query[:1], keys, keys, mask), (query[..., :7], keys, keys, mask),
        (query[:, :3], keys, keys, mask), (query, keys[:, :, :4], keys, mask),
        (query, keys, keys[:1], mask), (query, keys, keys, mask[:, :4]),
        (query, keys[:, :, :0], keys[:, :, :0], None),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"queries \(.* do not go together"):
            one_token.attend(given_query, given_keys, given_values, given_mask, scale=1.0)


def test_fits_a_cache_without_gaps_between_keys_only() -> None:
    kept = torch.randn(2, 1, 9, 8)
    assert one_token.fit(kept[:, :, :5], kept[:, :, :5, :6])
    assert not one_token.fit(kept[..., :6], kept)
    assert not one_token.fit(kept, kept[..., ::2])
    assert not one_token.fit(kept, kept.bfloat16())
    assert not one_token.fit(kept.double(), kept.double())


def test_a_model_says_the_same_with_it_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = pair("deepseek_v3").ours
    used = []

    def tokens() -> list[list[int]]:
        torch.manual_seed(0)
        batch = Batch(decoder, slots=2, context=48)
        sampler = Sampler(temperature=0, top_p=1, seed=0)
        given = [
            Sequence(prompt=[*range(1, count)], limit=12, sampler=sampler, ends=set())
            for count in (5, 20)
        ]
        for each in given:
            batch.add(each)
        while not all(each.finish for each in given):
            [*batch.step()]
        return [each.generated for each in given]

    fit = one_token.fit
    monkeypatch.setattr(one_token, "fit", lambda *kept: used.append(fit(*kept)) or used[-1])
    with_it = tokens()
    assert used
    assert all(used)
    monkeypatch.setattr(one_token, "fit", lambda *kept: False)
    assert tokens() == with_it
