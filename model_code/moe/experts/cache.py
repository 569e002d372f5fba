"""Which experts are in memory: slots under a budget of bytes, filled by threads while others work.

Who goes is decided by LRFU (Lee et al. 2001, IEEE Transactions on Computers 50(12), "LRFU: a
spectrum of policies that subsumes the least recently used and least frequently used policies"):
each visit counts 1, and counts half as much after so many tokens. Least recently used alone would
throw out what the next token needs, since each token goes through the layers in the same order.

One thread, the engine's, asks and computes; loads run in others and touch nothing but their slot.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy
import torch
from torch import Tensor

from model_code.common import huge_pages
from model_code.common.errors import SettingsError
from model_code.moe.experts.index import ExpertIndex
from model_code.moe.experts.metrics import ExpertMetrics
from model_code.moe.experts.source import Source

_HALF_LIFE = 64  # tokens (or chunks of prompts) after which a visit counts half
_RESCALE = 1e200
Key = tuple[int, int]  # layer, expert


class ExpertCache:
    """Keeps the experts that were visited most of late.

    Args:
        budget_bytes: What all slots may take; at least one layer's active experts.
        loads: How many experts are loaded at a time.
    """

    def __init__(
        self, index: ExpertIndex, source: Source, metrics: ExpertMetrics, *,
        budget_bytes: int, loads: int = 4,
    ) -> None:  # fmt: skip
        self.index, self._source, self._metrics = index, source, metrics
        slots = min(budget_bytes // index.expert_bytes, index.count)
        if slots < index.active:
            least = -(-index.active * index.expert_bytes // 2**20)
            raise SettingsError(
                f"ISOMORPH_EXPERT_MIB is {budget_bytes / 2**20:g}, less than the {index.active} "
                f"experts of {index.expert_bytes:,} bytes that a token visits in one layer; "
                f"allowed are {least} and more"
            )
        self.slots = slots
        self.gate_up = huge_pages.advise(
            torch.empty(slots, 2 * index.inner, index.hidden, dtype=index.dtype)
        )
        self.down = huge_pages.advise(
            torch.empty(slots, index.hidden, index.inner, dtype=index.dtype)
        )
        self._threads = ThreadPoolExecutor(loads, thread_name_prefix="experts")
        self._loads = loads
        self._slot_of: dict[Key, int] = {}
        self._key_in: list[Key | None] = [None] * slots
        self._scores = numpy.zeros(slots)  # of what is in each slot
        self._gone: dict[Key, float] = {}  # scores of what is in none
        self._free = list(range(slots))
        self._loading: dict[Key, Future[None]] = {}
        self._unseen: set[Key] = set()  # prefetched, and not visited yet
        self._pinned: dict[Key, None] = {}  # what the engine's thread is about to compute with
        self._worth, self._growth = 1.0, 2 ** (1 / (_HALF_LIFE * len(index.layers)))

    @property
    def complete(self) -> bool:
        """Whether all experts have a slot: then nothing is ever thrown out."""
        return self.slots == self.index.count

    def visit(self, layer: int, experts: Sequence[int]) -> Iterator[dict[int, int]]:
        """Yield experts of a layer with their slots, group by group, until each has been there.

        First those in memory, then others as they come. Slots hold what they hold until the next
        group is asked for.

        Raises:
            ExpertsUnavailableError: An expert cannot be had now.
            WeightsError: An expert is damaged.
        """
        self._age()
        wanted = self._pinned = dict.fromkeys((layer, expert) for expert in experts)
        self._count(wanted)
        while wanted:
            self._collect()
            ready = {key: self._slot_of[key] for key in wanted
                     if key in self._slot_of and key not in self._loading}  # fmt: skip
            for key in wanted:
                if key not in self._slot_of and not self._start(key):
                    break
            if ready:
                yield {number: slot for (_, number), slot in ready.items()}
                for key in ready:
                    del wanted[key]
            else:
                self._stall()

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to load experts that the next layer may ask for, as far as threads are idle."""
        self._collect()
        keys = [(layer, expert) for expert in experts]
        for key in keys:
            if len(self._loading) >= self._loads:
                return
            if key not in self._slot_of and self._start(key, keys):
                self._unseen.add(key)

    def close(self) -> None:
        """Wait for loads on their way, and let go of the source."""
        self._threads.shutdown(cancel_futures=True)
        self._source.close()

    def _count(self, wanted: dict[Key, None]) -> None:
        hits = [key for key in wanted if key in self._slot_of and key not in self._loading]
        self._metrics.add("ExpertHits", len(hits))
        self._metrics.add("ExpertMisses", len(wanted) - len(hits))
        foreseen = self._unseen & wanted.keys()
        if foreseen:
            self._metrics.add("ExpertPrefetchHits", len(foreseen))
            self._unseen -= foreseen
        for key in wanted:
            slot = self._slot_of.get(key)
            if slot is None:
                self._gone[key] = self._gone.get(key, 0.0) + self._worth
            else:
                self._scores[slot] += self._worth

    def _age(self) -> None:
        """Let what comes now count more than what came: the same as letting that count less."""
        self._worth *= self._growth
        if self._worth > _RESCALE:
            self._scores /= self._worth
            self._gone = {key: score / self._worth for key, score in self._gone.items()}
            self._worth = 1.0

    def _start(self, key: Key, keep: Sequence[Key] = ()) -> bool:
        """Begin to load an expert; False if each slot is needed."""
        slot = self._free.pop() if self._free else self._evict(keep)
        if slot is None:
            return False
        self._slot_of[key], self._key_in[slot] = slot, key
        self._scores[slot] = self._gone.pop(key, 0.0)
        self._loading[key] = self._threads.submit(self._load, key, slot)
        return True

    def _evict(self, keep: Sequence[Key]) -> int | None:
        """Empty the slot that counts least, but none of what is wanted or on its way."""
        scores = self._scores.copy()
        for key in (*self._pinned, *keep, *self._loading):
            if (slot := self._slot_of.get(key)) is not None:
                scores[slot] = numpy.inf
        slot = int(scores.argmin())
        if scores[slot] == numpy.inf:
            return None
        self._forget(slot)
        return slot

    def _forget(self, slot: int) -> None:
        if (key := self._key_in[slot]) is not None:
            del self._slot_of[key]
            self._gone[key] = float(self._scores[slot])
            self._unseen.discard(key)
            self._key_in[slot] = None

    def _load(self, key: Key, slot: int) -> None:
        gate, up = self.gate_up[slot].chunk(2)
        self._source.read(*key, [_bytes_of(part) for part in (gate, up, self.down[slot])])

    def _collect(self) -> None:
        """Take note of loads that are done. One that failed matters if its expert is wanted."""
        for key, load in [*self._loading.items()]:
            if not load.done():
                continue
            del self._loading[key]
            if (error := load.exception()) is None:
                self._metrics.add("ExpertBytesLoaded", self.index.expert_bytes)
                continue
            slot = self._slot_of[key]
            self._forget(slot)
            self._free.append(slot)
            self._metrics.add("ExpertErrors", 1)
            if key in self._pinned:
                self._pinned = {}
                raise error

    def _stall(self) -> None:
        """Wait for a load. There is one: what is wanted is in no slot, or on its way."""
        since = time.perf_counter()
        wait(self._loading.values(), return_when=FIRST_COMPLETED)
        self._metrics.add("ExpertStallMs", 1e3 * (time.perf_counter() - since))


def _bytes_of(tensor: Tensor) -> memoryview:
    raw: Any = tensor.view(torch.uint8).numpy()
    return memoryview(raw).cast("B")
