"""Our tokenizer beside transformers' and llama.cpp's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import xllamacpp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from model_code.common.errors import WeightsError
from model_code.common.gguf_header import GGUFHeader, read_header
from model_code.common.gguf_model import find_gguf
from model_code.common.tokenizer import GGUFTokenizer

pytestmark = pytest.mark.torch
TEXTS = [
    "The capital of France is",
    "def f(x):\n\treturn x ** 2  # squared\n",
    "In 1984, 12345.678 things; 3,000!",
    "héllo wörld, naïve café — “quotes” … 日本語 한국어 العربية עברית",
    "🙂🙃 👩‍👩‍👧 é é",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "don't I'll we've THEY'RE it's",
    "\n\n\n   leading, trailing   \n\t \n",
    "a" * 500,
    "",
]


@pytest.fixture(scope="module")
def header(weights: Path) -> GGUFHeader:
    return read_header(find_gguf(weights))


@pytest.fixture(scope="module")
def ours(header: GGUFHeader) -> GGUFTokenizer:
    return GGUFTokenizer(header)


@pytest.fixture(scope="module")
def llama_cpp(header: GGUFHeader) -> Callable[[str], list[int]]:
    """llama.cpp's own tokenizer, through the only door that it has."""
    params = xllamacpp.CommonParams()
    params.model.path = str(header.path)
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 64, 1, -1, False
    server = xllamacpp.Server(params)

    def tokenize(text: str) -> list[int]:
        body = json.dumps({"content": text, "parse_special": True}).encode()
        answer = httpx.post(f"{server.listening_address}/tokenize", content=body)
        found: list[int] = answer.json()["tokens"]
        return found

    return tokenize


@pytest.mark.slow
def test_ids_equal_transformers(ours: GGUFTokenizer, header: GGUFHeader) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(header.path.parent, gguf_file=header.path.name)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text).input_ids, text


# Of 256 bytes the vocabulary lacks a few: those of some control characters, and of all characters
# beyond the second plane. Both tokenizers drop these, not in the same way.
LETTERS = st.characters(
    max_codepoint=0x1FFFF, exclude_categories=["Cs"], exclude_characters="\0\4\6\x13\x14\x16\x1d"
)
WORDS = st.text(LETTERS, max_size=30)


@settings(max_examples=150, deadline=None)
@example("two  spaces, then digits:  12")
@example("x1y22z  333")
@given(WORDS)
def test_ids_equal_llama_cpp(
    ours: GGUFTokenizer, llama_cpp: Callable[[str], list[int]], text: str
) -> None:
    # transformers' reader of GGUF files forgets that SmolLM's digits stand alone, which shows after
    # two spaces. llama.cpp does not.
    assert ours.encode(text) == llama_cpp(text)


@settings(max_examples=200, deadline=None)
@given(WORDS)
def test_text_comes_back_as_it_was_whole_and_streamed(ours: GGUFTokenizer, text: str) -> None:
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    stream = ours.stream()
    pieces = [stream.feed(token) for token in ids]
    assert "".join(pieces) + stream.flush() == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_a_character_that_ends_in_the_middle_is_marked_at_the_end(ours: GGUFTokenizer) -> None:
    ids = ours.encode("🙂")
    assert len(ids) > 1
    stream = ours.stream()
    assert [stream.feed(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.flush() == "\ufffd"


def test_special_tokens_end_answers_and_are_not_shown(ours: GGUFTokenizer) -> None:
    assert ours.ends == {0, 2}
    assert ours.decode([1, 2]) == ""


def test_fails_when_the_tokenizer_is_of_another_kind(header: GGUFHeader) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"tokenizer.ggml.pre": "qwen2"}, r"tokenizer gpt2/qwen2 is unknown to the native engine"),
        ({"tokenizer.ggml.model": "llama"}, r"tokenizer llama/smollm is unknown"),
        ({"tokenizer.ggml.tokens": ["a"]}, r"damaged: 1 tokens, 49152 kinds"),
        ({"tokenizer.ggml.merges": ["x"]}, r"damaged: its merges or tokens are no byte-level BPE"),
    ]
    for change, message in changes:
        with pytest.raises(WeightsError, match=message):
            GGUFTokenizer(GGUFHeader(header.path, header.metadata | change, {}))
