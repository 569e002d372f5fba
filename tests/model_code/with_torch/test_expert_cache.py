"""Experts under a budget: what is computed, who stays, who waits."""

import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from model_code.common.errors import SettingsError, WeightsError
from model_code.moe.experts import ExpertsUnavailableError, layout
from model_code.moe.experts.cache import ExpertCache
from model_code.moe.experts.metrics import ExpertMetrics
from model_code.moe.experts.source import DiskSource
from tests.model_code.with_torch.experts import (
    EXPERT,
    EXPERTS,
    LAYERS,
    Numbered,
    cache_of,
    decoder_of,
    index_of,
    logits,
    visit,
)
from tests.model_code.with_torch.mixture import CONFIG

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("two_threads")]


@pytest.mark.parametrize("slots", [2, 5, 16])
def test_a_budget_of_any_size_changes_no_bit(divided: Path, slots: int) -> None:
    cache, metrics = cache_of(divided, slots)
    complete, _ = cache_of(divided, LAYERS * EXPERTS)
    found = logits(decoder_of(divided, cache))
    assert torch.equal(found, logits(decoder_of(divided, complete)))
    assert metrics.total("ExpertBytesLoaded") % EXPERT == 0
    assert (metrics.total("ExpertMisses") > LAYERS * EXPERTS) == (slots < 16)
    cache.close()


def test_it_equals_the_decoder_that_has_all_experts(divided: Path, whole: Path) -> None:
    cache, _ = cache_of(whole, 5)
    torch.testing.assert_close(
        logits(decoder_of(whole, cache)), logits(decoder_of(divided)), rtol=1e-4, atol=1e-4
    )


def test_without_a_compiler_it_computes_the_same(divided: Path, stock: None) -> None:
    cache, _ = cache_of(divided, 4)
    torch.testing.assert_close(
        logits(decoder_of(divided, cache)), logits(decoder_of(divided)), rtol=1e-4, atol=1e-4
    )


