"""The header of a GGUF file: metadata and where each tensor lies. Standard library only.

llama.cpp reads the file itself; we read the header before it, to know the model's dimensions and
to name a truncated file in one line. The native engine takes its tensors by these offsets.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_code.common.errors import WeightsError

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

# Tensor type -> (name, values in a block, bytes of a block), from ggml's ggml_type table.
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 4  # arrays of arrays; real files have none


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file. `shape` is in torch's order (rows first)."""

    name: str
    shape: tuple[int, ...]
    type: int
    type_name: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says about itself."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja template, if the file carries one."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) and template.strip() else None


def read_header(path: Path) -> GGUFHeader:
    """Read the header of `path`, and check that the file is as long as its tensors need.

    Raises:
        WeightsError: The file is missing, no GGUF, cut short or of an unknown layout.
    """
    try:
        size = path.stat().st_size
        if size < 24:
            raise WeightsError(f"{path}: truncated: {size} bytes are too few for a GGUF header")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    except struct.error as error:
        raise WeightsError(f"{path}: truncated: the header goes on after the file's end") from error
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path}: damaged: a text in the header is no UTF-8") from error


class _Reader:
    """A cursor over the mapped file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def read(self) -> GGUFHeader:
        magic = self.data[:4]
        if magic != b"GGUF":
            raise WeightsError(f"{self.path}: is no GGUF file: starts with {magic!r}, not b'GGUF'")
        self.at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise WeightsError(f"{self.path}: GGUF version {version} is unknown; 2 and 3 are read")
        tensor_count, entry_count = self._scalar("Q"), self._scalar("Q")
        metadata = {self._text(): self._value(self._scalar("I")) for _ in range(entry_count)}
        found = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
            raise WeightsError(f"{self.path}: damaged: alignment {alignment!r}")
        start = -(-self.at // alignment) * alignment
        tensors = {info.name: self._placed(info, start) for info in found}
        return GGUFHeader(self.path, metadata, tensors)

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def _text(self) -> str:
        length = self._scalar("Q")
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise WeightsError(f"{self.path}: truncated: the header goes on after the file's end")
        return self.data[start : self.at].decode()

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY or depth == _MAX_DEPTH:
            raise WeightsError(f"{self.path}: damaged: metadata of unknown type {kind}")
        item, count = self._scalar("I"), self._scalar("Q")
        if item in _SCALARS:
            layout = f"<{count}{_SCALARS[item]}" if count < len(self.data) else "<Q"
            if self.at + struct.calcsize(layout) > len(self.data) or count >= len(self.data):
                raise WeightsError(f"{self.path}: truncated: an array of {count} values is cut")
            values = struct.unpack_from(layout, self.data, self.at)
            self.at += struct.calcsize(layout)
            return list(values)
        return [self._value(item, depth + 1) for _ in range(count)]

    def _tensor(self) -> TensorInfo:
        name, dimensions = self._text(), self._scalar("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise WeightsError(f"{self.path}: damaged: {name} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        kind, offset = self._scalar("I"), self._scalar("Q")
        if kind not in _TYPES:
            known = ", ".join(type_name for type_name, _, _ in _TYPES.values())
            raise WeightsError(f"{self.path}: {name} has unknown type {kind}; known: {known}")
        type_name, block, block_bytes = _TYPES[kind]
        values = 1
        for length in shape:
            values *= length
        return TensorInfo(name, shape, kind, type_name, offset, values // block * block_bytes)

    def _placed(self, info: TensorInfo, start: int) -> TensorInfo:
        end = start + info.offset + info.nbytes
        if end > len(self.data):
            raise WeightsError(
                f"{self.path}: truncated: {info.name} ends at byte {end:,}, "
                f"the file has {len(self.data):,}"
            )
        return TensorInfo(
            info.name, info.shape, info.type, info.type_name, start + info.offset, info.nbytes
        )
