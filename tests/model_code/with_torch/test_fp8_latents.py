"""Latents in fp8: what rounding does to numbers, and to what a model says."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from model_code.common.architecture import parse
from model_code.common.batch import Sequence
from model_code.common.cache import KVCache
from model_code.common.layers import Attention
from model_code.common.sampling import Sampler
from model_code.mla.prefixes import LatentPrefixes, block_layout
from model_code.mla.store.fp8 import Fp8Codec
from model_code.mla.store.latents import LatentStore
from model_code.mla.store.metrics import LatentMetrics
from tests.model_code.with_torch.test_latent_reuse import BLOCK, CONFIG, CONTEXT

pytestmark = pytest.mark.torch

ARCHITECTURE = parse(CONFIG)
ATTENTION: Attention = ARCHITECTURE.layers[0].attention
RANK, WIDTH = 12, 12 + 4
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def round_trip(rows: torch.Tensor) -> torch.Tensor:
    codec = Fp8Codec(ATTENTION, rows.dtype)
    payload = bytearray(len(rows) * ATTENTION.fp8_latent_bytes)
    assert codec.encode(rows.reshape(-1), payload)
    back = codec.decode(payload)
    assert back.dtype == rows.dtype
    return back.view(-1, WIDTH)


def random_rows(count: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(2)
    rows = torch.randn(count, WIDTH) * torch.exp2(torch.randint(-60, 13, (count, 1)).float())
    return rows.to(dtype)


@BOTH
def test_a_latent_changes_by_a_sixteenth_at_most_and_its_key_not_beyond_16_bits(
    dtype: torch.dtype,
) -> None:
    rows = random_rows(320, dtype)
    back = round_trip(rows)
    assert torch.equal(back[:, RANK:], rows[:, RANK:].bfloat16().to(dtype))
    given, found = rows[:, :RANK].double(), back[:, :RANK].double()
    # Below the normal numbers of fp8, steps are as wide as the least of these: 2^-9 of a scale.
    step = given.abs().amax(-1, keepdim=True) / 224 * 2**-10
    assert bool(((found - given).abs() <= (given.abs() / 16).maximum(step)).all())
    assert (found - given).norm(dim=-1).div(given.norm(dim=-1)).max() < 0.06


@BOTH
def test_the_scale_is_that_of_the_latents_largest_number_wherever_it_is(
    dtype: torch.dtype,
) -> None:
    rows = torch.full((RANK, WIDTH), 2.0**-12, dtype=dtype)
    rows[range(RANK), range(RANK)] = -448.0
    payload = bytearray(RANK * ATTENTION.fp8_latent_bytes)
    assert Fp8Codec(ATTENTION, dtype).encode(rows.reshape(-1), payload)
    assert payload[-RANK:] == bytes([127] * RANK)


@BOTH
def test_what_was_rounded_once_stays_as_it_is(dtype: torch.dtype) -> None:
    once = round_trip(random_rows(320, dtype))
    assert torch.equal(round_trip(once), once)


@BOTH
def test_every_number_of_fp8_comes_back_as_torch_has_it(dtype: torch.dtype) -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = numbers[numbers.isfinite()]
    rows = torch.full((len(numbers), WIDTH), 448.0)  # the scale is 1
    rows[:, 3] = numbers
    assert torch.equal(round_trip(rows.to(dtype)), rows.to(dtype))


@BOTH
@pytest.mark.parametrize("largest", [0.0, 1e-38, 2.0**-120, 447.0, 448.0, 449.0, 57344.0])
def test_the_largest_number_is_within_a_sixteenth_at_every_size(
    dtype: torch.dtype, largest: float
) -> None:
    rows = torch.zeros(16, WIDTH, dtype=dtype)
    rows[5, 3] = -largest
    back = round_trip(rows)
    assert float(back[5, 3]) == pytest.approx(float(rows[5, 3]), rel=1 / 16, abs=1e-39)
    back[5, 3] = 0
    assert torch.equal(back, torch.zeros_like(back))


@BOTH
@pytest.mark.parametrize("at", [0, RANK - 1, RANK, WIDTH - 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(dtype: torch.dtype, at: int, bad: float) -> None:
    rows = random_rows(16, dtype)
    rows[7, at] = bad
    payload = bytearray(16 * ATTENTION.fp8_latent_bytes)
    assert not Fp8Codec(ATTENTION, dtype).encode(rows.reshape(-1), payload)


@BOTH
def test_a_latent_that_no_norm_lets_through_is_refused(dtype: torch.dtype) -> None:
    payload = bytearray(16 * ATTENTION.fp8_latent_bytes)
    for largest in (57600.0, 2.0**100, 3e38):
        rows = torch.zeros(16, WIDTH, dtype=dtype)
        rows[3, 4] = largest
        assert not Fp8Codec(ATTENTION, dtype).encode(rows.reshape(-1), payload)


def test_a_key_beyond_bfloat16_is_refused() -> None:
    rows = torch.zeros(16, WIDTH)
    rows[0, -1] = 3.4e38  # finite in float32
    payload = bytearray(16 * ATTENTION.fp8_latent_bytes)
    assert not Fp8Codec(ATTENTION, torch.float32).encode(rows.reshape(-1), payload)


class Nowhere:
    """A client of a store that takes nothing and has nothing."""

    def get(self, *_: Any) -> None: ...

    def put(self, *_: Any) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def prefixes() -> Any:
    layout = block_layout(
        ARCHITECTURE, torch.float32, model="m", block=BLOCK, tenant="t", stored="fp8"
    )
    metrics = LatentMetrics(CollectorRegistry())
    store = LatentStore(layout, Nowhere, metrics, arena_blocks=4, ttl_s=60)  # type: ignore[arg-type]
    yield LatentPrefixes(store, ARCHITECTURE, torch.float32, metrics)
    store.close()


@pytest.mark.parametrize("bad", [False, True])
def test_a_block_with_a_number_that_is_not_finite_is_left_as_it_is_and_not_kept(
    prefixes: LatentPrefixes, bad: bool
) -> None:
    cache = KVCache(ARCHITECTURE, slots=1, context=CONTEXT, dtype=torch.float32)
    data = random_rows(2 * BLOCK, torch.float32).reshape(-1)
    if bad:
        data[100] = math.inf
    cache.import_tokens(0, 0, data)
    prompt = list(range(BLOCK + 1))
    sequence = Sequence(prompt=prompt, limit=1, ends=set(), cached=BLOCK,
                        sampler=Sampler(temperature=0, top_p=1, seed=0))  # fmt: skip
    sequence.digests = prefixes._store.layout.digests(prompt)
    prefixes.save(sequence, cache, 0)
    kept = cache.export_tokens(0, 0, BLOCK)
    assert torch.equal(kept, data) is bad
    other = KVCache(ARCHITECTURE, slots=1, context=CONTEXT, dtype=torch.float32)
    assert prefixes.load(sequence, other, 0) == (0 if bad else BLOCK)
    if not bad:
        assert torch.equal(other.export_tokens(0, 0, BLOCK), kept), "a hit is what the node had"


def test_a_trained_model_says_nearly_the_same_of_real_text(latent_model: Path) -> None:
    """docs/latent-cache.md states these bounds; `isomorph bench mla` measures a larger model."""
    from bench.mla_compression import deviation
    from model_code.common.model_folder import load_folder
    from model_code.common.text import text_of_python

    model = load_folder(latent_model, context=576, dtype=torch.float32)
    tokens = model.tokenizer.encode(text_of_python()[60_000:70_000])[:512]
    found = deviation(model, tokens, rounded_keys=False)
    assert 0 < found.logits < 0.001
    assert found.greedy > 0.99
    assert abs(found.perplexity - 1) < 0.001
