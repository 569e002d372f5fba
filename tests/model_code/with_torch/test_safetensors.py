"""Folders as Hugging Face writes them: read, refused, written again."""

# mypy: disable-error-code="no-untyped-call"

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_code.common.architecture import parse
from model_code.common.checkpoint import load_decoder, tensor_names
from model_code.common.decoder import Decoder
from model_code.common.errors import WeightsError
from model_code.common.safetensors_folder import (
    INDEX,
    SINGLE,
    SafetensorsFolder,
    save_folder,
    write_folder,
)
from tests.model_code.with_torch.families import (
    CONTEXT,
    FAMILIES,
    logits,
    pair,
    random_tokens,
    relative,
)

pytestmark = pytest.mark.torch


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    config = json.loads((folder / "config.json").read_text())
    tensors = SafetensorsFolder(folder, parse(config))
    decoder = load_decoder(parse(config), tensors, context=CONTEXT, dtype=dtype)
    tensors.check_complete(tensor_names(decoder))
    return decoder


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_what_transformers_wrote(name: str, tmp_path: Path) -> None:
    save_folder(pair(name).ours, pair(name).config, tmp_path)
    written, theirs = load_file(tmp_path / SINGLE), pair(name).state
    assert written.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(written[key], tensor), key


@pytest.mark.parametrize("name", ["llama", "mixtral", "deepseek_v3", "gemma3", "gpt_oss"])
@torch.inference_mode()
def test_transformers_loads_what_is_written_and_computes_the_same(
    name: str, tmp_path: Path
) -> None:
    save_folder(pair(name).ours, pair(name).config, tmp_path)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokens = random_tokens(40)
    assert relative(logits(pair(name).ours, tokens, []), theirs(tokens[None]).logits[0]) < 1e-5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model in several files."""
    made = pair("qwen3_moe")
    write_folder(iter(made.state.items()), made.config, tmp_path, shard_bytes=40_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    return tmp_path


def test_files_are_read_straight_into_another_dtype(folder: Path) -> None:
    ours, made = read(folder), pair("qwen3_moe")
    for (name, found), expected in zip(
        ours.named_parameters(), made.ours.parameters(), strict=True
    ):
        assert torch.equal(found, expected), name
    for found, expected in zip(
        read(folder, torch.bfloat16).parameters(), made.ours.parameters(), strict=True
    ):
        assert torch.equal(found, expected.bfloat16())


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Put all tensors, changed, into one file."""
    state = dict(pair("qwen3_moe").state)
    change(state)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(state, folder / SINGLE)


LAYER = "model.layers.0."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(LAYER + "mlp.experts.3.up_proj.weight"),
         r"model.layers.0.mlp.experts.3.up_proj.weight is missing"),
        (lambda s: s.update({LAYER + "odd": torch.ones(1)}),
         r"holds model.layers.0.odd, 1 in all, which the model in its config.json does not have"),
        (lambda s: s.update({"model.norm.weight": torch.ones(47)}),
         r"model.norm.weight has shape \(47,\), the model's config says \(48,\)"),
        (lambda s: s.update({"model.norm.weight": torch.full((48,), torch.nan)}),
         r"model.norm.weight holds values that are not finite"),
        (lambda s: s.update({LAYER + "mlp.experts.1.down_proj.weight":
                             torch.full((48, 24), torch.inf)}),
         r"mlp.experts.1.down_proj.weight holds values that are not finite"),
        (lambda s: s.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}),
         r"model.norm.weight is of torch.int8; the native engine reads weights that are floating"),
    ],
)  # fmt: skip
def test_fails_when_a_tensor_is_missing_extra_misshapen_or_no_number(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    rewritten(folder, change)
    with pytest.raises(WeightsError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_fails_when_a_file_is_cut_short_anywhere(folder: Path) -> None:
    shard = sorted(folder.glob("model-*"))[1]
    data = shard.read_bytes()
    for length in (0, 4, 100, len(data) // 2, len(data) - 1):
        shard.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=rf"{shard.name}: truncated or damaged \({length:,}"):
            read(folder)


def test_fails_when_files_are_missing(folder: Path) -> None:
    first, *_ = sorted(folder.glob("model-*-of-*"))
    first.unlink()
    with pytest.raises(WeightsError, match=rf"{first.name} missing, which {INDEX} names"):
        read(folder)
    (folder / INDEX).unlink()
    with pytest.raises(WeightsError, match=rf"must hold {SINGLE}, or {INDEX} with its files"):
        read(folder)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "x.bin", 5])
def test_fails_when_the_index_names_what_is_no_file_of_the_folder(
    folder: Path, shard: object
) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(WeightsError, match=r"weight_map must say which .safetensors file has each"):
        read(folder)
    (folder / INDEX).write_text("{")
    with pytest.raises(WeightsError, match=r"not valid JSON at line 1; is the file truncated\?"):
        read(folder)


def test_tensors_that_are_known_to_be_of_no_use_are_left_out(tmp_path: Path) -> None:
    made = pair("deepseek_v3")
    plain = {k: v for k, v in made.config.items() if k != "num_nextn_predict_layers"}
    more = {
        "model.layers.3.eh_proj.weight": torch.ones(1),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1),
    }
    write_folder(
        iter((made.state | more).items()), plain | {"num_nextn_predict_layers": 1}, tmp_path
    )
    assert read(tmp_path).architecture.mtp_layers == 1
    write_folder(iter((made.state | more).items()), plain, tmp_path)
    with pytest.raises(WeightsError, match=r"holds model.layers.3.eh_proj.weight, 1 in all"):
        read(tmp_path)


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_folder_is_read(tmp_path: Path, prefix: str) -> None:
    made = pair("gemma3")
    inner = "model." if prefix.startswith("model.") else ""
    state = {prefix + name.removeprefix(inner): tensor for name, tensor in made.state.items()}
    state["vision_tower.x"] = torch.ones(1)
    write_folder(iter(state.items()), made.config, tmp_path)
    for found, expected in zip(read(tmp_path).parameters(), made.ours.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_fp8_matrices_are_multiplied_by_the_scales_of_their_blocks(tmp_path: Path) -> None:
    matrix, scales = torch.randn(130, 200), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    stored = {"m": matrix.to(torch.float8_e4m3fn), "m_scale_inv": scales,
              "n": matrix.to(torch.float8_e4m3fn), "n_scale_inv": scales[:1].clone()}  # fmt: skip
    save_file(stored, tmp_path / SINGLE)
    tensors = SafetensorsFolder(tmp_path, pair("llama").architecture)
    found, plain = tensors("m"), stored["m"].float()
    assert torch.equal(found[:128, :128], plain[:128, :128])
    assert torch.equal(found[:128, 128:], 2 * plain[:128, 128:])
    assert torch.equal(found[128:, :128], 3 * plain[128:, :128])
    assert torch.equal(found[128:, 128:], 4 * plain[128:, 128:])
    with pytest.raises(
        WeightsError, match=r"scales of shape \(1, 2\) do not fit a matrix of \(130, 200\) in bloc"
    ):
        tensors("n")


def test_one_file_takes_the_place_of_several(folder: Path) -> None:
    made = pair("qwen3_moe")
    write_folder(iter(made.state.items()), made.config, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", SINGLE]
