"""Experts in a file of their own: how it is made, and what is wrong with one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_code.common.architecture import parse
from model_code.common.errors import SettingsError, WeightsError
from model_code.common.safetensors_folder import INDEX, file_of_each
from model_code.moe.experts import layout
from model_code.moe.experts.index import EXPERTS_FILE, read_header, read_index
from tests.model_code.with_torch.experts import (
    cache_of,
    decoder_of,
    index_of,
    visit,
)
from tests.model_code.with_torch.mixture import CONFIG

pytestmark = pytest.mark.torch


@pytest.fixture
def copy(divided: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(divided, tmp_path / "copy"))


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
