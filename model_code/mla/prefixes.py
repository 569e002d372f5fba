"""Between the batch and the store of latents: which blocks a prompt has, out of and into the cache.

The store brings blocks before a prompt joins the batch, so the engine's thread only copies memory.
"""

import torch
from torch import Tensor

from model_code.common.architecture import Architecture
from model_code.common.batch import Sequence
from model_code.common.cache import KVCache
from model_code.common.errors import SettingsError
from model_code.mla.store.blocks import BlockLayout
from model_code.mla.store.fp8 import Fp8Codec
from model_code.mla.store.latents import LatentStore
from model_code.mla.store.metrics import LatentMetrics


def block_layout(
    architecture: Architecture, dtype: torch.dtype, *, model: str, block: int, tenant: str,
    stored: str = "auto",
) -> BlockLayout:  # fmt: skip
    """Return how blocks of this model look; refuses models whose layers keep no latents."""
    if any(layer.attention.kind != "mla" for layer in architecture.layers):
        raise SettingsError(
            f"ISOMORPH_LATENT_STORE_URL is set, but {architecture.name} has layers without latent "
            f"attention; allowed are models that have it in every layer"
        )
    [(values, in_fp8)] = {
        (layer.attention.cached_values, layer.attention.fp8_latent_bytes)
        for layer in architecture.layers
    }
    return BlockLayout(
        model=model, dtype=str(dtype).removeprefix("torch."), layers=len(architecture.layers),
        row_bytes=in_fp8 if stored == "fp8" else values * dtype.itemsize, tokens=block,
        tenant=tenant, stored=stored,
    )  # fmt: skip


class LatentPrefixes:
    """Reuses whole blocks of prompts. One chunk of a prompt is one block.

    So the numbers of a prompt do not depend on where its beginning came from, bit for bit: each
    block was computed by itself, behind the same latents. In fp8 too: a block that was computed
    here is rounded here before anything looks at it, as it is on the nodes that fetch it.
    """

    def __init__(
        self, store: LatentStore, architecture: Architecture, dtype: torch.dtype,
        metrics: LatentMetrics,
    ) -> None:  # fmt: skip
        self.block = store.layout.tokens
        self._store, self._dtype, self._metrics = store, dtype, metrics
        self._fp8: Fp8Codec | None = None
        if store.layout.stored == "fp8":
            attention = architecture.layers[0].attention  # block_layout() saw that all are alike
            self._fp8 = Fp8Codec(attention, dtype)
            self._rounded = bytearray(store.layout.payload_bytes)

    async def fetch(self, prompt: list[int]) -> list[bytes]:
        """Bring what the store has of a prompt, and return its blocks' digests."""
        digests = self._store.layout.digests(prompt)
        await self._store.fetch(digests[: self._reusable(prompt)])
        return digests

    def load(self, sequence: Sequence, cache: KVCache, slot: int) -> int:
        """Copy the blocks at hand into the cache; returns how many tokens they are."""
        loaded = 0
        for digest in sequence.digests[: self._reusable(sequence.prompt)]:

            def read(payload: memoryview, start: int = loaded * self.block) -> None:
                cache.import_tokens(slot, start, self._decoded(payload))

            if not self._store.load(digest, read):
                break
            loaded += 1
        self._metrics.add("LatentHits", loaded)
        self._metrics.add("LatentMisses", len(sequence.digests) - loaded)
        self._metrics.add("LatentTokensReused", loaded * self.block)
        return loaded * self.block

    def save(self, sequence: Sequence, cache: KVCache, slot: int) -> None:
        """Take the block that was just computed out of the cache, if it is whole."""
        if sequence.cached % self.block:
            return
        start = sequence.cached - self.block
        if self._fp8:
            data = cache.export_tokens(slot, start, sequence.cached)
            if not self._fp8.encode(data, self._rounded):
                return  # nobody finds it, so all compute it
            cache.import_tokens(slot, start, self._fp8.decode(self._rounded))

        def write(payload: memoryview) -> None:
            if self._fp8:
                payload[:] = self._rounded
                return
            data = cache.export_tokens(slot, start, sequence.cached)
            torch.frombuffer(payload, dtype=self._dtype).copy_(data)

        self._store.save(sequence.digests[start // self.block], write)

    def _decoded(self, payload: memoryview) -> Tensor:
        if self._fp8:
            return self._fp8.decode(payload)
        return torch.frombuffer(payload, dtype=self._dtype)

    @property
    def settled(self) -> bool:
        """Whether nothing waits to be stored."""
        return self._store.settled

    def close(self) -> None:
        """Stop the store's threads."""
        self._store.close()

    def _reusable(self, prompt: list[int]) -> int:
        """Return how many blocks may be reused: of the last token, the logits are needed."""
        return (len(prompt) - 1) // self.block
