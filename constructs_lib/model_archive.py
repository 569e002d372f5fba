"""A model.tar.gz for SageMaker that is the same whenever its files are."""

import gzip
import io
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from constructs import Construct

from constructs_lib.code_asset import ZipAsset


class ModelArchive(ZipAsset):
    """The archive that SageMaker unpacks to /opt/ml/model.

    Args:
        files: Path inside of the archive -> file.
    """

    def __init__(self, scope: Construct, construct_id: str, *, files: Mapping[str, Path]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tar.gz"
            write_archive(path, files)
            super().__init__(scope, construct_id, path=path)


def write_archive(path: Path, files: Mapping[str, Path]) -> None:
    """Write `files` in order of their names, with fixed times, modes and owners."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(files):
            content = files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(content), 0, 0o644
            archive.addfile(entry, io.BytesIO(content))
