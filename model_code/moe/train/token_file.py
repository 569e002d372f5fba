"""A shard: tokens of a text, with a header that says whose they are.

    8 bytes   the magic, in which the version stands
    4 bytes   length of the header, little-endian
    header    JSON: dtype, count, tokenizer (sha256 of its tokenizer.json), vocabulary, sha256
    tokens    uint16 or uint32, little-endian, from the next multiple of 64 on

`sha256` is that of the tokens' bytes. A header is small and read first; the digest is checked when
a reader comes to the shard, before any of its tokens is used.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_code.moe.train.recipe import TrainingError

SUFFIX = ".tokens"
MAGIC = b"ISOTOK\x00\x01"
HEADER_BYTES = 4096  # at most, with what stands before it: what is fetched to read one
_ALIGNED = 64
_WIDTHS = {"uint16": 2, "uint32": 4}
_HEX = set("0123456789abcdef")
_CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a shard says of itself."""

    dtype: str
    count: int
    tokenizer: str
    vocabulary: int
    sha256: str

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens."""
        return self.count * _WIDTHS[self.dtype]


def dtype_for(vocabulary: int) -> str:
    """Return the narrowest dtype that holds the ids of a vocabulary."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


def write(path: Path, tokens: NDArray[np.uint32], *, tokenizer: str, vocabulary: int) -> Header:
    """Write a shard whole or not at all, and return its header."""
    dtype = dtype_for(vocabulary)
    data = tokens.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    header = Header(
        dtype=dtype, count=len(tokens), tokenizer=tokenizer, vocabulary=vocabulary,
        sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
    words = json.dumps(asdict(header), sort_keys=True).encode()
    start = MAGIC + len(words).to_bytes(4, "little") + words
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as out:
        out.write(start + bytes(-len(start) % _ALIGNED) + data)
        out.flush()
        os.fsync(out.fileno())
    partial.rename(path)
    return header


def read_header(beginning: bytes, size: int, name: str) -> tuple[Header, int]:
    """Return the header of a shard and where its tokens start.

    Args:
        beginning: The first `HEADER_BYTES` of the file, or all of a shorter one.
        size: Bytes of the whole file.
        name: What messages begin with.
    """
    length = int.from_bytes(beginning[8:12], "little")
    if not beginning.startswith(MAGIC) or not 0 < length <= HEADER_BYTES - 12:
        raise TrainingError(
            f"{name}: is no shard of tokens, version 1; "
            f"`python -m model_code.moe.train.shards` makes them"
        )
    header = _parsed(beginning[12 : 12 + length], name)
    start = 12 + length + -(12 + length) % _ALIGNED
    if size != start + header.nbytes:
        raise TrainingError(
            f"{name}: damaged: has {size:,} bytes, its header says {start + header.nbytes:,}"
        )
    return header, start


def _parsed(words: bytes, name: str) -> Header:
    try:
        values = json.loads(words)
        header = Header(**values)
        good = (
            header.dtype in _WIDTHS
            and all(type(n) is int and n > 0 for n in (header.count, header.vocabulary))
            and all(len(d) == 64 and set(d) <= _HEX for d in (header.sha256, header.tokenizer))
        )
    except (ValueError, TypeError, RecursionError):
        good = False
    if not good:
        raise TrainingError(f"{name}: damaged: its header cannot be read; make the shard again")
    return header


def open_tokens(path: Path, header: Header, start: int) -> NDArray[np.unsignedinteger]:
    """Return the tokens of a shard, mapped into memory, after their digest was found right."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if (found := digest.hexdigest()) != header.sha256:
        raise TrainingError(
            f"{path}: damaged: sha256 of its tokens is {found:.16}..., its header says "
            f"{header.sha256:.16}...; make or copy the shard again"
        )
    tokens = np.memmap(path, np.dtype(header.dtype).newbyteorder("<"), "r", start, header.count)
    if int(tokens.max()) >= header.vocabulary:
        raise TrainingError(
            f"{path}: damaged: has token {int(tokens.max())}, its vocabulary ends at "
            f"{header.vocabulary - 1}"
        )
    return tokens
