"""Weights as Hugging Face stores them: a folder with config.json and one or more safetensors files.

The files are mapped into memory: a tensor's bytes are read when they are copied to their place.
A matrix may be packed as sparse.py says; it gets its zeros back when it is read.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model_code.common.architecture import Architecture
from model_code.common.checkpoint import all_sources
from model_code.common.config_fields import ModelError, load_json
from model_code.common.decoder import Decoder
from model_code.common.errors import WeightsError
from model_code.common.sparse import PLACES, VALUES, SparseWeight

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")
_SHARD_BYTES = 4 << 30
# What multimodal files put before the names of the part that reads text, and what else they hold.
_PREFIXES = (("", ""), ("language_model.", ""), ("model.language_model.", "model."))
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                "model.multi_modal_projector.")  # fmt: skip
_SCALES = "_scale_inv"  # DeepSeek-V3: of each block of an fp8 matrix
_BLOCK = 128
_TABLES = ("rotary_emb.inv_freq",)  # computed, but stored in old files


class SafetensorsFolder:
    """Reads one tensor at a time.

    Args:
        partial: Whether files that the index names may be missing, until they are read.
    """

    def __init__(self, folder: Path, architecture: Architecture, *, partial: bool = False) -> None:
        self._folder, self._architecture = folder, architecture
        self._shard_of = file_of_each(folder, partial=partial)
        self._open: dict[str, Any] = {}
        self._prefix = next(
            (pair for pair in _PREFIXES if self._stored("model.embed_tokens.weight", pair)
             in self._shard_of), _PREFIXES[0],
        )  # fmt: skip

    def __call__(self, name: str) -> Tensor:
        """Return the tensor that the text model calls `name`; a view of the mapped file."""
        return self.tensor(self._stored(name, self._prefix))

    def names(self) -> list[str]:
        """Return what the files call their tensors, file by file: packed ones once, no scales."""
        whole = {
            name.removesuffix(VALUES).removesuffix(PLACES): shard
            for name, shard in self._shard_of.items()
            if not name.endswith(_SCALES)
        }
        return sorted(whole, key=lambda name: (whole[name], name))

    def tensor(self, stored: str) -> Tensor:
        """Return the tensor that the file calls `stored`, with its zeros and scales."""
        if self.is_packed(stored):
            return self.packed(stored).unpack()
        tensor = self._read(stored)
        if stored + _SCALES in self._shard_of:
            return _dequantised(tensor, self._read(stored + _SCALES))
        return tensor

    def is_packed(self, stored: str) -> bool:
        """Whether the file holds a matrix as values and places."""
        return stored + VALUES in self._shard_of

    def packed(self, stored: str) -> SparseWeight:
        """Return such a matrix."""
        shard = self._folder / self._shard_of[stored + VALUES]
        if stored in self._shard_of:
            raise WeightsError(f"{shard}: {stored} is there both packed and with its zeros")
        values, places = self._read(stored + VALUES), self._read(stored + PLACES, torch.uint8)
        try:
            return SparseWeight.of(values, places)
        except ValueError as error:
            raise WeightsError(f"{shard}: {stored}: {error}") from error

    def check_complete(self, names: set[str]) -> None:
        """Refuse tensors that the model would not use: nothing is dropped in silence."""
        known = {self._stored(name, self._prefix) for name in names}
        known |= {name + part for name in known for part in (VALUES, PLACES)}
        extra = sorted(name for name in set(self._shard_of) - known if not self._unused(name))
        if extra:
            raise WeightsError(
                f"{self._folder}: holds {', '.join(extra[:3])}, {len(extra)} in all, which the "
                f"model in its config.json does not have"
            )

    def _unused(self, name: str) -> bool:
        """Whether we know why a tensor is there although the decoder has no place for it."""
        architecture = self._architecture
        if name.startswith(_OTHER_PARTS) or name.endswith((*_TABLES, _SCALES)):
            return True
        if name == self._stored("lm_head.weight", self._prefix):
            return architecture.tied_embeddings
        match = re.fullmatch(r"model\.layers\.(\d+)\..+", name)
        # Layers that predict more than the next token stand behind the others.
        first = len(architecture.layers)
        return match is not None and first <= int(match[1]) < first + architecture.mtp_layers

    def _stored(self, name: str, prefix: tuple[str, str]) -> str:
        written, replaced = prefix
        return written + name.removeprefix(replaced)

    def _read(self, stored: str, only: torch.dtype | None = None) -> Tensor:
        shard = self._shard_of.get(stored)
        if shard is None:
            raise WeightsError(f"{self._folder}: {stored} is missing")
        if shard not in self._open:
            self._open[shard] = _opened(self._folder / shard)
        try:
            tensor: Tensor = self._open[shard].get_tensor(stored)
        except SafetensorError as error:
            raise WeightsError(f"{self._folder / shard}: {stored}: {error}") from error
        if tensor.dtype != only and not tensor.dtype.is_floating_point:
            raise WeightsError(
                f"{self._folder / shard}: {stored} is of {tensor.dtype}; the native engine reads "
                f"weights that are floating-point numbers"
            )
        return tensor


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        words = " ".join(str(error).split())
        size = f"{path.stat().st_size:,} bytes" if path.is_file() else "not there"
        raise WeightsError(f"{path}: truncated or damaged ({size}): {words:.120}") from error


def file_of_each(folder: Path, *, partial: bool = False) -> dict[str, str]:
    """Return which file of the folder holds each tensor; some may be missing if it is `partial`."""
    if (folder / SINGLE).is_file():
        return dict.fromkeys(_opened(folder / SINGLE).keys(), SINGLE)
    path = folder / INDEX
    if not path.is_file():
        raise WeightsError(f"{folder}: must hold {SINGLE}, or {INDEX} with its files")
    try:
        shard_of = load_json(path).get("weight_map")
    except ModelError as error:
        raise WeightsError(str(error)) from error
    if not isinstance(shard_of, dict) or not all(
        isinstance(shard, str) and _SHARD.fullmatch(shard) for shard in shard_of.values()
    ):
        raise WeightsError(f"{path}: weight_map must say which .safetensors file has each tensor")
    missing = sorted({shard for shard in shard_of.values() if not (folder / shard).is_file()})
    if missing and not partial:
        raise WeightsError(f"{folder}: {', '.join(missing[:3])} missing, which {INDEX} names")
    return shard_of


def _dequantised(tensor: Tensor, scales: Tensor) -> Tensor:
    """Multiply each block of an fp8 matrix by its scale (DeepSeek-V3, arXiv 2412.19437, 3.3)."""
    if scales.shape != tuple(-(-length // _BLOCK) for length in tensor.shape):
        raise WeightsError(
            f"scales of shape {tuple(scales.shape)} do not fit a matrix of {tuple(tensor.shape)} "
            f"in blocks of {_BLOCK}"
        )
    rows, columns = tensor.shape
    spread = scales.repeat_interleave(_BLOCK, 0)[:rows].repeat_interleave(_BLOCK, 1)[:, :columns]
    return tensor.float() * spread


def save_folder(decoder: Decoder, config: dict[str, Any], folder: Path) -> None:
    """Write a decoder as Hugging Face stores it, so that transformers loads it.

    Args:
        decoder: Whose parameters are written, in its dtype.
        config: The config.json that its architecture was read from.
        folder: Must be there; files of the same names are replaced.
    """
    tensors = ((each.name, each.order.theirs(each.place)) for each in all_sources(decoder))
    write_folder(tensors, config | {"dtype": _word(decoder.dtype)}, folder)


def write_folder(
    tensors: Iterator[tuple[str, Tensor]], config: dict[str, Any], folder: Path,
    shard_bytes: int = _SHARD_BYTES,
) -> None:  # fmt: skip
    """Write named tensors and a config.json; no more than one shard is in memory at a time."""
    shards: list[tuple[list[str], Path]] = []
    pending: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        path = folder / f"shard-{len(shards)}.safetensors"
        save_file(pending, path, metadata={"format": "pt"})
        shards.append(([*pending], path))
        pending.clear()

    for name, tensor in tensors:
        if pending and sum(t.nbytes for t in pending.values()) + tensor.nbytes > shard_bytes:
            flush()
        pending[name] = tensor.detach().contiguous()
        total += tensor.nbytes
    flush()
    _name_shards(shards, total, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _name_shards(shards: list[tuple[list[str], Path]], total: int, folder: Path) -> None:
    for stale in [folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")]:
        stale.unlink(missing_ok=True)
    if len(shards) == 1:
        shards[0][1].rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, (names, path) in enumerate(shards, start=1):
        final = f"model-{number:05}-of-{len(shards):05}.safetensors"
        path.rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
