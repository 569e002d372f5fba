"""Folders with the 4:16 pattern: made, checked, packed, loaded, trained with their mask."""

# mypy: disable-error-code="no-untyped-call"

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM

from model_code.common.architecture import parse
from model_code.common.checkpoint import load_decoder, tensor_names
from model_code.common.decoder import Decoder
from model_code.common.errors import WeightsError
from model_code.common.safetensors_folder import SINGLE, SafetensorsFolder, save_folder
from model_code.common.sparse import PLACES, VALUES, SparseWeight, most_in_a_group, prune
from model_code.moe.train.sparsity import FIELD, Masks, Sparsity, prune_folder, verify
from tests.model_code.with_torch.families import logits, random_tokens, relative

pytestmark = pytest.mark.torch
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 48,
    "intermediate_size": 64, "moe_intermediate_size": 32, "vocab_size": 101,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "max_position_embeddings": 128,
    "rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "pad_token_id": 0,
}  # fmt: skip
ZEROS = Sparsity(matrices="feed-forward", layout="zeros")
PACKED = Sparsity(matrices="feed-forward", layout="packed")
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


def write(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = CONFIG | changes
    decoder = Decoder(parse(config), context=64, dtype=dtype).requires_grad_(False)
    for name, tensor in [*decoder.named_parameters(), *decoder.named_buffers()]:
        tensor.normal_(1.0 if "norm" in name else 0.0, 0.05)
    folder.mkdir()
    save_folder(decoder, config, folder)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sparsity") / "dense")


@pytest.fixture(scope="module")
def zeros(dense: Path) -> Path:
    return pruned(dense, dense.parent / "zeros", ZEROS)


@pytest.fixture(scope="module")
def packed(dense: Path) -> Path:
    return pruned(dense, dense.parent / "packed", PACKED)


def pruned(folder: Path, out: Path, sparsity: Sparsity) -> Path:
    out.mkdir()
    prune_folder(folder, out, sparsity)
    return out


def load(folder: Path) -> Decoder:
    config = json.loads((folder / "config.json").read_text())
    tensors = SafetensorsFolder(folder, parse(config))
    decoder = load_decoder(parse(config), tensors, context=64, dtype=torch.float32)
    tensors.check_complete(tensor_names(decoder))
    return decoder


def changed(folder: Path, out: Path, change: Any) -> Path:
    """A copy of a folder with its tensors changed."""
    out.mkdir()
    state = load_file(folder / SINGLE)
    change(state)
    save_file(state, out / SINGLE, metadata={"format": "pt"})
    (out / "config.json").write_text((folder / "config.json").read_text())
    return out


def test_matrices_of_the_feed_forward_part_get_the_pattern_and_nothing_else_changes(
    dense: Path, zeros: Path
) -> None:
    before, after = load_file(dense / SINGLE), load_file(zeros / SINGLE)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        has = ".mlp." in name and tensor.dim() == 2 and not name.endswith("mlp.gate.weight")
        assert torch.equal(after[name], prune(tensor) if has else tensor), name
    assert json.loads((zeros / "config.json").read_text())[FIELD] == {
        "pattern": "4:16", "matrices": "feed-forward", "layout": "zeros",
    }  # fmt: skip


def test_all_are_the_projections_of_attention_too_but_not_what_latents_absorb(
    dense: Path, tmp_path: Path
) -> None:
    out = pruned(dense, tmp_path / "all", Sparsity(matrices="all", layout="zeros"))
    state = load_file(out / SINGLE)
    whole = {
        name.split(".", 3)[3] for name, tensor in state.items()
        if tensor.dim() == 2 and "layers" in name and most_in_a_group(tensor) > 4
    }  # fmt: skip
    assert whole == {"self_attn.kv_b_proj.weight", "mlp.gate.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_and_with_zeros_are_the_same_model_to_the_bit(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    source = write(tmp_path / "dense", dtype)
    one = load(pruned(source, tmp_path / "zeros", ZEROS))
    other = load(pruned(source, tmp_path / "packed", PACKED))
    for (name, found), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(found, expected), name


@torch.inference_mode()
def test_transformers_loads_the_zeros_and_computes_the_same(zeros: Path, packed: Path) -> None:
    theirs: Any = AutoModelForCausalLM.from_pretrained(zeros, attn_implementation="eager").eval()
    tokens = random_tokens(40)
    expected = theirs(tokens[None]).logits[0]
    for folder in (zeros, packed):
        assert relative(logits(load(folder), tokens, []), expected) < 1e-5


def test_the_report_counts_the_bytes_that_the_files_have(zeros: Path, packed: Path) -> None:
    def stored(folder: Path) -> int:
        return sum(tensor.nbytes for tensor in load_file(folder / SINGLE).values())

    for folder in (zeros, packed):
        found = verify(folder)
        assert (found.dense_bytes, found.packed_bytes) == (stored(zeros), stored(packed))
        assert found.matrices == 3 * (1 + 4 + 1)
    pruned_numbers = 3 * 48 * (64 + 4 * 32 + 32)
    assert found.share == pruned_numbers * 4 / found.dense_bytes
    assert "18 matrices with at most 4 of 16" in found.text


def test_a_folder_with_the_pattern_can_be_packed_and_unpacked_again(
    zeros: Path, packed: Path, tmp_path: Path
) -> None:
    again = pruned(packed, tmp_path / "zeros", ZEROS)
    assert (again / SINGLE).read_bytes() == (zeros / SINGLE).read_bytes()
    again = pruned(zeros, tmp_path / "packed", PACKED)
    assert (again / SINGLE).read_bytes() == (packed / SINGLE).read_bytes()


def test_weights_in_fp8_are_pruned_as_bfloat16(tmp_path: Path) -> None:
    source = write(tmp_path / "dense", torch.bfloat16)
    scale = torch.tensor([[0.5]])

    def to_fp8(state: dict[str, torch.Tensor]) -> None:
        state[EXPERT] = (state[EXPERT].float() / scale).to(torch.float8_e4m3fn)
        state[EXPERT + "_scale_inv"] = scale

    fp8 = changed(source, tmp_path / "fp8", to_fp8)
    config = json.loads((fp8 / "config.json").read_text())
    (fp8 / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "fp8"}})
    )
    out = pruned(fp8, tmp_path / "out", ZEROS)
    found = load_file(out / SINGLE)[EXPERT]
    numbers = (load_file(source / SINGLE)[EXPERT].float() / scale).to(torch.float8_e4m3fn)
    assert torch.equal(found, prune((numbers.float() * scale).bfloat16()))
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_a_training_step_with_the_mask_keeps_the_pattern_and_one_without_it_does_not(
    zeros: Path, tmp_path: Path
) -> None:
    for name, keeps in (("kept", True), ("broken", False)):
        decoder = load(zeros).requires_grad_(True)
        masks = Masks(decoder, "feed-forward")
        optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.1)
        sum(parameter.sum() for parameter in decoder.parameters()).backward()
        optimizer.step()
        if keeps:
            masks(decoder)
        (tmp_path / name).mkdir()
        save_folder(decoder, json.loads((zeros / "config.json").read_text()), tmp_path / name)
    assert verify(tmp_path / "kept").matrices == 18
    with pytest.raises(
        WeightsError,
        match=r"down_proj.weight has 16 numbers other than zero in 16 inputs; 4:16 allows 4: what "
        r"trained it after pruning did not keep the mask; prune it again",
    ):
        verify(tmp_path / "broken")
    with pytest.raises(WeightsError, match="did not keep the mask"):
        pruned(tmp_path / "broken", tmp_path / "again", PACKED)


