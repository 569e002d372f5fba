"""The real Gemma 3 270M for measurements: as ours and transformers read it, and text to read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench import smollm2
from isomorph import samples
from isomorph.errors import UserError
from model_code.common.architecture import read
from model_code.common.cache import KVCache
from model_code.common.convert import convert
from model_code.common.decoder import Decoder
from model_code.common.gguf_model import find_gguf
from model_code.common.model_folder import load_folder
from model_code.common.tokenizer import FolderTokenizer

NAME = "gemma-3-270m"


def folder() -> Path:
    """Return the folder with its GGUF file, Q4_K_M.

    Raises:
        UserError: It was not fetched yet: its terms have to be accepted for that.
    """
    found = samples.folder(NAME)
    if not list(found.glob("*.gguf")):
        raise UserError(f"no weights in {found}: run `isomorph up --accept-gemma-terms`")
    return found


@contextmanager
def converted() -> Iterator[Path]:
    """Yield the same numbers as a Hugging Face folder in bfloat16, read by both sides."""
    with TemporaryDirectory() as scratch:
        made = Path(scratch, "gemma")
        convert(find_gguf(folder()), made, dtype="bfloat16")
        yield made


def ours(converted_folder: Path, *, context: int, quantization: str = "none") -> Decoder:
    """Return our decoder with float32 activations."""
    return load_folder(
        converted_folder, context=context, dtype=torch.float32, quantization=quantization
    ).decoder


def theirs(converted_folder: Path) -> Any:
    """Return transformers' model in float32, with its own attention and its own sliding cache."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(converted_folder, dtype=torch.float32).eval()


def their_cache(model: Any) -> Any:
    """Return an empty cache of transformers that drops what its windows have passed."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def our_cache(decoder: Decoder, context: int) -> KVCache:
    """Return an empty cache of ours for one sequence."""
    return KVCache(decoder.architecture, slots=1, context=context, dtype=decoder.dtype)


def tokens(converted_folder: Path, count: int) -> list[int]:
    """Return the first tokens of Python's reference, real text that every machine has."""
    found = FolderTokenizer(converted_folder, read(converted_folder).vocabulary).encode(
        smollm2.text()
    )
    if len(found) < count:
        raise UserError(f"the text has {len(found)} tokens; allowed are up to that, not {count}")
    return found[:count]
