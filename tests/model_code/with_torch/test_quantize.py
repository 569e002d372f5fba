"""Weights of 8 and 4 bits, and 4:16 sparse ones: their numbers, their bytes, their loss."""

# mypy: disable-error-code="untyped-decorator, no-untyped-call"

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.quantization import BOUNDS, divergence
from model_code.common.architecture import BITS, SPARSE_BITS_PER_16
from model_code.common.checkpoint import load_decoder, stored
from model_code.common.engine.native import NativeEngine
from model_code.common.errors import SettingsError
from model_code.common.linear import Linear
from model_code.common.quantize import Int4Weight, Int8Weight, StockInt4Weight, pack
from model_code.common.sparse import SparseWeight, prune
from tests.model_code.with_torch.families import CONTEXT, logits, pair, random_tokens

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("two_threads")]
SEEDS = st.integers(0, 9)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 50), st.integers(1, 50))
def test_int8_is_off_by_half_a_step_of_its_row_at_most(
    seed: int, outputs: int, inputs: int
) -> None:
    torch.manual_seed(seed)
    dense = torch.randn(outputs, inputs) * torch.logspace(-3, 3, outputs)[:, None]
    step = dense.abs().amax(1, keepdim=True) / 127
    assert ((Int8Weight(dense).dense(slice(None)) - dense).abs() <= step * 0.501).all()


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 3), st.integers(1, 4))
def test_int4_is_off_by_little_more_than_half_a_step_of_its_group(
    seed: int, outputs: int, groups: int
) -> None:
    torch.manual_seed(seed)
    dense = torch.randn(16 * outputs, 32 * groups)
    spans = dense.unflatten(1, (-1, 32))
    step = ((spans.amax(2) - spans.amin(2)) / 15)[..., None]
    off = (Int4Weight(dense).dense(slice(None)).unflatten(1, (-1, 32)) - spans).abs()
    # bfloat16 rounds the scale, which counts 15 times, and the offset.
    assert (off <= 0.5 * step + (15 * step + spans.abs().amax(2, keepdim=True)) / 256).all()


@pytest.mark.parametrize("value", [0.0, 1e-30, -3.5])
def test_a_matrix_of_one_number_stays_what_it_is(value: float) -> None:
    dense = torch.full((16, 32), value)
    for made in (Int8Weight(dense), Int4Weight(dense)):
        assert torch.allclose(made.dense(slice(None)), dense, rtol=1e-2, atol=1e-37)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_torch_s_own_int4_gives_what_ours_gives(rows: int) -> None:
    torch.manual_seed(0)
    ours, x = Int4Weight(torch.randn(48, 96)), torch.randn(rows, 96)
    found, expected = StockInt4Weight(ours)(x), ours(x)
    assert (found - expected).abs().max() < 1e-2 * expected.abs().max()
    assert StockInt4Weight(ours).nbytes == ours.nbytes


def test_without_a_compiler_many_rows_go_through_floats_and_few_through_stock_operations(
    stock: None,
) -> None:
    torch.manual_seed(0)
    dense = torch.randn(48, 96)
    for quantization in ("int8", "int4"):
        made, x = pack(dense, quantization), torch.randn(40, 96)
        assert (made(x)[:3] - made(x[:3])).abs().max() < 2e-2 * made(x).abs().max()
    assert isinstance(pack(dense, "int4"), StockInt4Weight)


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 33), (17, 32)])
def test_a_matrix_that_int4_cannot_hold_becomes_int8(outputs: int, inputs: int) -> None:
    assert isinstance(pack(torch.randn(outputs, inputs), "int4"), Int8Weight)
    with pytest.raises(ValueError, match="multiples of 32 inputs and of 16 outputs, got"):
        Int4Weight(torch.randn(outputs, inputs))


def test_fails_when_the_quantization_is_not_known(weights: Path) -> None:
    with pytest.raises(SettingsError, match="ISOMORPH_QUANTIZATION is 'int3'; allowed: none, int8"):
        NativeEngine.load(weights, slots=1, context=64, dtype="float32", quantization="int3")


def test_a_quantised_linear_keeps_its_bias_and_its_shape() -> None:
    layer = Linear(32, 16, bias=True, dtype=torch.float32).requires_grad_(False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 3, 32)
    expected = layer(x)
    layer.quantize("bias", "int8")
    assert layer.packed is None
    layer.quantize("weight", "int8")
    assert layer.weight is None
    assert (layer(x) - expected).abs().max() < 2e-2 * expected.abs().max()


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_every_kind_of_layer_stays_close_in_few_bits(name: str, quantization: str) -> None:
    model, tokens = pair(name), random_tokens(40)
    made = load_decoder(
        model.architecture, model.state.__getitem__, context=CONTEXT, dtype=torch.float32,
        quantization=quantization,
    )  # fmt: skip
    found, expected = logits(made, tokens, [30]), logits(model.ours, tokens, [30])
    likeness = torch.nn.functional.cosine_similarity(found, expected, dim=-1).mean()
    # Where scores of experts are nearly equal, rounding chooses others.
    assert likeness > (0.99 if name == "deepseek_v3" else 0.995)
    assert (found - expected).abs().max() > 0  # it is quantised at all
    kept = sum(tensor.nbytes for _, tensor in stored(made))
    whole = sum(tensor.nbytes for _, tensor in stored(model.ours))
    # Experts with biases stay as they are, and so does what MLA absorbs.
    assert kept < {"gpt_oss": 0.9, "deepseek_v3": 0.75}.get(name, 0.5) * whole


