"""Shards under a prefix of S3, fetched when their turn comes and dropped after it."""

import os
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlsplit

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from model_code.common.aws import client
from model_code.moe.train.data import TOKENIZER, Shard
from model_code.moe.train.recipe import TrainingError
from model_code.moe.train.token_file import HEADER_BYTES, SUFFIX, read_header

_KEPT = 3  # files in the cache: the open ones and the one that a rank behind us may still want
_FAILURES = (BotoCoreError, Boto3Error, ClientError, OSError)


def open_prefix(uri: str, cache: Path | None) -> tuple[list[Shard], bytes | None]:
    """Return the shards under s3://bucket/prefix/ and its tokenizer.json."""
    parts = urlsplit(uri)
    if not parts.netloc or not parts.path.endswith("/"):
        raise TrainingError(f"--data is {uri!r}; allowed are a folder or s3://bucket/prefix/")
    bucket = _Bucket(parts.netloc, cache)
    try:
        sizes = bucket.sizes(parts.path[1:])
        shards = [bucket.shard(key, size) for key, size in sizes.items() if key.endswith(SUFFIX)]
        tokenizer = parts.path[1:] + TOKENIZER
        return shards, bucket.read(tokenizer) if tokenizer in sizes else None
    except _FAILURES as error:
        raise TrainingError(f"{uri}: {' '.join(str(error).split())}") from error


class _Bucket:
    def __init__(self, name: str, cache: Path | None) -> None:
        self._name, self._s3 = name, client("s3")
        self._cache = cache or Path(mkdtemp(prefix="shards-"))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the objects right under a prefix, in the order of their names."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._name, Prefix=prefix, Delimiter="/"
        )
        return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", [])}

    def read(self, key: str, **more: Any) -> bytes:
        found: bytes = self._s3.get_object(Bucket=self._name, Key=key, **more)["Body"].read()
        return found

    def shard(self, key: str, size: int) -> Shard:
        beginning = self.read(key, Range=f"bytes=0-{HEADER_BYTES - 1}") if size else b""
        header, start = read_header(beginning, size, f"s3://{self._name}/{key}")
        name = key.rpartition("/")[2]
        # The digest in the name: the cache of another run may hold another shard of this name.
        path = self._cache / f"{header.sha256[:16]}-{name}"
        return Shard(name, header, start, lambda: self._fetched(key, path))

    def _fetched(self, key: str, path: Path) -> Path:
        """Return the file, downloaded unless another rank of this machine has done it."""
        if path.is_file():
            return path
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            old = sorted(self._cache.glob(f"*{SUFFIX}"), key=lambda each: each.stat().st_mtime)
            for stale in old[: -(_KEPT - 1)]:  # who has it mapped keeps it mapped
                stale.unlink(missing_ok=True)
            self._s3.download_file(self._name, key, str(partial))
            partial.rename(path)
        except _FAILURES as error:
            words = " ".join(str(error).split())
            raise TrainingError(f"s3://{self._name}/{key} into {self._cache}: {words}") from error
        finally:
            partial.unlink(missing_ok=True)
        return path