def test_experts_in_bfloat16_stay_so_and_count_as_their_floats(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bf16"
    decoder = decoder_of(whole).bfloat16()
    from model_code.mla import train_tiny
    from tests.model_code.with_torch.mixture import tokenizer

    train_tiny.save(folder, decoder, tokenizer(), CONFIG, "")
    index = index_of(folder)
    assert index.expert_bytes == EXPERT // 2
    cache = ExpertCache(index, DiskSource(folder, index), ExpertMetrics(), budget_bytes=2 * EXPERT)
    assert cache.slots == 4
    torch.testing.assert_close(
        logits(decoder_of(folder, cache)), logits(decoder_of(folder)), rtol=1e-4, atol=1e-4
    )


def test_who_is_visited_often_stays_though_others_came_later(divided: Path) -> None:
    source = Numbered()
    cache, metrics = cache_of(divided, 3, source)
    for _ in range(5):
        visit(cache, 1, 0, 1)
    for number in (2, 3, 4, 5, 6, 7):
        visit(cache, 1, number)
    source.asked.clear()
    visit(cache, 1, 0, 1)
    assert source.asked == []
    assert metrics.total("ExpertErrors") == 0


def test_who_was_visited_often_long_ago_goes(divided: Path) -> None:
    source = Numbered()
    cache, _ = cache_of(divided, 2, source)
    for _ in range(20):
        visit(cache, 1, 0, 1)
    for _ in range(2000):  # of two layers, half a life is 128 visits
        visit(cache, 1, 2)
    visit(cache, 1, 3)
    source.asked.clear()
    visit(cache, 1, 2)
    assert source.asked == []


def test_what_is_there_comes_first_while_the_rest_is_loaded(divided: Path) -> None:
    source = Numbered()
    cache, _ = cache_of(divided, 6, source)
    visit(cache, 1, 0, 1)
    source.go.clear()
    groups = cache.visit(1, [0, 1, 2, 3])
    assert sorted(next(groups)) == [0, 1]
    assert cache._loading  # 2 and 3 are on their way while 0 and 1 are computed
    source.go.set()
    assert sorted(number for group in groups for number in group) == [2, 3]


def test_slots_hold_what_they_say(divided: Path) -> None:
    cache, _ = cache_of(divided, 3, Numbered())
    for group in cache.visit(1, [1, 5, 2, 7, 0, 6]):
        for number, slot in group.items():
            assert set(cache.down[slot].view(torch.uint8).flatten().tolist()) == {number}
            assert set(cache.gate_up[slot].view(torch.uint8).flatten().tolist()) == {number}


def test_what_was_foreseen_is_a_hit_and_not_loaded_again(divided: Path) -> None:
    source = Numbered()
    cache, metrics = cache_of(divided, 6, source)
    cache.prefetch(2, [4, 5])
    while cache._loading:
        cache._collect()
        time.sleep(0.001)
    visit(cache, 2, 4, 5)
    assert sorted(source.asked) == [(2, 4), (2, 5)]  # by threads, side by side
    assert metrics.total("ExpertHits") == metrics.total("ExpertPrefetchHits") == 2


def test_prefetch_does_not_throw_out_what_is_being_computed(divided: Path) -> None:
    cache, _ = cache_of(divided, 2, Numbered())
    for group in cache.visit(1, [0, 1]):
        cache.prefetch(2, [4, 5])
        for number, slot in group.items():
            assert set(cache.down[slot].view(torch.uint8).flatten().tolist()) == {number}


def test_a_model_prefetches_and_says_so(divided: Path) -> None:
    cache, metrics = cache_of(divided, 8)
    logits(decoder_of(divided, cache), steps=20)
    assert metrics.total("ExpertPrefetchHits") > 0
    off, none = cache_of(divided, 8)
    logits(decoder_of(divided, off, prefetch=False), steps=20)
    assert none.total("ExpertPrefetchHits") == 0


def test_a_source_that_is_gone_is_told_and_what_is_there_still_serves(divided: Path) -> None:
    source = Numbered()
    cache, metrics = cache_of(divided, 4, source)
    visit(cache, 1, 0, 1)
    source.fails = True
    with pytest.raises(ExpertsUnavailableError):
        visit(cache, 1, 0, 2)
    assert visit(cache, 1, 0, 1) == [[0, 1]]
    cache.prefetch(2, [3])  # fails behind the scenes: nobody has asked for it
    time.sleep(0.05)
    assert visit(cache, 1, 0, 1) == [[0, 1]]
    source.fails = False
    assert [2] in visit(cache, 1, 2)
    assert metrics.total("ExpertErrors") == 2


def test_time_spent_waiting_is_counted(divided: Path) -> None:
    source = Numbered()
    cache, metrics = cache_of(divided, 4, source)
    source.go.clear()
    threading.Timer(0.05, source.go.set).start()
    visit(cache, 1, 0)
    assert metrics.total("ExpertStallMs") >= 40
    assert metrics.take()["ExpertMisses"] == [1]
    assert metrics.take()["ExpertMisses"] == [0]


def test_a_budget_for_fewer_than_a_tokens_experts_is_refused(divided: Path) -> None:
    with pytest.raises(SettingsError) as error:
        cache_of(divided, 1)
    assert str(error.value) == (
        "ISOMORPH_EXPERT_MIB is 0.00585938, less than the 2 experts of 6,144 bytes that a token "
        "visits in one layer; allowed are 1 and more"
    )


def test_a_checkpoint_pruned_to_4_of_16_is_served_out_of_the_cache(
    whole: Path, tmp_path: Path
) -> None:
    """Zeros are stored as zeros: one of transformers' checkpoints, one of ours, the same bytes."""
    from model_code.common.sparse import prune
    from model_code.mla import train_tiny
    from tests.model_code.with_torch.mixture import tokenizer

    decoder = decoder_of(whole)
    for block in decoder.layers[1:]:
        experts = block.feed_forward.experts
        for name in ("gate_up", "down"):
            for matrix in getattr(experts, name):
                matrix.copy_(prune(matrix))
    train_tiny.save(tmp_path / "pruned", decoder, tokenizer(), CONFIG, "")
    layout.lay_out(tmp_path / "pruned", tmp_path / "mixture")
    cache, _ = cache_of(tmp_path / "mixture", 5)
    found = logits(decoder_of(tmp_path / "mixture", cache))
    torch.testing.assert_close(found, logits(decoder), rtol=1e-4, atol=1e-4)
    for rows in (cache.gate_up.flatten(0, 1), cache.down.flatten(0, 1)):
        assert (rows.unflatten(1, (-1, 16)) != 0).sum(2).max() <= 4


def test_a_packed_checkpoint_is_served_from_memory_and_refused_by_the_cache(
    whole: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from model_code.common.sparse import PLACES, VALUES, SparseWeight, prune

    packed = Path(shutil.copytree(whole, tmp_path / "packed"))
    zeros = Path(shutil.copytree(whole, tmp_path / "zeros"))
    tensors = load_file(whole / "model.safetensors")
    matrices = [name for name in tensors if ".experts." in name]
    pruned = {name: prune(tensors.pop(name)) for name in matrices}
    save_file(tensors | pruned, zeros / "model.safetensors")
    for name, matrix in pruned.items():
        sparse = SparseWeight(matrix, matrix.dtype)
        tensors |= {name + VALUES: sparse.values_OGK, name + PLACES: sparse.places_OG2}
    save_file(tensors, packed / "model.safetensors")
    assert torch.equal(logits(decoder_of(packed)), logits(decoder_of(zeros)))
    with pytest.raises(WeightsError, match=r"gate_proj.weight is packed to 4:16; the expert cache"):
        index_of(packed)
