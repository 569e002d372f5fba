"""FSx for Lustre: a folder a file system, and its links to S3, in both directions."""

import contextlib
import logging
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from ministack.core.responses import get_account_id, get_region

from local_aws.clients import client
from local_aws.operations import Asked, RefusedError
from local_aws.stepper import Stepper

_PAUSE_S = 1.0
_SETTLED_S = 1.0  # a file that was written to within that time is not exported yet
_log = logging.getLogger(__name__)


@dataclass
class Link:
    """A data repository association: a folder of the file system and a prefix of a bucket."""

    record: dict[str, Any]
    account: str
    region: str
    folder: Path
    seen: dict[str, str] = field(default_factory=dict)  # key -> what both sides have

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return str(self.record["DataRepositoryPath"]).removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """What every key begins with."""
        inside = str(self.record["DataRepositoryPath"]).removeprefix("s3://").partition("/")[2]
        return f"{inside.strip('/')}/" if inside.strip("/") else ""

    def events(self, way: str) -> set[str]:
        """Return NEW, CHANGED, DELETED as `AutoImportPolicy` or `AutoExportPolicy` has them."""
        policy = self.record.get("S3", {}).get(way, {})
        return set(policy.get("Events", []))


@dataclass
class FileSystem:
    """One file system."""

    record: dict[str, Any]
    account: str
    region: str
    folder: Path


