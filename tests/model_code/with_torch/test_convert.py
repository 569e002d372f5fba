"""A GGUF file into a folder, by the command."""

# mypy: disable-error-code="no-untyped-call"

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_code.common.cache import KVCache
from model_code.common.convert import main
from model_code.common.errors import WeightsError
from model_code.common.gguf_header import read_header
from model_code.common.gguf_model import architecture_of
from model_code.common.manifest import MANIFEST, Manifest, verify
from model_code.common.model_folder import load_folder
from model_code.common.span import Span
from tests.model_code.gguf_file import gguf

pytestmark = pytest.mark.torch
WIDTH, INNER, TOKENS = 8, 12, ["a", "b", "ab", "<s>", "</s>"]
META: dict[str, Any] = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": INNER, "llama.vocab_size": 5, "llama.context_length": 16,
    "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 1e4,
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1, 1, 1, 3, 3], "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.eos_token_id": 4,
    "tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": "{{ messages }}",
}  # fmt: skip
SHAPES = {
    "token_embd": (5, WIDTH), "output_norm": (WIDTH,), "output": (5, WIDTH),
    "blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,), "blk.0.attn_q": (WIDTH, WIDTH),
    "blk.0.attn_k": (4, WIDTH), "blk.0.attn_v": (4, WIDTH), "blk.0.attn_output": (WIDTH, WIDTH),
    "blk.0.ffn_gate": (INNER, WIDTH), "blk.0.ffn_up": (INNER, WIDTH),
    "blk.0.ffn_down": (WIDTH, INNER),
}  # fmt: skip


def file(path: Path, *, meta: dict[str, Any] | None = None, value: float | None = None) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in SHAPES.items():
        values = torch.randn(shape, generator=generator)
        if value is not None:
            values.fill_(value)
        tensors[f"{name}.weight"] = (shape, 0, values.numpy().tobytes())
    path.write_bytes(gguf(META | (meta or {}), tensors))
    return path


def test_a_folder_is_made_that_transformers_and_we_read_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = file(tmp_path / "tiny.gguf"), tmp_path / "made"
    assert main([str(source), str(folder), "--dtype", "float32"]) == 0
    manifest = Manifest.decode((folder / MANIFEST).read_bytes(), MANIFEST)
    verify(folder, manifest)
    assert f"manifest sha256 {manifest.sha256}" in capsys.readouterr().out
    tmp_path.joinpath("alone").mkdir()
    source.rename(tmp_path / "alone" / "tiny.gguf")
    ours, direct = (
        load_folder(each, context=16, dtype=torch.float32) for each in (folder, tmp_path / "alone")
    )
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.tensor([ours.tokenizer.encode("aabab")])
    assert tokens.tolist() == [[3, 0, 2, 2]] == [direct.tokenizer.encode("aabab")]
    assert ours.chat_template == direct.chat_template == "{{ messages }}"
    with torch.inference_mode():
        expected = theirs(tokens).logits[0]
        for model in (ours, direct):
            decoder = model.decoder
            cache = KVCache(decoder.architecture, slots=1, context=16, dtype=torch.float32)
            states = decoder(tokens, cache, Span(0, torch.tensor([0]), 4))
            assert torch.allclose(decoder.logits(states[0]), expected, atol=1e-5)


def test_bfloat16_is_what_is_written_unless_told(tmp_path: Path) -> None:
    assert main([str(file(tmp_path / "tiny.gguf")), str(tmp_path / "made")]) == 0
    assert json.loads((tmp_path / "made/config.json").read_text())["dtype"] == "bfloat16"


def test_fails_in_one_line_and_leaves_what_is_there_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = file(tmp_path / "tiny.gguf")
    cases = [
        ((source, tmp_path), f"{tmp_path}: is not empty; name a folder that is, or that is not "),
        ((tmp_path / "no.gguf", tmp_path / "a"), "no.gguf: cannot be read: No such file"),
        ((file(tmp_path / "nan.gguf", value=float("nan")), tmp_path / "b"),
         "model.embed_tokens.weight holds values that are not finite"),
    ]  # fmt: skip
    for arguments, message in cases:
        assert main([str(each) for each in arguments]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_rope_that_a_file_scales_is_read_or_refused_by_name(tmp_path: Path) -> None:
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    header = read_header(file(tmp_path / "a.gguf", meta=linear))
    rope = architecture_of(header).layers[0].attention.rope
    assert (rope.kind, rope.parameters) == ("linear", (("factor", 4.0),))
    header = read_header(file(tmp_path / "b.gguf", meta={"llama.rope.scaling.type": "yarn"}))
    with pytest.raises(WeightsError, match=r"RoPE is scaled by 'yarn'; the native engine reads 'l"):
        architecture_of(header)
