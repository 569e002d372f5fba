"""A Lambda function's code: as a zip of libraries and sources, or as an image's build context."""

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from aws_cdk import AssetHashType
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_lambda as lambda_

from constructs_lib.code_asset import sha256_of, source_files

# Unzipped, layers included (Lambda's developer guide, "Lambda quotas").
MAX_UNZIPPED_BYTES = 250 * 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)


def zip_code(
    libraries: Path, *, root: Path, include: Sequence[str], bootstrap: str
) -> lambda_.AssetCode:
    """Return libraries and sources as one zip, refused where Lambda would refuse it.

    Args:
        libraries: A zip of unpacked wheels, as `isomorph wheelhouses` makes it.
        root: What the paths inside of the zip are relative to.
        include: Files and folders below root.
        bootstrap: The file below root that becomes the executable `bootstrap` of the zip.

    Raises:
        ValueError: Unzipped it would be larger than Lambda takes.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "function.zip"
        shutil.copyfile(libraries, path)
        _append(path, root, include, bootstrap)
        size = unzipped_bytes(path)
        if size > MAX_UNZIPPED_BYTES:
            raise ValueError(
                f"the function's code unzips to {size / 2**20:,.0f} MiB; Lambda takes "
                f"{MAX_UNZIPPED_BYTES / 2**20:,.0f} as a zip: set package to image (10 GB)"
            )
        kept = Path(_scratch().name) / f"{sha256_of(path)}.zip"
        path.replace(kept)
    return lambda_.Code.from_asset(
        str(kept), asset_hash=kept.stem, asset_hash_type=AssetHashType.CUSTOM
    )


@cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    # It goes with the process: code is staged only when a function binds it.
    return tempfile.TemporaryDirectory(prefix="isomorph-functions-")


def unzipped_bytes(path: Path) -> int:
    """Return the bytes of a zip's files as they will lie on Lambda's disk."""
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _append(path: Path, root: Path, include: Sequence[str], bootstrap: str) -> None:
    files = sorted(source_files(root, include), key=lambda each: each.relative_to(root).as_posix())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for file in files:
            _write(archive, file.relative_to(root).as_posix(), file, 0o100644)
        _write(archive, "bootstrap", root / bootstrap, 0o100755)


def _write(archive: zipfile.ZipFile, name: str, file: Path, mode: int) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system, entry.external_attr = 3, mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, file.read_bytes())


def image_code(
    *,
    root: Path,
    include: Sequence[str],
    dockerfile: str,
    platform: ecr_assets.Platform,
    streaming: bool,
    handler: str,
) -> lambda_.DockerImageCode:
    """Return the same sources as an image's build context. Nothing is built at synthesis.

    Args:
        root: What the paths inside of the context are relative to.
        include: Files and folders below root.
        dockerfile: The Dockerfile below root.
        platform: What the image is built for.
        streaming: Whether the image's entry point is our own runtime instead of AWS's client.
        handler: The handler of AWS's client.
    """
    context = Path(tempfile.mkdtemp(dir=_scratch().name))
    for file in source_files(root, [*include, dockerfile]):
        target = context / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    return lambda_.DockerImageCode.from_image_asset(
        str(context),
        file=dockerfile,
        platform=platform,
        entrypoint=["/var/task/bootstrap"] if streaming else None,
        cmd=None if streaming else [handler],
    )
