"""A decoder whose steps are compiled graphs: the batch drives it as it drives our own decoder.

Caches go to the device and back at each step. That is simple and right, and not fast: on a
device that keeps its state this is what to change first. It was not run on Neuron.

Shape letters: B sequences, S new tokens, V vocabulary.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_code.common.architecture import Architecture
from model_code.common.cache import KVCache
from model_code.common.errors import WeightsError
from model_code.common.manifest import file_sha256
from model_code.common.span import Span
from model_code.moe.static import neuron
from model_code.moe.static.compile import PLAN
from model_code.moe.static.decoder import Bucket

Graph = neuron.Graph


class GraphDecoder:
    """What a `Batch` asks of a decoder, with graphs of fixed shapes behind it.

    Args:
        graphs: One for a token of each slot, and one for a chunk of one prompt.
    """

    def __init__(
        self, architecture: Architecture, graphs: Mapping[Bucket, Graph], dtype: torch.dtype
    ) -> None:
        self.architecture, self.dtype = architecture, dtype
        ordered = sorted(graphs, key=lambda bucket: bucket.tokens)
        self._one, self._chunk = ordered[0], ordered[-1]
        self._graphs = graphs
        self.context, self.slots = self._one.context, self._one.slots
        self.chunk = self._chunk.tokens

    def __call__(self, tokens_BS: Tensor, cache: KVCache, span: Span) -> Tensor:
        """Return the logits [B, 1, V] after each sequence's last token; the cache has grown."""
        one = tokens_BS.shape[1] == 1 and span.slots.start == 0  # else the end of a prompt
        bucket = self._one if one else self._chunk
        slots = slice(0, bucket.slots) if one else span.slots
        count = len(tokens_BS)
        padded = torch.zeros(bucket.slots, bucket.tokens, dtype=torch.int64)
        padded[:count, : tokens_BS.shape[1]] = tokens_BS
        # A slot that is not read starts at the end: what it leaves there is read by nobody.
        starts = torch.full((bucket.slots,), bucket.context - 1)
        starts[:count] = span.starts_B
        counts = torch.ones(bucket.slots, dtype=torch.int64)
        counts[:count] = tokens_BS.shape[1]
        stores = [store for layer in cache.layers for store in layer.stores]
        logits_BV, *found = self._graphs[bucket](
            padded, starts, counts, *(store[slots] for store in stores)
        )
        rows = slice(slots.start, slots.start + count)
        for store, new in zip(stores, found, strict=True):
            store[rows] = new[:count]
        return logits_BV[:count, None]

    def logits(self, states: Tensor) -> Tensor:
        """Return them: the graphs have computed the head already."""
        return states.float()


def load_graphs(
    folder: Path, config: Path, load: Callable[[Path], Graph] = neuron.load_graph
) -> tuple[dict[Bucket, Graph], torch.dtype]:
    """Return the graphs that `isomorph compile moe` stored in `folder`, checked, and their dtype.

    Raises:
        WeightsError: They are missing, damaged, or of another model than `config` is of.
    """
    path = folder / PLAN
    try:
        plan: dict[str, Any] = json.loads(path.read_bytes())
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[plan["dtype"]]
        listed = [(Bucket(each["slots"], each["tokens"], each["context"]), each["file"],
                   each["sha256"]) for each in plan["graphs"]]  # fmt: skip
        model = plan["config_sha256"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(
            f"{path}: is missing or damaged; isomorph compile moe makes it on a Neuron machine"
        ) from error
    if model != hashlib.sha256(config.read_bytes()).hexdigest():
        raise WeightsError(f"{path}: was compiled for another model than {config} describes")
    graphs = {}
    for bucket, name, digest in listed:
        if Path(name).name != name or not (folder / name).is_file():
            raise WeightsError(f"{path}: names {name!r:.80}, which is not there")
        if (found := file_sha256(folder / name)) != digest:
            raise WeightsError(f"{folder / name}: sha256 is {found}, {PLAN} says {digest}")
        graphs[bucket] = load(folder / name)
    return graphs, dtype
