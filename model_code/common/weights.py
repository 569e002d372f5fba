"""Moves a model's weights through S3: pushed with a manifest, fetched against its digest."""

import errno
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

from model_code.common.aws import client
from model_code.common.errors import WeightsError
from model_code.common.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    WeightsFile,
    build_manifest,
    check_length,
    file_sha256,
    verify,
)

_PART_BYTES = 16 << 20
_PARALLEL = 8  # ranges in flight, so at most 128 MiB in memory
_ATTEMPTS = 3
_S3_WORDS = {
    "404": "is missing",
    "NoSuchKey": "is missing",
    "NoSuchBucket": "the bucket does not exist",
    "InvalidRange": "is truncated",
    "AccessDenied": "access denied",
}
_RESERVE_BYTES = 64 << 20  # left free on the disk: logs, the runtime's own files


@dataclass(frozen=True)
class Location:
    """A prefix in S3 that holds a manifest and its files, pinned by the manifest's digest."""

    bucket: str
    prefix: str
    sha256: str

    @property
    def uri(self) -> str:
        """The prefix as s3://bucket/prefix/."""
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def pointer(self) -> str:
        """The prefix and the digest in one string, as the weights parameter in SSM holds it."""
        return f"{self.uri}#sha256={self.sha256}"

    @classmethod
    def parse(cls, uri: str, sha256: str) -> "Location":
        """Read s3://bucket/prefix/."""
        parts = urlsplit(uri)
        if parts.scheme != "s3" or not parts.netloc or not parts.path.endswith("/"):
            raise WeightsError(f"{uri!r} is no place of weights; it must be s3://bucket/prefix/")
        return cls(parts.netloc, parts.path[1:], sha256)


def push(
    folder: Path, s3: Any, bucket: str, slug: str, *,
    model: str | None = None, progress: Callable[[int], None] = lambda _: None,
) -> str:  # fmt: skip
    """Upload `folder`, skip what is there already, and return the pointer to it.

    The model is called as its folder unless `model` says otherwise. `progress` is called with each
    number of bytes that is done.
    """
    manifest = build_manifest(folder, model or folder.resolve().name)
    prefix = f"{slug}/{manifest.model}/{manifest.sha256[:16]}/"
    location = Location(bucket, prefix, manifest.sha256)
    for file in manifest.files:
        key = prefix + file.path
        with _s3_errors(f"s3://{bucket}/{key}"):
            if _is_there(s3, bucket, key, file):
                progress(file.bytes)
                continue
            extra = {"Metadata": {"sha256": file.sha256}}
            s3.upload_file(str(folder / file.path), bucket, key, ExtraArgs=extra, Callback=progress)
            if not _is_there(s3, bucket, key, file):
                raise WeightsError(f"{folder / file.path}: changed while it was uploaded")
    with _s3_errors(location.uri + MANIFEST):  # last: who finds it finds all files
        s3.put_object(Bucket=bucket, Key=prefix + MANIFEST, Body=manifest.encode())
    return location.pointer


