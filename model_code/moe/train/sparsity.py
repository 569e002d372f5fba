"""Hugging Face folders whose matrices have the 4:16 pattern: made, checked, kept while training.

The config.json of such a folder says so: `isomorph_sparsity` has the pattern, which matrices have
it, and the layout: `zeros` (any library loads it) or `packed` (as common/sparse.py says).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from model_code.common.architecture import parse
from model_code.common.checkpoint import stored
from model_code.common.config_fields import load_json
from model_code.common.decoder import Decoder
from model_code.common.errors import WeightsError
from model_code.common.safetensors_folder import SafetensorsFolder, write_folder
from model_code.common.sparse import (
    GROUP,
    KEPT,
    PLACES,
    VALUES,
    SparseWeight,
    check_groups,
    most_in_a_group,
    prune,
)
from model_code.common.tensor_names import sources

PATTERN, FIELD = f"{KEPT}:{GROUP}", "isomorph_sparsity"
LAYOUTS = ("zeros", "packed")
_LAYER = r"(?:language_model\.)?model\.(?:language_model\.)?layers\.\d+\."
_FEED_FORWARD = r"(?:mlp|block_sparse_moe)\.(?!gate\.|router\.).+"
# kv_b_proj stays whole: on latents its key half is multiplied along its outputs.
_ATTENTION = r"self_attn\.(?!kv_b_proj\.)\w+_proj\w*"
MATRICES = {
    "feed-forward": re.compile(rf"{_LAYER}{_FEED_FORWARD}\.weight"),
    "all": re.compile(rf"{_LAYER}(?:{_FEED_FORWARD}|{_ATTENTION})\.weight"),
}


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """What a folder's config.json says of its sparsity."""

    matrices: str
    layout: str

    @classmethod
    def read(cls, config: dict[str, Any], folder: Path) -> "Sparsity | None":
        """Return it, or None if the folder is dense.

        Raises:
            WeightsError: The field is there, and not as `field` writes it.
        """
        given = config.get(FIELD)
        if given is None:
            return None
        found = given if isinstance(given, dict) else {}
        matrices, layout = found.get("matrices"), found.get("layout")
        if found.get("pattern") != PATTERN or matrices not in MATRICES or layout not in LAYOUTS:
            raise WeightsError(
                f"{folder / 'config.json'}: {FIELD} is {str(given)[:80]}; allowed: pattern "
                f"{PATTERN}, matrices {' or '.join(MATRICES)}, layout {' or '.join(LAYOUTS)}"
            )
        return cls(matrices=matrices, layout=layout)

    @property
    def field(self) -> dict[str, str]:
        """What the config.json holds."""
        return {"pattern": PATTERN, "matrices": self.matrices, "layout": self.layout}

    def has(self, name: str) -> bool:
        """Whether the matrix that a file calls `name` has the pattern."""
        return MATRICES[self.matrices].fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a folder with the pattern holds.

    Args:
        matrices: How many have the pattern.
        share: Of all numbers, those that are in these matrices.
        dense_bytes: What all tensors take with their zeros.
        packed_bytes: What they take with those matrices packed.
    """

    matrices: int
    share: float
    dense_bytes: int
    packed_bytes: int

    @property
    def text(self) -> str:
        """One line about it."""
        saved = 1 - self.packed_bytes / self.dense_bytes
        return (
            f"{self.matrices} matrices with at most {KEPT} of {GROUP}, {self.share:.1%} of all "
            f"numbers; {self.dense_bytes:,} bytes with zeros, {self.packed_bytes:,} packed: "
            f"{saved:.1%} less"
        )


def prune_folder(folder: Path, out: Path, sparsity: Sparsity) -> None:
    """Write the folder's weights to `out` with the pattern, one tensor in memory at a time.

    Raises:
        WeightsError: The folder is damaged, claims a pattern that it has not, or holds matrices
            that cannot have it.
    """
    config = load_json(folder / "config.json")
    if Sparsity.read(config, folder) is not None:
        verify(folder)  # else pruning again would hide that its mask was broken
    files = SafetensorsFolder(folder, parse(config))
    names = files.names()
    if not any(sparsity.has(name) for name in names):
        raise WeightsError(
            f"{folder}: has no matrix to prune ({sparsity.matrices}); families whose experts are "
            f"one tensor (gpt-oss) are not pruned"
        )
    quantised = config.pop("quantization_config", None) is not None
    dtype = {"dtype": "bfloat16"} if quantised else {}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in names:
            tensor = files.tensor(name)
            if quantised and tensor.dim() == 2:
                tensor = tensor.bfloat16()
            yield from _written(name, tensor, sparsity, folder)

    write_folder(tensors(), config | dtype | {FIELD: sparsity.field}, out)


def _written(
    name: str, tensor: Tensor, sparsity: Sparsity, folder: Path
) -> Iterator[tuple[str, Tensor]]:
    if not sparsity.has(name):
        yield name, tensor
        return
    _check(name, tensor, folder)
    if sparsity.layout == "zeros":
        yield name, prune(tensor)
        return
    packed = SparseWeight(tensor, tensor.dtype)
    yield name + VALUES, packed.values_OGK
    yield name + PLACES, packed.places_OG2


def _check(name: str, tensor: Tensor, folder: Path) -> None:
    if not tensor.sum(dtype=torch.float32).isfinite():
        raise WeightsError(f"{folder}: {name} holds values that are not finite; train it again")
    try:
        check_groups(tensor)
    except ValueError as error:
        raise WeightsError(f"{folder}: {name}: {error}; its config.json sets them") from error


def verify(folder: Path) -> Report:
    """Return what a pruned folder holds, after a look at every number in its files.

    Raises:
        WeightsError: It is not pruned, or a matrix has not the pattern that its config.json says.
    """
    config = load_json(folder / "config.json")
    sparsity = Sparsity.read(config, folder)
    if sparsity is None:
        raise WeightsError(
            f"{folder}: is not pruned: its config.json has no {FIELD}; "
            f"`python -m model_code.moe.train.prune FOLDER OUT` makes such a folder"
        )
    files = SafetensorsFolder(folder, parse(config))
    matrices = numbers = pruned = dense = packed = 0
    for name in files.names():
        tensor = files.tensor(name)
        numbers, dense = numbers + tensor.numel(), dense + tensor.nbytes
        if not sparsity.has(name):
            packed += tensor.nbytes
            continue
        _check(name, tensor, folder)
        _check_pattern(name, files, tensor, sparsity, folder)
        matrices, pruned = matrices + 1, pruned + tensor.numel()
        packed += tensor.numel() // GROUP * (KEPT * tensor.itemsize + KEPT // 2)
    if not matrices:
        raise WeightsError(f"{folder}: its config.json says {PATTERN}, and no matrix is there")
    return Report(matrices=matrices, share=pruned / numbers, dense_bytes=dense, packed_bytes=packed)


def _check_pattern(
    name: str, files: SafetensorsFolder, tensor: Tensor, sparsity: Sparsity, folder: Path
) -> None:
    layout = "packed" if files.is_packed(name) else "zeros"
    if layout != sparsity.layout:
        raise WeightsError(
            f"{folder}: {name} is stored with layout {layout}, its config.json says "
            f"{sparsity.layout}"
        )
    if (most := most_in_a_group(tensor)) > KEPT:
        raise WeightsError(
            f"{folder}: {name} has {most} numbers other than zero in {GROUP} inputs; {PATTERN} "
            f"allows {KEPT}: what trained it after pruning did not keep the mask; prune it again"
        )


class Masks:
    """Keeps zeros at zero while a pruned decoder is trained on: call it after each update.

    The mask is where a matrix is zero when this is made, so a resumed training has the same one.
    A sharded parameter (FSDP, expert parallelism) is masked shard by shard.
    """

    def __init__(self, decoder: Decoder, matrices: str) -> None:
        pattern = MATRICES[matrices]
        self._kept = {
            name: _local(tensor) != 0
            for name, tensor in stored(decoder)
            if all(
                pattern.fullmatch(source.name)
                # Names only: of a sharded parameter nothing is to be gathered.
                for source in sources(
                    decoder.architecture, name, torch.empty(tensor.shape, device="meta")
                )
            )
        }

    @torch.no_grad()
    def __call__(self, decoder: Decoder) -> None:
        """Set what was zero to zero."""
        for name, tensor in stored(decoder):
            if name in self._kept:
                _local(tensor).mul_(self._kept[name])


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
