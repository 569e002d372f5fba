"""Continuous batching: sequences join and leave between steps. No threads, no clocks.

Slots of the cache are kept without gaps: first those that decode, then those whose prompt is still
being read. So one decode step reads one slice of the cache, and nothing is gathered.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from model_code.common.architecture import Architecture
from model_code.common.cache import KVCache
from model_code.common.sampling import Sampler
from model_code.common.span import Span

# Tokens of a prompt between two decode steps, so that no one else stalls. Chunks end at multiples
# of it, wherever they begin: who puts the tokens before such a multiple into the cache from a store
# gets the same numbers as who computes them.
PREFILL_CHUNK = 256


@dataclass(eq=False, kw_only=True)
class Sequence:
    """One prompt and what was made of it.

    Args:
        limit: How many tokens to generate at most.
        ends: Tokens that end the answer.
        digests: What a source of prefixes calls the prompt's blocks.
        cached: How many of its tokens have their keys and values in the cache.
        reused: How many of these were not computed here.
        experts: Layer -> how many tokens visited each expert; None where nobody asks.
    """

    prompt: list[int]
    limit: int
    sampler: Sampler
    ends: set[int]
    digests: list[bytes] = field(default_factory=list)
    cached: int = 0
    reused: int = 0
    experts: dict[int, Any] | None = None
    generated: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None


class PrefixSource(Protocol):
    """Beginnings of prompts that were computed before. Its methods are quick, and never wait.

    Args:
        block: Tokens that are reused or computed as one; prompts are read in such chunks.
    """

    block: int

    async def fetch(self, prompt: list[int]) -> list[bytes]:
        """Get ready what there is of a prompt, and return its blocks' digests. May wait."""
        ...

    def load(self, sequence: Sequence, cache: KVCache, slot: int) -> int:
        """Put what is ready into a slot that is empty; returns how many tokens it is."""
        ...

    def save(self, sequence: Sequence, cache: KVCache, slot: int) -> None:
        """Take out what was computed up to `sequence.cached`, if that is whole blocks."""
        ...


