"""Experts under a budget: what is computed, who stays, what goes wrong."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from model_code.common import kernels
from model_code.common.architecture import parse, read
from model_code.common.cache import KVCache
from model_code.common.decoder import Decoder
from model_code.common.errors import SettingsError, WeightsError
from model_code.common.model_folder import load_folder
from model_code.common.safetensors_folder import INDEX, file_of_each
from model_code.common.span import Span
from model_code.moe.experts import ExpertsUnavailableError, layout
from model_code.moe.experts.cache import ExpertCache
from model_code.moe.experts.index import EXPERTS_FILE, ExpertIndex, read_header, read_index
from model_code.moe.experts.metrics import ExpertMetrics
from model_code.moe.experts.module import install
from model_code.moe.experts.source import DiskSource, Places, Source
from tests.model_code.with_torch.mixture import CONFIG, write_folder

pytestmark = pytest.mark.torch
EXPERT = 3 * CONFIG["hidden_size"] * CONFIG["moe_intermediate_size"] * 4
LAYERS, EXPERTS = 2, CONFIG["n_routed_experts"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("whole") / "mixture")


@pytest.fixture(scope="module")
def divided(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("divided") / "mixture"
    layout.lay_out(whole, out)
    return out


@pytest.fixture
def copy(divided: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(divided, tmp_path / "copy"))


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ISOMORPH_KERNELS", "off")
    kernels.loaded.cache_clear()
    yield
    kernels.loaded.cache_clear()


def index_of(folder: Path) -> ExpertIndex:
    return read_index(folder, read(folder))


def cache_of(
    folder: Path, slots: int, source: Source | None = None, **more: Any
) -> tuple[ExpertCache, ExpertMetrics]:
    index, metrics = index_of(folder), ExpertMetrics()
    source = source or DiskSource(folder, index)
    return ExpertCache(index, source, metrics, budget_bytes=slots * EXPERT, **more), metrics


def decoder_of(folder: Path, cache: ExpertCache | None = None, *, prefetch: bool = True) -> Decoder:
    prepare = partial(install, cache=cache, prefetch=prefetch) if cache else None
    return load_folder(folder, context=128, dtype=torch.float32, prepare=prepare).decoder


@torch.inference_mode()
def logits(decoder: Decoder, tokens: int = 12, steps: int = 6) -> torch.Tensor:
    """Read a prompt, then one token after the other."""
    torch.manual_seed(3)
    given = torch.randint(CONFIG["vocab_size"], (1, tokens + steps))
    kept = KVCache(decoder.architecture, slots=1, context=128, dtype=torch.float32)
    found = [decoder(given[:, :tokens], kept, Span(0, torch.tensor([0]), tokens))]
    for at in range(tokens, tokens + steps):
        found.append(decoder(given[:, at : at + 1], kept, Span(0, torch.tensor([at]), 1)))
    return decoder.logits(torch.cat(found, dim=1))


class Numbered:
    """A source whose bytes are the expert's number, and that can be made to wait or fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.go = threading.Event()
        self.go.set()
        self.fails = False

    def read(self, layer: int, number: int, places: Places) -> None:
        self.asked.append((layer, number))
        assert self.go.wait(10)
        if self.fails:
            raise ExpertsUnavailableError("gone")
        for place in places:
            place[:] = bytes([number]) * len(place)

    def close(self) -> None:
        pass


def visit(cache: ExpertCache, layer: int, *experts: int) -> list[list[int]]:
    return [sorted(group) for group in cache.visit(layer, experts)]


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
    assert source.asked == [(2, 4), (2, 5)]
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


