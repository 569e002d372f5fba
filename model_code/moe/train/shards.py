"""`python -m model_code.moe.train.shards FILE... --out DIR`: text into shards of tokens.

Texts are cut at their ends only: a text's tokens, then one that ends it, then the next text.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from model_code.common.errors import UserError
from model_code.common.text import END, text_of_python, train_tokenizer
from model_code.moe.train.data import HELD_OUT, TOKENIZER
from model_code.moe.train.recipe import TrainingError
from model_code.moe.train.token_file import SUFFIX, write

_SHARD_TOKENS = 1 << 26
# Tokens that end a text in the vocabularies that we meet.
_ENDS = (END, "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>")  # noqa: RUF001


def main(arguments: Sequence[str] | None = None) -> int:
    """Make shards; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_code.moe.train.shards")
    parser.add_argument("texts", nargs="*", type=Path, metavar="FILE",
                        help="UTF-8; Python's own language reference if left out")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="a new or an empty folder")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    parser.add_argument("--vocabulary", type=int, default=1024,
                        help="without --tokenizer: size of one made of the text")  # fmt: skip
    parser.add_argument("--shard-tokens", type=int, default=_SHARD_TOKENS)
    parser.add_argument("--held-out", type=int, default=0,
                        help="tokens at the end of the text to measure on")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        print(_make(given))
    except UserError as error:
        print(f"shards: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"shards: {given.out}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _make(given: argparse.Namespace) -> str:
    for name, low in (("vocabulary", 257), ("shard_tokens", 2), ("held_out", 0)):
        if getattr(given, name) < low:
            raise TrainingError(
                f"--{name.replace('_', '-')} is {getattr(given, name)}; allowed are whole numbers "
                f"from {low}"
            )
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise TrainingError(f"--out {given.out} is not empty; name a folder that is, or a new one")
    texts = [_read(path) for path in given.texts] or [text_of_python()]
    made = given.tokenizer is None
    tokenizer = train_tokenizer("\n\n".join(texts), given.vocabulary) if made else None
    tokenizer = tokenizer or _open_tokenizer(given.tokenizer)
    words = given.tokenizer.read_bytes() if not made else tokenizer.to_str(pretty=True).encode()
    tokens = np.fromiter(_tokens(texts, tokenizer), dtype=np.uint32)
    learnt = len(tokens) - given.held_out
    if learnt < 2:
        raise TrainingError(
            f"--held-out is {given.held_out}; the text has {len(tokens)} tokens, of which 2 or "
            f"more must be left to learn from"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    digest, vocabulary = hashlib.sha256(words).hexdigest(), tokenizer.get_vocab_size()
    parts = range(0, learnt, given.shard_tokens)
    for number, start in enumerate(parts):
        part = tokens[start : min(start + given.shard_tokens, learnt)]
        path = given.out / f"train-{number:05}{SUFFIX}"
        write(path, part, tokenizer=digest, vocabulary=vocabulary)
    if given.held_out:
        write(given.out / HELD_OUT, tokens[learnt:], tokenizer=digest, vocabulary=vocabulary)
    (given.out / TOKENIZER).write_bytes(words)
    return (f"{given.out}: {len(parts)} shards, {learnt:,} tokens, {given.held_out:,} held out, "
            f"vocabulary {vocabulary:,}")  # fmt: skip


def _tokens(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[int]:
    end = next(
        (found for word in _ENDS if (found := tokenizer.token_to_id(word)) is not None), None
    )
    for text in texts:
        yield from tokenizer.encode(text, add_special_tokens=False).ids
        if end is not None:
            yield end


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as UTF-8: {error}") from error


def _open_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise TrainingError(f"--tokenizer {path} is no tokenizer.json: {error!s:.120}") from error


if __name__ == "__main__":
    sys.exit(main())