def test_a_folder_that_is_not_pruned_is_named(dense: Path) -> None:
    with pytest.raises(
        WeightsError,
        match=r"dense: is not pruned: its config.json has no isomorph_sparsity; `python -m "
        r"model_code.moe.train.prune FOLDER OUT` makes such a folder",
    ):
        verify(dense)


def test_a_width_that_sixteen_does_not_divide_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "dense", moe_intermediate_size=40)
    with pytest.raises(
        WeightsError,
        match=r"layers.1.mlp.experts.0.down_proj.weight: 4:16 sparsity takes multiples of 16 "
        r"inputs, got 40; its config.json sets them",
    ):
        pruned(source, tmp_path / "out", ZEROS)


def test_numbers_that_are_not_finite_are_named(dense: Path, tmp_path: Path) -> None:
    source = changed(dense, tmp_path / "nan", lambda state: state[EXPERT].fill_(torch.nan))
    with pytest.raises(
        WeightsError, match=r"experts.2.up_proj.weight holds values that are not finite; train it"
    ):
        pruned(source, tmp_path / "out", ZEROS)


def test_a_family_whose_experts_are_one_tensor_is_refused(dense: Path, tmp_path: Path) -> None:
    def fuse(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if ".mlp." in name]:
            del state[name]
        state["model.layers.1.mlp.experts.gate_up_proj"] = torch.ones(4, 48, 64)

    with pytest.raises(
        WeightsError, match=r"has no matrix to prune \(feed-forward\); families whose experts are"
    ):
        pruned(changed(dense, tmp_path / "fused", fuse), tmp_path / "out", ZEROS)
    config = json.loads((dense / "config.json").read_text()) | {FIELD: ZEROS.field}
    (tmp_path / "fused" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"config.json says 4:16, and no matrix is there"):
        verify(tmp_path / "fused")