def test_a_divided_checkpoint_is_still_one_of_transformers(divided: Path, whole: Path) -> None:
    from transformers import DeepseekV3ForCausalLM

    one, other = (
        DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (whole, divided)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_dividing_makes_each_expert_one_range_with_its_digest(divided: Path, whole: Path) -> None:
    index = index_of(divided)
    assert index.checked
    assert not index_of(whole).checked
    assert all(each.whole for layer in index.layers.values() for each in layer)
    files = set(file_of_each(divided).values())
    assert files == {
        "dense.safetensors", "experts-layer-001.safetensors", "experts-layer-002.safetensors"
    }  # fmt: skip


def test_a_command_divides_and_says_what_it_made(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert layout.main([str(whole), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 16 experts of 6,144 bytes in 2 files\n"
    assert layout.main([str(whole), str(out)]) == 1
    assert (
        capsys.readouterr().err == f"layout: {out}: is there already; name a folder that is not\n"
    )


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def test_a_truncated_file_is_named_with_its_expert(copy: Path) -> None:
    cache, _ = cache_of(copy, 8)
    path = copy / "experts-layer-001.safetensors"
    damage(path, lambda data: data.__delitem__(slice(-100, None)))
    with pytest.raises(WeightsError, match=r"experts-layer-001.safetensors: truncated: .* expert"):
        visit(cache, 1, *range(8))


def test_a_wrong_byte_is_found_by_its_experts_digest(copy: Path) -> None:
    cache, _ = cache_of(copy, 8)
    damage(copy / "experts-layer-002.safetensors", lambda data: data.__setitem__(-5, data[-5] ^ 1))
    visit(cache, 1, *range(8))
    with pytest.raises(WeightsError, match=r"expert 7 of layer 2 has sha256 .*, experts.json"):
        visit(cache, 2, *range(8))


def test_a_file_that_is_gone_is_named(copy: Path) -> None:
    cache, _ = cache_of(copy, 8)
    (copy / "experts-layer-001.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"experts-layer-001.safetensors: cannot be read: No"):
        visit(cache, 1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(version=2), "experts.json: is damaged: version 2 is not 1"),
        (lambda value: value["layers"].pop("1"), "lists other layers or experts than config.json"),
        (lambda value: value["layers"]["1"].update(file="../x"), "is no name of a safetensors"),
        (lambda value: value["layers"]["1"]["experts"][0].__setitem__(3, "x"), "is no sha256"),
        (
            lambda value: value["layers"]["1"]["experts"][0].__setitem__(0, -8),
            "expert begins at -8",
        ),
    ],
)
def test_a_list_of_experts_that_is_wrong_is_refused(
    copy: Path, change: Callable[[Any], None], message: str
) -> None:
    value = json.loads((copy / EXPERTS_FILE).read_text())
    change(value)
    (copy / EXPERTS_FILE).write_text(json.dumps(value))
    with pytest.raises(WeightsError, match=message):
        index_of(copy)


@pytest.mark.parametrize("length", [3, 100, 10_000])
def test_a_header_that_is_cut_is_told_with_the_file(
    whole: Path, tmp_path: Path, length: int
) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes((whole / "model.safetensors").read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"cut.safetensors: truncated or damaged"):
        read_header(path)


def test_a_tensor_that_is_missing_is_named(copy: Path) -> None:
    (copy / EXPERTS_FILE).unlink()
    listed = json.loads((copy / INDEX).read_text())
    del listed["weight_map"]["model.layers.1.mlp.experts.3.up_proj.weight"]
    (copy / INDEX).write_text(json.dumps(listed))
    with pytest.raises(WeightsError, match=r"layers.1.mlp.experts.3.up_proj.weight is missing"):
        index_of(copy)


def test_experts_in_a_dtype_that_no_kernel_takes_are_refused(whole: Path, tmp_path: Path) -> None:
    from model_code.mla import train_tiny
    from tests.model_code.with_torch.mixture import tokenizer

    train_tiny.save(tmp_path / "half", decoder_of(whole).half(), tokenizer(), CONFIG, "")
    with pytest.raises(WeightsError, match="experts are stored as F16; the expert cache takes one"):
        index_of(tmp_path / "half")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"first_k_dense_replace": 3}, "mixture has no routed experts; leave it out"),
        ({"hidden_act": "gelu"}, "have biases or another activation"),
    ],
)
def test_a_model_without_such_experts_is_refused(
    whole: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=f"ISOMORPH_EXPERT_MIB is set, and .*{message}"):
        read_index(whole, parse(CONFIG | config, name="mixture"))


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
