"""Gemma 3 270M, the real one: tokens, conversion, and 100 tokens of text beyond its window."""

# mypy: disable-error-code="no-untyped-call"

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import xllamacpp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from bench import gemma as bench_gemma
from bench import smollm2, window_text
from model_code.common.convert import main
from model_code.common.gguf_header import read_header
from model_code.common.gguf_model import find_gguf
from model_code.common.manifest import MANIFEST, Manifest, verify
from model_code.common.model_folder import Model, load_folder
from model_code.common.tokenizer import FolderTokenizer, GGUFTokenizer
from tests.model_code.with_torch.test_decoder import greedy_text

pytestmark = [pytest.mark.torch, pytest.mark.slow]
VERSE = "In the beginning God created the heaven and the earth. And the earth was without form. "


@pytest.fixture(scope="module")
def folder(gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file, converted once."""
    target = tmp_path_factory.mktemp("gemma") / "hf"
    assert main([str(find_gguf(gemma)), str(target)]) == 0
    return target


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_folder(folder, context=1024, dtype=torch.float32)


@pytest.fixture(scope="module")
def transformers(folder: Path) -> Any:
    return bench_gemma.theirs(folder)


@pytest.fixture(scope="module")
def ours(gemma: Path) -> GGUFTokenizer:
    return GGUFTokenizer(read_header(find_gguf(gemma)))


def test_the_converted_folder_is_what_its_manifest_says(folder: Path) -> None:
    verify(folder, Manifest.decode((folder / MANIFEST).read_bytes(), MANIFEST))
    source = json.loads((folder / "source.json").read_text())
    assert source["sha256"].startswith("a5fd3b62230aa5ec")


def test_greedy_text_of_100_tokens_beyond_the_window_equals_transformers(
    model: Model, transformers: Any
) -> None:
    prompt = model.tokenizer.encode(VERSE * 40)[:520]  # its window is 512
    found = greedy_text(model.decoder, prompt, 100)
    # Each token is the likeliest one to transformers after those before: the same as its own text.
    with torch.inference_mode():
        logits = transformers(torch.tensor([prompt + found]), logits_to_keep=101).logits[0]
    assert found == logits[:-1].argmax(-1).tolist()


def test_the_converted_tokenizer_says_what_the_file_s_own_does(
    folder: Path, model: Model, ours: GGUFTokenizer
) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert isinstance(model.tokenizer, FolderTokenizer)
    assert model.tokenizer.ends == ours.ends == {1, 106}
    for text in (VERSE, "a  b\n\n c\t\t1234 <start_of_turn>user", "\u00e9\u4eba\U0001f642"):
        assert model.tokenizer.encode(text) == ours.encode(text) == theirs(text).input_ids
        stream = model.tokenizer.stream()
        pieces = [stream.feed(token) for token in ours.encode(text)]
        assert "".join(pieces) + stream.flush() == ours.decode(ours.encode(text))


@pytest.fixture(scope="module")
def llama_cpp(gemma: Path) -> Callable[[str], list[int]]:
    params = xllamacpp.CommonParams()
    params.model.path = str(find_gguf(gemma))
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 64, 1, -1, False
    server = xllamacpp.Server(params)

    def tokenize(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True})
        answer = httpx.post(f"{server.listening_address}/tokenize", content=body)
        found: list[int] = answer.json()["tokens"]
        return found

    return tokenize


@settings(max_examples=100, deadline=None)
@example("two  spaces,   three, and\n\nlines\t\t12")
@example("</s><h1>x</h1>")
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
def test_ids_equal_llama_cpp(
    ours: GGUFTokenizer, llama_cpp: Callable[[str], list[int]], text: str
) -> None:
    assert ours.encode(text) == llama_cpp(text)


def test_logits_and_perplexity_on_real_text_equal_transformers(
    model: Model, transformers: Any
) -> None:
    """A window and an eighth; `isomorph bench sliding_window_text` takes all of 32k tokens."""
    ids = torch.tensor([model.tokenizer.encode(smollm2.text()[:4000])[:576]])
    found = window_text.compare(model.decoder, transformers, ids, every=5)
    assert found.difference < window_text.LOGIT_TOLERANCE
    assert found.apart < window_text.PERPLEXITY_TOLERANCE
    assert 2 < found.ours < 100  # it reads English