@pytest.mark.parametrize(
    "field", [[], {}, {"pattern": "2:4", "matrices": "all", "layout": "zeros"},
              {"pattern": "4:16", "matrices": "some", "layout": "zeros"},
              {"pattern": "4:16", "matrices": "all", "layout": "csr"}],
)  # fmt: skip
def test_a_field_that_this_version_did_not_write_is_refused(
    dense: Path, tmp_path: Path, field: Any
) -> None:
    folder = changed(dense, tmp_path / "other", lambda _: None)
    config = json.loads((dense / "config.json").read_text()) | {FIELD: field}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        WeightsError,
        match=r"isomorph_sparsity is .*; allowed: pattern 4:16, matrices feed-forward or all, "
        r"layout zeros or packed",
    ):
        verify(folder)


def test_a_layout_other_than_the_one_that_is_said_is_refused(packed: Path, tmp_path: Path) -> None:
    folder = changed(packed, tmp_path / "lies", lambda _: None)
    config = json.loads((packed / "config.json").read_text()) | {FIELD: ZEROS.field}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        WeightsError, match=r"is stored with layout packed, its config.json says zeros"
    ):
        verify(folder)


def drop_places(state: dict[str, torch.Tensor]) -> None:
    del state[EXPERT + PLACES]


def cut_places(state: dict[str, torch.Tensor]) -> None:
    state[EXPERT + PLACES] = state[EXPERT + PLACES][:-1].clone()


def repeat_a_place(state: dict[str, torch.Tensor]) -> None:
    state[EXPERT + PLACES].fill_(0x11)


def keep_both(state: dict[str, torch.Tensor]) -> None:
    state[EXPERT] = torch.zeros(32, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_places, r"up_proj.weight.sparse_places is missing"),
        (cut_places, r"4:16 values of torch.float32 \(32, 3, 4\) with places of torch.uint8 "
         r"\(31, 3, 2\); allowed are floats \[O, G, 4\] with uint8 \[O, G, 2\]"),
        (repeat_a_place, r"4:16 places of a group must rise; these are damaged"),
        (keep_both, r"is there both packed and with its zeros"),
    ],
)  # fmt: skip
def test_damaged_packed_matrices_are_named(
    packed: Path, tmp_path: Path, change: Any, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        load(changed(packed, tmp_path / "damaged", change))


def test_packed_matrices_that_the_model_has_not_are_extra(packed: Path, tmp_path: Path) -> None:
    def add(state: dict[str, torch.Tensor]) -> None:
        extra = SparseWeight(torch.ones(16, 16))
        state["model.layers.1.mlp.experts.9.up_proj.weight" + VALUES] = extra.values_OGK
        state["model.layers.1.mlp.experts.9.up_proj.weight" + PLACES] = extra.places_OG2

    with pytest.raises(WeightsError, match=r"experts.9.up_proj.weight.sparse_places, .* 2 in all"):
        load(changed(packed, tmp_path / "extra", add))


def test_few_numbers_and_ties_stay_within_the_pattern() -> None:
    ties = torch.ones(3, 32)
    assert most_in_a_group(prune(ties)) == 4
    assert prune(ties)[0, :5].tolist() == [1, 1, 1, 1, 0]
    few = torch.zeros(2, 16)
    few[0, 9] = -2.0
    assert torch.equal(SparseWeight(few, few.dtype).unpack(), few)
    assert most_in_a_group(few) == 1
    many = torch.randn(2500, 16)  # more rows than are ordered at a time
    assert torch.equal(prune(many), torch.cat([prune(many[:7]), prune(many[7:])]))
    assert torch.equal(SparseWeight(many, many.dtype).unpack(), prune(many))


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """This process as the first of two, the other of which is not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("two_ranks")
def test_a_rank_masks_its_own_shards(zeros: Path) -> None:
    decoder = load(zeros).requires_grad_(True)
    whole = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    fully_shard(decoder)
    masks = Masks(decoder, "feed-forward")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(1)
    masks(decoder)
    name = "layers.1.feed_forward.experts.down"
    local = decoder.get_parameter(name).to_local()
    expected = whole[name][: len(local)]
    assert len(local) == 2  # of four experts
    assert torch.equal(local, torch.where(expected != 0, expected + 1, 0))
    router = decoder.get_parameter("layers.1.feed_forward.router.weight").to_local()
    assert (router != 0).all()
