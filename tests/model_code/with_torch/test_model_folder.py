"""A small Hugging Face folder as an engine serves it: weights, tokenizer, template."""

# mypy: disable-error-code="no-untyped-call"

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from model_code.common.engine import Generation
from model_code.common.engine.native import NativeEngine
from model_code.common.errors import SettingsError, WeightsError
from model_code.common.model_folder import load_folder
from model_code.common.tokenizer import FolderTokenizer
from tests.model_code.conftest import ROOT

pytestmark = pytest.mark.torch
VOCABULARY = 300
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, vocab_size=VOCABULARY, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.3, eos_token_id=[1, 2], bos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["the cat sat on the mat, and then the hat"] * 3, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> FolderTokenizer:
    return FolderTokenizer(folder, VOCABULARY)


def changed(folder: Path, tmp_path: Path, **files: bytes | None) -> Path:
    """Return a copy in which some files differ; None leaves one out."""
    for path in folder.iterdir():
        content = files.get(path.stem, path.read_bytes())
        if content is not None:
            (tmp_path / path.name).write_bytes(content)
    return tmp_path


def test_the_native_engine_says_what_transformers_says(
    folder: Path, tokenizer: FolderTokenizer
) -> None:
    engine = NativeEngine.load(folder, slots=2, context=64, dtype="float32")
    assert engine.chat_template == TEMPLATE

    async def answer() -> list[Any]:
        request = Generation(prompt="the cat sat", temperature=0.0, max_tokens=20)
        return [piece async for piece in engine.generate(request)]

    pieces = asyncio.run(answer())
    engine.close()
    theirs: Any = LlamaForCausalLM.from_pretrained(folder)
    prompt = tokenizer.encode("the cat sat")
    expected = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0
    )[0].tolist()[len(prompt) :]
    text = tokenizer.tokenizer.decode(expected)
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[-1].completion_tokens == len(expected)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_text_comes_back_whole_and_streamed_in_whole_characters(
    tokenizer: FolderTokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    if {"<s>", "</s>", "<|im_end|>"} & {tokenizer.tokenizer.id_to_token(i) for i in ids}:
        return
    stream = tokenizer.stream()
    pieces = [stream.feed(token) for token in ids]
    assert "".join(pieces) + stream.flush() == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(3, 276), max_size=12))
def test_any_tokens_stream_to_what_they_decode_to(
    tokenizer: FolderTokenizer, ids: list[int]
) -> None:
    stream = tokenizer.stream()
    streamed = "".join([stream.feed(token) for token in ids]) + stream.flush()
    assert streamed == tokenizer.tokenizer.decode(ids)


def test_ends_are_those_of_the_config_and_of_special_tokens(tokenizer: FolderTokenizer) -> None:
    assert tokenizer.ends == {1, 2}


def test_a_template_of_its_own_file_comes_first(folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path)
    (other / "chat_template.jinja").write_text("mine")
    assert load_folder(other, context=8, dtype=torch.float32).chat_template == "mine"
    (other / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(WeightsError, match=r"chat_template.jinja: is not UTF-8 text"):
        load_folder(other, context=8, dtype=torch.float32)


def test_several_templates_have_a_default(folder: Path, tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    words = json.dumps({"chat_template": named}).encode()
    other = changed(folder, tmp_path, tokenizer_config=words)
    assert load_folder(other, context=8, dtype=torch.float32).chat_template == "d"


def test_fails_when_the_tokenizer_is_missing_damaged_or_of_another_model(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"tokenizer.json: has token 276, .* is 200: it is the "):
        FolderTokenizer(folder, 200)
    other = changed(folder, tmp_path, tokenizer=b"{}")
    with pytest.raises(WeightsError, match=r"tokenizer.json: cannot be read: "):
        load_folder(other, context=8, dtype=torch.float32)
    (other / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer.json is missing; it comes with the weights"):
        load_folder(other, context=8, dtype=torch.float32)


def test_fails_when_a_config_is_damaged_or_its_context_too_short(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"ISOMORPH_CONTEXT is 65; the model was made for at m"):
        load_folder(folder, context=65, dtype=torch.float32)
    other = changed(folder, tmp_path, generation_config=b"{")
    with pytest.raises(WeightsError, match=r"generation_config.json: not valid JSON at line 1"):
        load_folder(other, context=8, dtype=torch.float32)
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match=r"model_type is 'bert'; known families are llama"):
        load_folder(other, context=8, dtype=torch.float32)
    changed(folder, tmp_path, tokenizer_config=b"[]")
    with pytest.raises(WeightsError, match=r"a config.json holds an object, this holds \[\]"):
        load_folder(tmp_path, context=8, dtype=torch.float32)


def test_a_model_is_loaded_without_torch_s_compiler(folder: Path) -> None:
    """Operations on the meta device would bring it along, and half a second of each start."""
    code = (
        "import pathlib, sys, torch; from model_code.common.model_folder import load_folder; "
        "load_folder(pathlib.Path(sys.argv[1]), context=64, dtype=torch.float32); "
        "print({'sympy', 'torch', 'torch._dynamo'} & {*sys.modules})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert found.stdout == "{'torch'}\n"
