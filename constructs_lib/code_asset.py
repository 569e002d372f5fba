"""A zip of source files that is the same whenever the files are."""

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from aws_cdk import AssetHashType
from aws_cdk import aws_s3_assets as assets
from constructs import Construct

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
_EXECUTABLE, _PLAIN = 0o100755, 0o100644


def sha256_of(path: Path) -> str:
    """Return the digest of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ZipAsset(Construct):
    """A zip that is published as it is, with its digest.

    Args:
        path: The zip.
    """

    def __init__(self, scope: Construct, construct_id: str, *, path: Path) -> None:
        super().__init__(scope, construct_id)
        self.sha256 = sha256_of(path)
        asset = assets.Asset(
            self,
            "Asset",
            path=str(path),
            asset_hash=self.sha256,
            asset_hash_type=AssetHashType.CUSTOM,
        )
        self.bucket_name, self.object_key = asset.s3_bucket_name, asset.s3_object_key
        self.url = f"s3://{asset.s3_bucket_name}/{asset.s3_object_key}"
        self.object_arn = asset.bucket.arn_for_objects(asset.s3_object_key)


class CodeAsset(ZipAsset):
    """Source files as a deterministic zip: altering any of them alters its digest.

    Args:
        root: What the paths inside of the zip are relative to.
        include: Files and folders below root. Tests and caches in them are left out.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, root: Path, include: Sequence[str]
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "code.zip"
            write_zip(path, root, list(source_files(root, include)))
            super().__init__(scope, construct_id, path=path)


def source_files(root: Path, include: Sequence[str]) -> Iterator[Path]:
    """Yield the files that go into a code asset."""
    for name in include:
        start = root / name
        if not start.exists():
            raise ValueError(
                f"no {name!r} in {root.name}/; a code asset names files that are there"
            )
        for path in [start] if start.is_file() else start.rglob("*"):
            parts = path.relative_to(root).parts
            if path.is_file() and not {"__pycache__", "tests"} & set(parts):
                yield path


def write_zip(path: Path, root: Path, files: Sequence[Path]) -> None:
    """Write `files` in order of their names, with fixed times and modes."""
    modes = {file: _EXECUTABLE if file.suffix == ".sh" else _PLAIN for file in files}
    named = sorted((file.relative_to(root).as_posix(), file) for file in files)
    path.write_bytes(_zipped(tuple((name, modes[file], file.read_bytes()) for name, file in named)))


@lru_cache(maxsize=8)  # each environment has the same few, and to compress them takes longest
def _zipped(files: tuple[tuple[str, int, bytes], ...]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, mode, content in files:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, whichever system writes it
            entry.external_attr = mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content, compresslevel=6)
    return made.getvalue()