class Decodes(Protocol):
    """What a batch asks of a decoder: see `Decoder`."""

    architecture: Architecture
    dtype: torch.dtype

    def __call__(self, tokens_BS: torch.Tensor, cache: KVCache, span: Span) -> torch.Tensor:
        """Return the states of new tokens."""
        ...

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return what the states say of the next token."""
        ...


class Observer(Protocol):
    """Wants to know whose tokens go through the decoder."""

    def reading(self, sequences: list[Sequence]) -> None:
        """Take note: the next pass has equally many tokens of each of these, in this order."""
        ...


class Batch:
    """Runs up to `slots` sequences of up to `context` tokens through one decoder.

    Args:
        page_tokens: Positions of a page of the cache; None keeps slots whole, which is faster.
        pages: Pages that all slots share; None is enough for every slot to be full.
        together: Whether the decoder reads several prompts at once, with padding.
    """

    def __init__(
        self, decoder: Decodes, *, slots: int, context: int,
        page_tokens: int | None = None, pages: int | None = None, together: bool = False,
    ) -> None:  # fmt: skip
        self.slots, self.context, self._together = slots, context, together
        self.prefixes: PrefixSource | None = None
        self.observer: Observer | None = None
        self._decoder = decoder
        self._cache = KVCache(
            decoder.architecture, slots=slots, context=context, dtype=decoder.dtype,
            page_tokens=page_tokens, pages=pages,
        )  # fmt: skip
        self._sequences: list[Sequence] = []  # the index is the slot
        self._decoding = 0

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return len(self._sequences) == self.slots

    @property
    def free_pages(self) -> int | None:
        """Pages that no sequence has; None when slots are whole."""
        return self._cache.table.free if self._cache.table else None

    def fits(self, sequence: Sequence) -> bool:
        """Whether a slot is free, and pages for all that this sequence and the others may become.

        So a sequence that was taken up never runs out of pages.
        """
        if self.full or not (table := self._cache.table):
            return not self.full
        held = [*self._sequences, sequence]
        return sum(table.needed(self._longest(each)) for each in held) <= table.pages

    def add(self, sequence: Sequence, *, prefix: Iterable[torch.Tensor] = ()) -> None:
        """Take a sequence up that fits. Its prompt must leave room for one token.

        Args:
            sequence: It waits for its prompt to be read.
            prefix: What `export` gave for the first tokens of the same prompt, block after block,
                but not for its last token: that one is computed, for the logits.
        """
        assert self.fits(sequence)  # noqa: S101
        assert 0 < len(sequence.prompt) < self.context  # noqa: S101
        for block in prefix:
            slot = len(self._sequences)
            sequence.cached += self._cache.import_tokens(slot, sequence.cached, block)
            assert sequence.cached < len(sequence.prompt)  # noqa: S101
        self._sequences.append(sequence)

    def export(self, sequence: Sequence, start: int, stop: int) -> torch.Tensor:
        """Return what a sequence's tokens left in the cache; see `KVCache.export_tokens`."""
        assert start <= stop <= sequence.cached  # noqa: S101
        return self._cache.export_tokens(self._sequences.index(sequence), start, stop)

    def remove(self, sequence: Sequence) -> None:
        """Free a sequence's slot; the last ones of each kind move up to close the gap."""
        slot = self._sequences.index(sequence)
        if slot < self._decoding:
            self._decoding -= 1
            slot = self._move(self._decoding, slot)
        self._move(len(self._sequences) - 1, slot)
        self._sequences.pop()
        self._cache.release(len(self._sequences))

    @torch.inference_mode()
    def step(self) -> Iterator[Sequence]:
        """Read one chunk of prompts, and decode one token of each sequence that is ready.

        Yields each sequence that has a new token; a finished one has left its slot.
        """
        grown = self._decode() + self._prefill()
        for sequence in grown:
            if sequence.finish:
                self.remove(sequence)
        yield from grown

    def _prefill(self) -> list[Sequence]:
        if self._decoding == len(self._sequences):
            return []
        slot = self._decoding
        first = self._sequences[slot]
        if self.prefixes and not first.cached:
            first.cached = first.reused = self.prefixes.load(first, self._cache, slot)
        reading = self._reading()
        chunks = [each.prompt[each.cached : self._chunk_end(each)] for each in reading]
        counts = [len(chunk) for chunk in chunks]
        longest = max(counts)
        padded = None if min(counts) == longest else torch.tensor(counts)
        tokens_BS = torch.tensor([chunk + [0] * (longest - len(chunk)) for chunk in chunks])
        span = Span(slot, torch.tensor([each.cached for each in reading]), longest, padded)
        if self.observer:
            self.observer.reading(reading)
        states_BSD = self._decoder(tokens_BS, self._cache, span)
        for sequence, count in zip(reading, counts, strict=True):
            sequence.cached += count
            if self.prefixes:
                self.prefixes.save(sequence, self._cache, slot)
        if first.cached < len(first.prompt):
            return []
        self._decoding += len(reading)
        last_BD = states_BSD[:, -1]
        if padded is not None:
            last_BD = states_BSD[torch.arange(len(reading)), padded - 1]
        logits_BV = self._decoder.logits(last_BD)
        for sequence, logits_V in zip(reading, logits_BV, strict=True):
            self._append(sequence, logits_V)
        return reading

    def _reading(self) -> list[Sequence]:
        """Return whose prompt is read next: one, or several that one chunk is enough for.

        So the weights are read once for all of these. At most a quarter of what is computed then is
        padding; none where somebody observes, who counts equally many tokens of each.
        """
        first, *others = self._sequences[self._decoding :]
        found, rests = [first], [len(first.prompt) - first.cached]
        if self.prefixes or not self._together or self._chunk_end(first) < len(first.prompt):
            return found
        for sequence in others:
            rests.append(len(sequence.prompt) - sequence.cached)
            size = max(rests) * len(rests)
            most = sum(rests) if self.observer else 4 / 3 * sum(rests)
            if size > min(PREFILL_CHUNK, most):
                break
            found.append(sequence)
        return found

    def _chunk_end(self, sequence: Sequence) -> int:
        size = self.prefixes.block if self.prefixes else PREFILL_CHUNK
        return (sequence.cached // size + 1) * size

    def _decode(self) -> list[Sequence]:
        ready = self._sequences[: self._decoding]
        if not ready:
            return []
        tokens_B1 = torch.tensor([[sequence.generated[-1]] for sequence in ready])
        span = Span(0, torch.tensor([sequence.cached for sequence in ready]), 1)
        if self.observer:
            self.observer.reading(ready)
        states_B1D = self._decoder(tokens_B1, self._cache, span)
        for sequence, logits_V in zip(ready, self._decoder.logits(states_B1D[:, 0]), strict=True):
            sequence.cached += 1
            self._append(sequence, logits_V)
        return ready

    def _append(self, sequence: Sequence, logits_V: torch.Tensor) -> None:
        token = sequence.sampler(logits_V, sequence.prompt + sequence.generated)
        sequence.generated.append(token)
        if token in sequence.ends:
            sequence.finish = "stop"
        elif len(sequence.generated) >= sequence.limit or sequence.cached >= self.context:
            sequence.finish = "length"

    def _longest(self, sequence: Sequence) -> int:
        return min(self.context, len(sequence.prompt) + sequence.limit)

    def _move(self, source: int, target: int) -> int:
        """Move a sequence to another slot, and return the slot that is free now."""
        if source != target:
            self._cache.move(source, target, self._sequences[source].cached)
            self._sequences[target] = self._sequences[source]
        return source
