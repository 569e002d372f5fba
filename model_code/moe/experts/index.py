"""Where each routed expert of a checkpoint lies: which file, which bytes, with which digest.

Read from the headers of safetensors files (https://huggingface.co/docs/safetensors, "Format": 8
bytes of length, a JSON of names, types, shapes and offsets, then the numbers). A checkpoint that
`layout` wrote has experts.json, which says the same without the files, and digests.

Shape letters: E experts, D model width, F inner width of an expert.
"""

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_code.common.architecture import Architecture
from model_code.common.errors import SettingsError, WeightsError
from model_code.common.sparse import VALUES
from model_code.common.tensor_names import sources

EXPERTS_FILE = "experts.json"
_VERSION = 1
_MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit
_MAX_INDEX_BYTES = 1 << 28
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")
PARTS = ("gate", "up", "down")


@dataclass(frozen=True)
class Range:
    """Bytes of a file."""

    file: str
    start: int
    bytes: int


@dataclass(frozen=True)
class Expert:
    """One expert: its gate [F, D], up [F, D] and down [D, F].

    Args:
        parts: Where these are, in that order.
        sha256: Digest of their bytes in that order; empty where nobody has made one.
    """

    parts: tuple[Range, Range, Range]
    sha256: str = ""

    @property
    def whole(self) -> Range | None:
        """Return the one range that holds all parts, if they are neighbours."""
        files = {part.file for part in self.parts}
        start = min(part.start for part in self.parts)
        nbytes = sum(part.bytes for part in self.parts)
        end = max(part.start + part.bytes for part in self.parts)
        together = len(files) == 1 and end - start == nbytes
        return Range(files.pop(), start, nbytes) if together else None


@dataclass(frozen=True)
class ExpertIndex:
    """The experts of all layers. All have the same shape and dtype.

    Args:
        layers: Layer -> its experts; layers without any are not there.
        lengths: File -> how many bytes it must have, where that is known.
    """

    layers: Mapping[int, tuple[Expert, ...]]
    hidden: int
    inner: int
    active: int
    dtype: torch.dtype
    lengths: Mapping[str, int]

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert."""
        return 3 * self.hidden * self.inner * self.dtype.itemsize

    @property
    def count(self) -> int:
        """Experts of all layers."""
        return sum(map(len, self.layers.values()))

    @property
    def checked(self) -> bool:
        """Whether each expert has a digest."""
        return all(expert.sha256 for layer in self.layers.values() for expert in layer)

    def dump(self) -> str:
        """Return experts.json: each layer's experts as [gate, up, down starts, digest]."""
        layers = {
            str(layer): {
                "file": experts[0].parts[0].file,
                "bytes": self.lengths[experts[0].parts[0].file],
                "experts": [[*(part.start for part in each.parts), each.sha256]
                            for each in experts],
            }
            for layer, experts in self.layers.items()
        }  # fmt: skip
        word = next(word for word, dtype in _DTYPES.items() if dtype == self.dtype)
        return json.dumps({"version": _VERSION, "dtype": word, "layers": layers}) + "\n"


def read_index(folder: Path, architecture: Architecture) -> ExpertIndex:
    """Return where the experts of the checkpoint in `folder` are.

    Raises:
        SettingsError: A model whose experts cannot be fetched one by one.
        WeightsError: Something is missing, damaged or of another model.
    """
    hidden, inner, active, counts = _shape(architecture)
    if (folder / EXPERTS_FILE).is_file():
        return _from_file(folder / EXPERTS_FILE, hidden, inner, active, counts)
    headers = Headers(folder)
    layers = {
        layer: tuple(
            Expert(tuple(headers.range(name) for name in names))  # type: ignore[arg-type]
            for names in expert_names(architecture, layer)
        )
        for layer in counts
    }
    found = {headers.dtype(name) for layer in counts for names in expert_names(architecture, layer)
             for name in names}  # fmt: skip
    if len(found) > 1 or not found <= set(_DTYPES):
        raise WeightsError(
            f"{folder}: experts are stored as {', '.join(sorted(found))}; the expert cache takes "
            f"one of {', '.join(_DTYPES)}"
        )
    index = ExpertIndex(layers, hidden, inner, active, _DTYPES[found.pop()], headers.lengths)
    _check_sizes(index, str(folder))
    return index


def expert_names(architecture: Architecture, layer: int) -> list[tuple[str, str, str]]:
    """Return Hugging Face's names of each expert's gate, up and down in a layer."""
    part, hidden = architecture.layers[layer].feed_forward, architecture.hidden
    base = f"layers.{layer}.feed_forward.experts"
    with torch.device("meta"):
        both = torch.empty(part.experts, 2 * part.width, hidden)
        back = torch.empty(part.experts, hidden, part.width)
    first = [each.name for each in sources(architecture, f"{base}.gate_up", both)]
    last = [each.name for each in sources(architecture, f"{base}.down", back)]
    return list(zip(first[::2], first[1::2], last, strict=True))


