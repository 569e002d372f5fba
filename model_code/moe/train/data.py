"""Sequences of tokens from shards, in an order that a seed and a number say.

The shards of an epoch come one after the other in a shuffled order, each with its sequences
shuffled, so that at most two are open at a time. Sequence number n is the same whatever the number
of ranks, so n is all that a checkpoint has to hold. A sequence lies within one shard; the tokens
that are left at a shard's end are not used.

Shape letters: B sequences, S tokens of each and the one after them.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_code.moe.train.recipe import TrainingError
from model_code.moe.train.token_file import HEADER_BYTES, SUFFIX, Header, open_tokens, read_header

HELD_OUT = f"held-out{SUFFIX}"
TOKENIZER = "tokenizer.json"
_MAX_TOKENIZER_BYTES = 64 << 20


@dataclass(frozen=True)
class Shard:
    """A shard whose header was read; `fetch` returns a local file with all of it."""

    name: str
    header: Header
    start: int
    fetch: Callable[[], Path]


@dataclass(frozen=True)
class Data:
    """All shards of a folder or a prefix, with one tokenizer.

    Args:
        source: What messages begin with.
        held_out: Text to measure on, that is never trained on.
        tokenizer: The bytes of its tokenizer.json, if it lies beside the shards.
    """

    source: str
    shards: tuple[Shard, ...]
    held_out: Shard | None
    tokenizer: bytes | None

    @property
    def digest(self) -> str:
        """sha256 of what the shards say of themselves: equal digests are equal sequences."""
        words = [f"{each.name} {each.header.count} {each.header.sha256}" for each in self.shards]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()

    def check_vocabulary(self, vocabulary: int) -> None:
        """Refuse shards with tokens that a model does not have."""
        found = self.shards[0].header.vocabulary
        if found > vocabulary:
            raise TrainingError(
                f"{self.source}: vocabulary mismatch: the shards' tokenizer has {found} tokens, "
                f"the model's vocab_size is {vocabulary}; make shards with the model's tokenizer, "
                f"or a config whose vocab_size is {found} or more"
            )


def open_data(source: str, *, cache: Path | None = None) -> Data:
    """Return the shards in a folder or under s3://bucket/prefix/.

    Args:
        source: The folder or the prefix.
        cache: Where shards from S3 are kept for as long as they are needed.
    """
    if source.startswith("s3://"):
        from model_code.moe.train.data_s3 import open_prefix

        shards, tokenizer = open_prefix(source, cache)
    else:
        shards, tokenizer = _open_folder(Path(source))
    train = tuple(each for each in shards if each.name != HELD_OUT)
    if not train:
        raise TrainingError(
            f"{source}: holds no *{SUFFIX}; `python -m model_code.moe.train.shards` makes them"
        )
    _check_tokenizers(source, shards, tokenizer)
    held_out = next((each for each in shards if each.name == HELD_OUT), None)
    return Data(source, train, held_out, tokenizer)


def _open_folder(folder: Path) -> tuple[list[Shard], bytes | None]:
    if not folder.is_dir():
        raise TrainingError(
            f"--data is {str(folder)!r}; allowed are a folder or s3://bucket/prefix/"
        )
    shards = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with path.open("rb") as file:
            beginning = file.read(HEADER_BYTES)
        header, start = read_header(beginning, path.stat().st_size, str(path))
        shards.append(Shard(path.name, header, start, lambda path=path: path))  # type: ignore[misc]
    tokenizer = folder / TOKENIZER
    if tokenizer.is_file() and tokenizer.stat().st_size <= _MAX_TOKENIZER_BYTES:
        return shards, tokenizer.read_bytes()
    return shards, None


def _check_tokenizers(source: str, shards: Sequence[Shard], tokenizer: bytes | None) -> None:
    digests = {each.header.tokenizer: each.name for each in shards}
    if len(digests) > 1:
        one, other = list(digests.values())[:2]
        raise TrainingError(
            f"{source}: vocabulary mismatch: {one} and {other} were made with different "
            f"tokenizers; make all shards of a folder with one"
        )
    if tokenizer is not None and (found := hashlib.sha256(tokenizer).hexdigest()) not in digests:
        raise TrainingError(
            f"{source}: vocabulary mismatch: the shards were made with tokenizer "
            f"{next(iter(digests)):.16}..., the {TOKENIZER} beside them is {found:.16}..."
        )


class Sequences:
    """The sequences of some shards, numbered from 0 on without end: epoch after epoch.

    Args:
        tokens: Tokens of a sequence, without the one that follows.
        seed: Of the order; None keeps that of the shards.
    """

    def __init__(self, shards: Sequence[Shard], *, tokens: int, seed: int | None) -> None:
        self._shards, self._tokens, self._seed = tuple(shards), tokens, seed
        self._counts = [(each.header.count - 1) // tokens for each in shards]
        self.total = sum(self._counts)
        if not self.total:
            raise TrainingError(
                f"{shards[0].name} and its like hold no sequence of {tokens} tokens and one more; "
                f"make shards of a longer text, or lower training.context"
            )
        self._order: tuple[int, list[int]] = (-1, [])
        self._open: dict[int, NDArray[np.unsignedinteger]] = {}
        self._inner: dict[tuple[int, int], list[int]] = {}

    def batch(self, first: int, count: int) -> Tensor:
        """Return sequences `first` to `first` + `count` - 1, [B, S + 1] int64."""
        rows = [self._one(number) for number in range(first, first + count)]
        return torch.from_numpy(np.stack(rows))

    def _one(self, number: int) -> NDArray[np.int64]:
        epoch, rest = divmod(number, self.total)
        for shard in self._shard_order(epoch):
            if rest < self._counts[shard]:
                start = self._inner_order(epoch, shard)[rest] * self._tokens
                return self._tokens_of(shard)[start : start + self._tokens + 1].astype(np.int64)
            rest -= self._counts[shard]
        raise AssertionError("unreachable")

    def _shard_order(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            self._order = epoch, self._shuffled(len(self._shards), f"{epoch}")
        return self._order[1]

    def _inner_order(self, epoch: int, shard: int) -> list[int]:
        if (epoch, shard) not in self._inner:
            _forget_first(self._inner)
            self._inner[epoch, shard] = self._shuffled(self._counts[shard], f"{epoch}/{shard}")
        return self._inner[epoch, shard]

    def _tokens_of(self, shard: int) -> NDArray[np.unsignedinteger]:
        if shard not in self._open:
            _forget_first(self._open)
            each = self._shards[shard]
            self._open[shard] = open_tokens(each.fetch(), each.header, each.start)
        return self._open[shard]

    def _shuffled(self, count: int, words: str) -> list[int]:
        order = list(range(count))
        if self._seed is not None:
            random.Random(f"{self._seed}/{words}").shuffle(order)  # noqa: S311
        return order


def _forget_first(kept: dict) -> None:
    """Keep one besides the one to come: a batch may reach from a shard into the next."""
    while len(kept) > 1:
        del kept[next(iter(kept))]
