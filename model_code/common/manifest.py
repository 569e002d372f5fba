"""What a folder of weights holds: every file with its length and its sha256."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_code.common.errors import WeightsError

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
_VERSION = 1
_PART = re.compile(r"[A-Za-z0-9_+=@-][A-Za-z0-9._+=@-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


@dataclass(frozen=True, order=True)
class WeightsFile:
    """One file. `path` is relative to the folder, with slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of one model, sorted by path."""

    model: str
    files: tuple[WeightsFile, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def sha256(self) -> str:
        """Digest of the manifest itself, which pins every file."""
        return hashlib.sha256(self.encode()).hexdigest()

    def encode(self) -> bytes:
        """Return canonical JSON: the same files give the same bytes everywhere."""
        value = {"version": _VERSION, "model": self.model,
                 "files": [asdict(file) for file in self.files]}  # fmt: skip
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @classmethod
    def decode(cls, data: bytes, source: str) -> "Manifest":
        """Read a manifest that came from elsewhere; `source` begins the messages."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{source}: is no valid JSON") from error
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            raise WeightsError(f"{source}: is no manifest of version {_VERSION}")
        model, files = value.get("model"), value.get("files")
        if not isinstance(model, str) or not isinstance(files, list) or not files:
            raise WeightsError(f"{source}: must have a model and at least one file")
        entries = tuple(sorted(_entry(item, source) for item in files))
        if len({entry.path for entry in entries}) < len(entries):
            raise WeightsError(f"{source}: names a file twice")
        return cls(model, entries)


def build_manifest(folder: Path, model: str) -> Manifest:
    """Hash every file in `folder`; hidden files and a manifest are left out."""
    if not folder.is_dir():
        raise WeightsError(f"{folder}: is not a folder")
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and str(name) != MANIFEST and not any(p[0] == "." for p in name.parts):
            _check_path(name.as_posix(), str(folder))
            files.append(WeightsFile(name.as_posix(), path.stat().st_size, file_sha256(path)))
    if not files:
        raise WeightsError(f"{folder}: holds no files; it must hold a model's weights")
    return Manifest(model, tuple(sorted(files)))


def verify(folder: Path, manifest: Manifest) -> None:
    """Check that `folder` holds what `manifest` says, byte for byte."""
    for file in manifest.files:
        path = folder / file.path
        check_length(path, file)
        if (found := file_sha256(path)) != file.sha256:
            raise WeightsError(f"{path}: sha256 is {found}, the manifest says {file.sha256}")


def check_length(path: Path, file: WeightsFile) -> None:
    """Check that `path` is there and as long as the manifest says."""
    if not path.is_file():
        raise WeightsError(f"{path}: is missing; the manifest lists it")
    if (length := path.stat().st_size) != file.bytes:
        state = "truncated" if length < file.bytes else "too long"
        raise WeightsError(
            f"{path}: {state}: has {length:,} bytes, the manifest says {file.bytes:,}"
        )


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _entry(item: Any, source: str) -> WeightsFile:
    if not isinstance(item, Mapping) or set(item) != {"path", "bytes", "sha256"}:
        raise WeightsError(f"{source}: each file must have exactly path, bytes and sha256")
    path, length, sha256 = item["path"], item["bytes"], item["sha256"]
    _check_path(path, source)
    if type(length) is not int or length < 0:
        raise WeightsError(f"{source}: {path}: bytes must be a whole number, got {length!r:.40}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise WeightsError(f"{source}: {path}: sha256 must be 64 hexadecimal digits")
    return WeightsFile(path, length, sha256)


def _check_path(path: Any, source: str) -> None:
    """Refuse what could name a file outside of the folder, or differ between file systems."""
    parts = path.split("/") if isinstance(path, str) and len(path) <= 512 else [""]
    if not all(_PART.fullmatch(part) for part in parts) or path == MANIFEST:
        raise WeightsError(
            f"{source}: path {path!r:.80} is refused; allowed: relative paths of letters, digits "
            f"and ._+=@-, no part beginning with a dot"
        )
