"""Experts of the small mixture in a file of their own, a cache for them, and who uses both."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model_code.common.architecture import read
from model_code.common.cache import KVCache
from model_code.common.decoder import Decoder
from model_code.common.model_folder import load_folder
from model_code.common.span import Span
from model_code.moe.experts import ExpertsUnavailableError
from model_code.moe.experts.cache import ExpertCache
from model_code.moe.experts.index import ExpertIndex, read_index
from model_code.moe.experts.metrics import ExpertMetrics
from model_code.moe.experts.module import install
from model_code.moe.experts.source import DiskSource, Places, Source
from tests.model_code.with_torch.mixture import CONFIG

EXPERT = 3 * CONFIG["hidden_size"] * CONFIG["moe_intermediate_size"] * 4
LAYERS, EXPERTS = 2, CONFIG["n_routed_experts"]


def index_of(folder: Path) -> ExpertIndex:
    return read_index(folder, read(folder))


def cache_of(
    folder: Path, slots: int, source: Source | None = None, **more: Any
) -> tuple[ExpertCache, ExpertMetrics]:
    index, metrics = index_of(folder), ExpertMetrics()
    source = source or DiskSource(folder, index)
    return ExpertCache(index, source, metrics, budget_bytes=slots * EXPERT, **more), metrics


def decoder_of(folder: Path, cache: ExpertCache | None = None, *, prefetch: bool = True) -> Decoder:
    prepare = partial(install, cache=cache, prefetch=prefetch) if cache else None
    return load_folder(folder, context=128, dtype=torch.float32, prepare=prepare).decoder


@torch.inference_mode()
def logits(decoder: Decoder, tokens: int = 12, steps: int = 6) -> torch.Tensor:
    """Read a prompt, then one token after the other."""
    torch.manual_seed(3)
    given = torch.randint(CONFIG["vocab_size"], (1, tokens + steps))
    kept = KVCache(decoder.architecture, slots=1, context=128, dtype=torch.float32)
    found = [decoder(given[:, :tokens], kept, Span(0, torch.tensor([0]), tokens))]
    for at in range(tokens, tokens + steps):
        found.append(decoder(given[:, at : at + 1], kept, Span(0, torch.tensor([at]), 1)))
    return decoder.logits(torch.cat(found, dim=1))


class Numbered:
    """A source whose bytes are the expert's number, and that can be made to wait or fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.go = threading.Event()
        self.go.set()
        self.fails = False

    def read(self, layer: int, number: int, places: Places) -> None:
        self.asked.append((layer, number))
        assert self.go.wait(10)
        if self.fails:
            raise ExpertsUnavailableError("gone")
        for place in places:
            place[:] = bytes([number]) * len(place)

    def close(self) -> None:
        pass


def visit(cache: ExpertCache, layer: int, *experts: int) -> list[list[int]]:
    return [sorted(group) for group in cache.visit(layer, experts)]