class Headers:
    """The headers of a folder's safetensors files."""

    def __init__(self, folder: Path) -> None:
        from model_code.common.safetensors_folder import file_of_each

        self._folder, self._file_of = folder, file_of_each(folder)
        self._read: dict[str, tuple[int, dict[str, Any]]] = {}
        self.lengths: dict[str, int] = {}

    def range(self, name: str) -> Range:
        """Return where the tensor `name` is."""
        file, start, entry = self._entry(name)
        begin, end = entry["data_offsets"]
        return Range(file, start + begin, end - begin)

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype in safetensors' word."""
        return str(self._entry(name)[2]["dtype"])

    def _entry(self, name: str) -> tuple[str, int, dict[str, Any]]:
        file = self._file_of.get(name)
        if name + VALUES in self._file_of:
            raise WeightsError(
                f"{self._folder}: {name} is packed to 4:16; the expert cache takes matrices with "
                f"their zeros: prune again without --packed, or leave ISOMORPH_EXPERT_MIB out"
            )
        if file is None:
            raise WeightsError(f"{self._folder}: {name} is missing")
        if file not in self._read:
            path = self._folder / file
            self._read[file] = read_header(path)
            self.lengths[file] = path.stat().st_size
        start, header = self._read[file]
        return file, start, header[name]


def read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where a safetensors file's numbers begin, and its names; checks that all are there."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        whole = 8 + length + max(ends, default=0) == path.stat().st_size
    except (OSError, struct.error, ValueError, AttributeError, LookupError, TypeError) as error:
        raise WeightsError(
            f"{path}: truncated or damaged: {' '.join(str(error).split())}"
        ) from error
    if not whole:
        raise WeightsError(
            f"{path}: truncated or damaged: it has {path.stat().st_size:,} bytes, its header says "
            f"{8 + length + max(ends, default=0):,}"
        )
    return 8 + length, header


def _shape(architecture: Architecture) -> tuple[int, int, int, dict[int, int]]:
    """Return the sizes of an expert, and how many each layer has."""
    parts = {at: layer.feed_forward for at, layer in enumerate(architecture.layers)
             if layer.feed_forward.experts}  # fmt: skip
    if not parts:
        raise SettingsError(
            f"ISOMORPH_EXPERT_MIB is set, and {architecture.name} has no routed experts; leave it "
            f"out, or serve a mixture of experts"
        )
    one = next(iter(parts.values()))
    if any(part.expert_bias or part.clamp is not None for part in parts.values()) or (
        one.activation not in ("silu", "swish")
    ):
        raise SettingsError(
            f"ISOMORPH_EXPERT_MIB is set, and experts of {architecture.family} have biases or "
            f"another activation; the expert cache takes plain SwiGLU, a tensor for each matrix"
        )
    if len({(part.width, part.active) for part in parts.values()}) > 1:
        raise SettingsError(
            f"ISOMORPH_EXPERT_MIB is set, and the layers of {architecture.name} have experts of "
            f"several sizes; the expert cache takes one"
        )
    return architecture.hidden, one.width, one.active, {at: p.experts for at, p in parts.items()}


def _from_file(
    path: Path, hidden: int, inner: int, active: int, counts: Mapping[int, int]
) -> ExpertIndex:
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError(f"more than {_MAX_INDEX_BYTES:,} bytes")
        given = json.loads(path.read_bytes())
        if given["version"] != _VERSION:
            raise ValueError(f"version {given['version']!r} is not {_VERSION}")
        dtype = _DTYPES[given["dtype"]]
        nbytes = hidden * inner * dtype.itemsize
        layers, lengths = {}, {}
        for layer, entry in given["layers"].items():
            file, length = entry["file"], int(entry["bytes"])
            if not _FILE.fullmatch(file):
                raise ValueError(f"file {file!r:.80} is no name of a safetensors file")
            lengths[file] = length
            layers[int(layer)] = tuple(
                _expert(each, file, nbytes, length) for each in entry["experts"]
            )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: is damaged: {' '.join(str(error).split())[:200]}") from error
    if {layer: len(experts) for layer, experts in layers.items()} != dict(counts):
        raise WeightsError(f"{path}: lists other layers or experts than config.json has")
    return ExpertIndex(layers, hidden, inner, active, dtype, lengths)


def _expert(given: Any, file: str, nbytes: int, length: int) -> Expert:
    *starts, digest = given
    if not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
        raise ValueError(f"digest {digest!r:.80} is no sha256")
    for start in starts:
        if type(start) is not int or not 0 < start <= length - nbytes:
            raise ValueError(f"an expert begins at {start!r:.40} of {length} bytes")
    gate, up, down = (Range(file, start, nbytes) for start in starts)
    return Expert((gate, up, down), digest)


def _check_sizes(index: ExpertIndex, where: str) -> None:
    nbytes = index.expert_bytes // 3
    for layer, experts in index.layers.items():
        for number, expert in enumerate(experts):
            for name, part in zip(PARTS, expert.parts, strict=True):
                if part.bytes != nbytes:
                    raise WeightsError(
                        f"{where}: {name} of expert {number} in layer {layer} has {part.bytes:,} "
                        f"bytes, the model's config says {nbytes:,}"
                    )