def fetch(
    source: str, sha256: str, state: Path, *, s3: Any = None,
    only: Callable[[str], bool] | None = None,
) -> Path:  # fmt: skip
    """Return a local folder with the weights of `source`, fetched into `state` unless it is there.

    `only` says by its path whether a file is wanted: a folder of part of the weights has a name of
    its own.

    `source` is s3://bucket/prefix/, or a local folder, which is used where it is. `sha256` is the
    digest of the manifest; it may be empty for a local folder without one.
    """
    if not source.startswith("s3://"):
        return _local(Path(source), sha256)
    location = Location.parse(source, sha256)
    folder = state / "weights" / (sha256[:16] + ("-part" if only else ""))
    wanted = only or (lambda _: True)
    if s3 is None:
        s3 = _client()
    if folder.is_dir():  # it got its name after every digest was right
        manifest = _read_manifest(folder, sha256)
        for file in manifest.files:
            if wanted(file.path):
                check_length(folder / file.path, file)
        return folder
    manifest = _fetch_manifest(s3, location)
    partial = folder.with_name(folder.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        files = [file for file in manifest.files if wanted(file.path)]
        _fetch_files(s3, location, files, partial)
        (partial / MANIFEST).write_bytes(manifest.encode())
        partial.rename(folder)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise WeightsError(f"{partial}: cannot be written: {error.strerror}") from error
        raise _disk_full(state, manifest.total_bytes) from error
    return folder


def _client() -> Any:
    try:
        return client("s3", connections=_PARALLEL)
    except BotoCoreError as error:  # no region, for one
        raise WeightsError(f"S3: {error}") from error


def _local(folder: Path, sha256: str) -> Path:
    if not folder.is_dir():
        raise WeightsError(f"ISOMORPH_WEIGHTS is {str(folder)!r}: neither s3:// nor a folder")
    if sha256:
        verify(folder, _read_manifest(folder, sha256))
    return folder


def _read_manifest(folder: Path, sha256: str) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise WeightsError(f"{path}: is missing")
    return _pinned(path.read_bytes(), sha256, str(path))


def _fetch_manifest(s3: Any, location: Location) -> Manifest:
    uri = location.uri + MANIFEST
    with _s3_errors(uri):
        answer = s3.get_object(Bucket=location.bucket, Key=location.prefix + MANIFEST)
        data = answer["Body"].read(MAX_MANIFEST_BYTES + 1)
    return _pinned(data, location.sha256, uri)


def _pinned(data: bytes, sha256: str, source: str) -> Manifest:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsError(f"{source}: sha256 is {found}, ISOMORPH_WEIGHTS_SHA256 is {sha256}")
    return Manifest.decode(data, source)


def _fetch_files(s3: Any, location: Location, files: Sequence[WeightsFile], folder: Path) -> None:
    """Fetch what is missing; whole files that an interrupted fetch left are kept."""
    missing = [file for file in files if not _is_whole(folder / file.path, file)]
    need = sum(file.bytes for file in missing) + _RESERVE_BYTES
    if shutil.disk_usage(folder).free < need:
        raise _disk_full(folder, need)
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fetch") as threads:
        for file in missing:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            growing = path.with_name(path.name + ".part")
            try:
                _fetch_file(s3, location, file, growing, threads)
                growing.rename(path)
            finally:
                growing.unlink(missing_ok=True)


def _fetch_file(
    s3: Any, location: Location, file: WeightsFile, path: Path, threads: ThreadPoolExecutor
) -> None:
    digest, length = hashlib.sha256(), 0
    with path.open("wb") as out:
        for part in _parts(s3, location, file, threads):
            digest.update(part)
            out.write(part)
            length += len(part)
        out.flush()
        os.fsync(out.fileno())
    uri = location.uri + file.path
    if length != file.bytes:
        raise WeightsError(f"{uri}: truncated: has {length:,} bytes, not {file.bytes:,}")
    if (found := digest.hexdigest()) != file.sha256:
        raise WeightsError(f"{uri}: sha256 is {found}, the manifest says {file.sha256}")


def _parts(
    s3: Any, location: Location, file: WeightsFile, threads: ThreadPoolExecutor
) -> Iterator[bytes]:
    """Yield a file's parts in order, while the next ones are on their way."""
    on_their_way: deque[Future[bytes]] = deque()
    try:
        for start in range(0, file.bytes, _PART_BYTES):
            end = min(start + _PART_BYTES, file.bytes)
            on_their_way.append(threads.submit(_part, s3, location, file, start, end))
            if len(on_their_way) == _PARALLEL:
                yield on_their_way.popleft().result()
        while on_their_way:
            yield on_their_way.popleft().result()
    finally:
        for part in on_their_way:
            part.cancel()


def _part(s3: Any, location: Location, file: WeightsFile, start: int, end: int) -> bytes:
    """Fetch bytes start to end - 1. A connection that breaks midway is tried again."""
    with _s3_errors(location.uri + file.path):
        for attempt in range(_ATTEMPTS):
            try:
                answer = s3.get_object(
                    Bucket=location.bucket,
                    Key=location.prefix + file.path,
                    Range=f"bytes={start}-{end - 1}",
                )
                return answer["Body"].read()
            except (HTTPClientError, IncompleteReadError):
                if attempt == _ATTEMPTS - 1:
                    raise
    raise AssertionError("unreachable")


def _is_whole(path: Path, file: WeightsFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and file_sha256(path) == file.sha256


def _is_there(s3: Any, bucket: str, key: str, file: WeightsFile) -> bool:
    try:
        head = s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return False
        raise
    return bool(
        head["ContentLength"] == file.bytes and head["Metadata"].get("sha256") == file.sha256
    )


def _disk_full(folder: Path, need: int) -> WeightsError:
    free = shutil.disk_usage(folder).free
    return WeightsError(
        f"{folder}: the disk is too full for the weights: needs {need:,} bytes, has {free:,} free"
    )


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Turn botocore's exceptions into one line that begins with the object's address."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"].get("Code", "")
        raise WeightsError(f"{uri}: {_S3_WORDS.get(code, str(error))}") from error
    except (BotoCoreError, Boto3Error) as error:
        raise WeightsError(f"{uri}: {' '.join(str(error).split())}") from error
