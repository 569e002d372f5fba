"""Attention of one token on latents in C++, beside torch's."""

# mypy: disable-error-code="untyped-decorator"

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_code.common.attention import grouped_attention
from model_code.common.batch import Batch, Sequence
from model_code.common.kernels import latents
from model_code.common.sampling import Sampler
from tests.model_code.with_torch.families import pair

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("two_threads")]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=3), st.integers(1, 9),
    st.integers(1, 40), st.integers(0, 20), st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 99),
)  # fmt: skip
@torch.inference_mode()
def test_equals_torch_s_at_any_shape(
    lengths: list[int], heads: int, rank: int, turned: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    width = rank + turned
    query = torch.randn(len(lengths), heads, width).to(dtype)
    store = torch.randn(len(lengths), 1, max(lengths) + 5, width).to(dtype)
    seen = store[:, 0, : max(lengths)]
    assert latents.fit(seen)
    found = latents.attend(query, seen, torch.tensor(lengths), rank=rank, scale=0.3)
    assert found.shape == (len(lengths), heads, rank)
    for row, length in enumerate(lengths):
        kept = store[row : row + 1, :, :length].float()
        expected = grouped_attention(query[row : row + 1, None].float(), kept, kept, None, 0.3)
        assert torch.allclose(found[row], expected[0, 0, :, :rank], rtol=1e-4, atol=1e-4)


def test_refuses_what_c_would_read_beyond_an_end() -> None:
    query, seen = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    for lengths, rank in (([5, 6], 6), ([0, 5], 6), ([5], 6), ([5, 5], 9)):
        with pytest.raises(ValueError, match=r"latents \(2, 5, 8\) .* do not go together"):
            latents.attend(query, seen, torch.tensor(lengths), rank=rank, scale=1.0)


def test_fits_a_cache_without_gaps_between_positions_only() -> None:
    assert latents.fit(torch.randn(2, 9, 8)[:, :5])
    assert not latents.fit(torch.randn(2, 5, 9)[..., :8])
    assert not latents.fit(torch.randn(2, 5, 8, dtype=torch.float64))


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

    fit = latents.fit
    monkeypatch.setattr(latents, "fit", lambda kept: used.append(fit(kept)) or used[-1])
    with_it = tokens()
    assert used
    assert all(used)
    monkeypatch.setattr(latents, "fit", lambda kept: False)
    assert tokens() == with_it