class FileSystems:
    """Every file system, and the thread that keeps them and their buckets alike.

    Args:
        endpoint: Of the embedded AWS.
        folder: Where the file systems' folders are made.
    """

    def __init__(self, endpoint: str, folder: Path) -> None:
        self._endpoint, self._folder = endpoint, folder
        self._systems: dict[str, FileSystem] = {}
        self._links: dict[str, Link] = {}
        self._steps = Stepper("file systems", self._step_all, _PAUSE_S)

    def start(self) -> None:
        """Begin to import and export."""
        self._steps.start()

    def stop(self) -> None:
        """End."""
        self._steps.stop()

    def create(self, account: str, region: str, given: dict[str, Any]) -> dict[str, Any]:
        """Make a file system and return its record."""
        if given.get("FileSystemType") != "LUSTRE":
            raise ValueError(
                f"FileSystemType {given.get('FileSystemType')!r} is not played, LUSTRE"
            )
        name = f"fs-{secrets.token_hex(9)[:17]}"
        record = {
            **given,
            "FileSystemId": name,
            "Lifecycle": "AVAILABLE",
            "DNSName": f"{name}.fsx.{region}.amazonaws.com",
            "ResourceARN": f"arn:aws:fsx:{region}:{account}:file-system/{name}",
            "CreationTime": time.time(),
            "LustreConfiguration": {
                **given.get("LustreConfiguration", {}),
                "MountName": secrets.token_hex(4),
            },
        }
        made = FileSystem(record, account, region, self._folder / name)
        made.folder.mkdir(parents=True)
        self._systems[name] = made
        return record

    def update(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """Take over changed properties of a file system."""
        record = self._systems[name].record
        lustre = {**record["LustreConfiguration"], **given.get("LustreConfiguration", {})}
        record |= {**given, "LustreConfiguration": lustre}
        return record

    def delete(self, name: str) -> None:
        """Delete a file system with what is on it; what its links exported stays in S3."""
        found = self._systems.pop(name, None)
        if found:
            shutil.rmtree(found.folder, ignore_errors=True)

    def link(self, account: str, region: str, given: dict[str, Any]) -> dict[str, Any]:
        """Link a folder of a file system to a bucket."""
        system = self._systems.get(given["FileSystemId"])
        if system is None:
            raise ValueError(f"there is no file system {given['FileSystemId']!r}")
        name = f"dra-{secrets.token_hex(9)[:17]}"
        record = {
            **given,
            "AssociationId": name,
            "Lifecycle": "AVAILABLE",
            "CreationTime": time.time(),
            "ResourceARN": f"arn:aws:fsx:{region}:{account}:association/"
            f"{given['FileSystemId']}/{name}",
        }
        folder = system.folder / str(given["FileSystemPath"]).strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        self._links[name] = Link(record, account, region, folder)
        return record

    def unlink(self, name: str) -> None:
        """End a link."""
        self._links.pop(name, None)

    def folders(self, account: str, region: str) -> dict[str, Path]:
        """Return the folder of each file system, by its DNS name."""
        return {
            str(each.record["DNSName"]): each.folder
            for each in self._systems.values()
            if (each.account, each.region) == (account, region)
        }

    def operations(self) -> dict[str, Any]:
        """Return what FSx's API answers here."""
        return {
            "DescribeFileSystems": self._describe_systems,
            "DescribeDataRepositoryAssociations": self._describe_links,
        }

    def _describe_systems(self, asked: Asked) -> dict[str, Any]:
        found = {name: each for name, each in self._systems.items() if _mine(each)}
        for name in asked.get("FileSystemIds", []):
            if name not in found:
                raise RefusedError("FileSystemNotFound", f"File system '{name}' does not exist.")
        wanted = asked.get("FileSystemIds") or list(found)
        return {"FileSystems": [found[name].record for name in wanted]}

    def _describe_links(self, asked: Asked) -> dict[str, Any]:
        found = {name: each for name, each in self._links.items() if _mine(each)}
        for name in asked.get("AssociationIds", []):
            if name not in found:
                raise RefusedError(
                    "DataRepositoryAssociationNotFound", f"Association '{name}' does not exist."
                )
        wanted = asked.get("AssociationIds") or list(found)
        return {"Associations": [found[name].record for name in wanted]}

    def _step_all(self) -> None:
        for link in list(self._links.values()):
            try:
                self._step(link)
            except (BotoCoreError, ClientError, OSError):  # say so, and try again
                _log.exception("data repository association %s", link.record["AssociationId"])

    def _step(self, link: Link) -> None:
        """Bring what is new in the bucket to the folder, and the other way round."""
        s3 = client("s3", self._endpoint, link.account, link.region)
        there = dict(_objects(s3, link.bucket, link.prefix))
        imports, exports = link.events("AutoImportPolicy"), link.events("AutoExportPolicy")
        for key, etag in there.items():
            path = link.folder / key
            known = link.seen.get(key, "").partition("#")[0]
            if known != etag and ("CHANGED" if known else "NEW") in imports:
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".{path.name}.importing")
                s3.download_file(link.bucket, link.prefix + key, str(part))
                part.replace(path)
                link.seen[key] = f"{etag}#{_stamp(path)}"
        for key in [key for key in link.seen if key not in there and "DELETED" in imports]:
            (link.folder / key).unlink(missing_ok=True)
            del link.seen[key]
        if exports:
            self._export(s3, link, exports)

    def _export(self, s3: Any, link: Link, events: set[str]) -> None:
        here = {path.relative_to(link.folder).as_posix(): path for path in _files(link.folder)}
        for key, path in here.items():
            with contextlib.suppress(FileNotFoundError):  # it was renamed in this moment
                stamp = _stamp(path)
                known = link.seen.get(key, "").partition("#")[2]
                fresh = time.time() - path.stat().st_mtime < _SETTLED_S
                if known == stamp or fresh or ("CHANGED" if known else "NEW") not in events:
                    continue
                s3.upload_file(str(path), link.bucket, link.prefix + key)
                head = s3.head_object(Bucket=link.bucket, Key=link.prefix + key)
                link.seen[key] = f"{head['ETag']}#{stamp}"
        for key in [key for key in link.seen if key not in here and "DELETED" in events]:
            s3.delete_object(Bucket=link.bucket, Key=link.prefix + key)
            del link.seen[key]


def _mine(each: FileSystem | Link) -> bool:
    return (each.account, each.region) == (str(get_account_id()), str(get_region()))


def _objects(s3: Any, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for row in page.get("Contents", []):
            key = str(row["Key"])[len(prefix) :]
            if key and not key.endswith("/") and ".." not in Path(key).parts:
                yield key, str(row["ETag"])


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and not path.name.endswith(".importing")
    ]


def _stamp(path: Path) -> str:
    about = path.stat()
    return f"{about.st_size}-{about.st_mtime_ns}"
