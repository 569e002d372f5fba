"""What a block is called, and how it is written: keys by a chain of hashes, values with a header.

A block is `block` tokens of one prompt with the latents of all layers. Its key hashes everything
that its content depends on: the layout, the model's digest, the dtypes, the tenant, and every token
up to its end. So equal keys mean equal content, and no tenant can name another's blocks.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import xxhash

Buffer: TypeAlias = "bytes | bytearray | memoryview"

# Counts every change of what a value holds, of the order of its numbers, or of how it is computed.
LAYOUT = 1
KEY_PREFIX = b"isomorph:latent:"  # what a cache user's ACL may be narrowed to: ~isomorph:latent:*
_MAGIC = b"ISML"
# magic, layout, header bytes, layers, tokens, bytes a token and layer, what they are stored in;
# payload bytes; the key's digest; the checksum of all of that and of the payload
_HEADER = struct.Struct("<4sHHHHHHQ24s16s")
HEADER_BYTES = _HEADER.size  # 64: the payload behind it stays aligned
_UNSUMMED = 16
_DIGEST_BYTES = 24
# What latents may be stored in, by its number in the header. auto: what the model computes in.
STORED_DTYPES = {"auto": 0, "fp8": 1}


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """What all blocks of one server have in common.

    Args:
        model: Digest of the weights' manifest: other weights, other latents.
        dtype: What the latents are computed in: bfloat16 or float32.
        row_bytes: Bytes that one token leaves in one layer, as it is stored.
        tokens: Tokens in a block.
        tenant: Who may read it.
        stored: What they are stored in, one of STORED_DTYPES.
    """

    model: str
    dtype: str
    layers: int
    row_bytes: int
    tokens: int
    tenant: str
    stored: str = "auto"

    @property
    def payload_bytes(self) -> int:
        """Bytes of a block's latents, layer by layer, token by token."""
        return self.layers * self.tokens * self.row_bytes

    @property
    def value_bytes(self) -> int:
        """Bytes of a value: header and payload."""
        return HEADER_BYTES + self.payload_bytes

    def digests(self, prompt: Sequence[int], *, end: int | None = None) -> list[bytes]:
        """Return the digest of each whole block in the first `end` tokens of a prompt."""
        digest = self._root()
        found = []
        for last in range(self.tokens, (len(prompt) if end is None else end) + 1, self.tokens):
            tokens = struct.pack(f"<{self.tokens}I", *prompt[last - self.tokens : last])
            digest = _hash(digest, tokens)
            found.append(digest)
        return found

    def _root(self) -> bytes:
        numbers = struct.pack("<5I", LAYOUT, HEADER_BYTES, self.layers, self.row_bytes, self.tokens)
        dtype = self.dtype if self.stored == "auto" else f"{self.dtype} in {self.stored}"
        texts = [text.encode() for text in (self.model, dtype, self.tenant)]
        # With its length in front, no text can reach into the next.
        return _hash(numbers, *(struct.pack("<I", len(text)) + text for text in texts))

    def header(self, digest: bytes, payload: Buffer) -> bytes:
        """Return what is stored in front of `payload`."""
        unsummed = self._fields(digest, b"")
        return unsummed[:-_UNSUMMED] + _checksum(unsummed[:-_UNSUMMED], payload)

    def holds(self, digest: bytes, value: memoryview) -> bool:
        """Return whether `value` is this layout's block with this digest, whole and unchanged."""
        if len(value) != self.value_bytes:
            return False
        return bytes(value[:HEADER_BYTES]) == self.header(digest, value[HEADER_BYTES:])

    def _fields(self, digest: bytes, checksum: bytes) -> bytes:
        return _HEADER.pack(
            _MAGIC, LAYOUT, HEADER_BYTES, self.layers, self.tokens, self.row_bytes,
            STORED_DTYPES[self.stored], self.payload_bytes, digest, checksum,
        )  # fmt: skip


def key_of(digest: bytes) -> bytes:
    """Return the key under which the store has the block with this digest."""
    return KEY_PREFIX + digest.hex().encode()


def _hash(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=_DIGEST_BYTES).digest()


def _checksum(header: bytes, payload: Buffer) -> bytes:
    """Return xxHash's XXH3-128; crc32 takes as long as the network that brings the block."""
    state = xxhash.xxh3_128(header)
    state.update(payload)
    return state.digest()