def test_a_tied_head_is_kept_once_and_embeds_as_it_predicts() -> None:
    model = pair("llama")
    made = load_decoder(
        model.architecture, model.state.__getitem__, context=CONTEXT, dtype=torch.float32,
        quantization="int8",
    )  # fmt: skip
    assert not hasattr(made, "embedding_VD")
    assert not hasattr(made, "head_VD")
    assert made.packed_head is not None
    vocabulary, hidden = made.packed_head.shape
    assert made.packed_head.nbytes == vocabulary * (hidden + 4)


SCRIPT = """
import sys, torch
from pathlib import Path
from model_code.common.architecture import parse
from model_code.common.checkpoint import load_decoder, stored
config = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 2048,
          "vocab_size": 8192, "num_hidden_layers": 8, "num_attention_heads": 8,
          "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
config["num_key_value_heads"] = 8
architecture = parse(config)
one = torch.ones(8192, 512, dtype=torch.bfloat16)
from model_code.common import kernels
kernels.loaded()
def tensor(name):
    rows = {"embed": 8192, "gate": 2048, "up_pr": 2048}
    if "norm" in name: return one[0]
    if "down" in name: return one[:2048].view(512, 2048)
    return one[: next((n for word, n in rows.items() if word in name), 512)]
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
Path("/proc/self/clear_refs").write_text("5")  # the peak so far counts no more
before = status("VmRSS") - status("RssFile")
decoder = load_decoder(architecture, tensor, context=64, dtype=torch.bfloat16,
                       quantization=sys.argv[1])
peak = status("VmHWM") - status("RssFile") - before
print(peak, architecture.parameters)
"""


@pytest.mark.parametrize(("quantization", "bits"), [("none", 16), ("int8", 8), ("int4", 5)])
def test_the_peak_at_load_is_the_weights_and_a_matrix(quantization: str, bits: int) -> None:
    # A fixed threshold: by default glibc raises it, and what it then keeps differs by 60 MB a run.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, quantization],
        capture_output=True, text=True, check=True, env=os.environ | malloc,
    )  # fmt: skip
    peak, parameters = map(int, done.stdout.split())
    head = 8192 * 512  # the largest matrix; int8 in int4, too
    weights = parameters * bits / 8 + (head * 3 / 8 if bits == 5 else 0)
    in_hand = 0 if quantization == "none" else head * 2 + 2 * 2048 * 512 * 4
    assert 0.9 * weights < peak < 1.1 * weights + in_hand + 4e6  # torch's own, once


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(1, 6))
def test_sparse_keeps_the_four_largest_of_sixteen_and_multiplies_as_the_pruned_matrix(
    seed: int, outputs: int, groups: int
) -> None:
    torch.manual_seed(seed)
    dense = torch.randn(outputs, 16 * groups).bfloat16()
    sparse, pruned = SparseWeight(dense), prune(dense)
    assert torch.equal(sparse.unpack(), pruned)
    sixteens = pruned.unflatten(1, (-1, 16))
    assert ((sixteens != 0).sum(2) == 4).all()
    left_out = dense.unflatten(1, (-1, 16)).masked_fill(sixteens != 0, 0).abs().amax(2)
    kept = sixteens.abs().masked_fill(sixteens == 0, torch.inf).amin(2)
    assert (kept >= left_out).all()
    x = torch.randn(3, 16 * groups)
    assert torch.equal(sparse(x), torch.nn.functional.linear(x, pruned.float()))


def test_sparse_has_the_bytes_that_the_architecture_counts() -> None:
    assert SparseWeight(torch.ones(8, 48)).nbytes == 8 * 48 // 16 * SPARSE_BITS_PER_16 // 8
    with pytest.raises(ValueError, match="4:16 sparsity takes multiples of 16 inputs, got 40"):
        SparseWeight(torch.ones(2, 40))


def test_packed_has_the_bytes_that_the_architecture_counts_and_its_scales() -> None:
    dense = torch.randn(64, 96)
    assert Int8Weight(dense).nbytes == 64 * 96 * BITS["int8"] // 8 + 64 * 4
    assert Int4Weight(dense).nbytes == 64 * 96 * BITS["int4"] // 8 + 64 * 3 * 4


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_loss_on_real_text_is_bounded(quantization: str) -> None:
    found, most = divergence(quantization, tokens=256), BOUNDS[quantization]
    assert abs(found.loss - found.reference) < most
    assert 0 < found.divergence < most
