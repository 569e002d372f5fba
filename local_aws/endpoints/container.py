"""One container of an endpoint: the deployed model data in an empty folder, and a process."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from local_aws.endpoints.image import Image
from local_aws.errors import EmulatorError
from local_aws.machines.image.service import spawn
from local_aws.machines.machine import free_port
from local_aws.processes import started
from local_aws.settings import HOST

_ROOTS = ("/opt/ml", "/tmp")  # noqa: S108 - folders of a container, which are below its own here
_PING_SECONDS = 2.0  # as SageMaker gives a container to answer


class Container:
    """What SageMaker starts on one machine.

    Args:
        folder: Stands for the container's root; made for it.
        image: What its image has.
        model: As DescribeModel returns it.
        s3: Fetches the model data.
        given: Endpoint, region and keys, as the machine's role would give them.
    """

    def __init__(
        self,
        folder: Path,
        image: Image,
        model: Mapping[str, Any],
        s3: Any,
        given: Mapping[str, str],
    ) -> None:
        self.folder, self.port = folder, free_port()
        self.restarts = -1
        self.begun = time.monotonic()
        self._image, self._model, self._s3, self._given = image, model, s3, dict(given)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _data(self) -> Path:
        return self.folder / "opt" / "ml" / "model"

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process."""
        return self._process.pid if self._process else None

    def fetch(self) -> None:
        """Put the model data where SageMaker does: /opt/ml/model, unpacked.

        Raises:
            EmulatorError: there are none, or they are no archive.
        """
        for name in ("opt/ml/model", "tmp", "root"):
            (self.folder / name).mkdir(parents=True)
        container = self._model["PrimaryContainer"]
        source = container.get("ModelDataSource", {}).get("S3DataSource", {})
        uri = source.get("S3Uri") or container.get("ModelDataUrl")
        if not uri:
            return
        bucket, key = urlsplit(uri).netloc, urlsplit(uri).path[1:]
        try:
            if source.get("S3DataType") == "S3Prefix":
                self._fetch_prefix(bucket, key)
            else:
                self._fetch_archive(bucket, key)
        except (OSError, tarfile.TarError) as error:
            raise EmulatorError(f"the model data {uri} cannot be unpacked: {error}") from error
        except Exception as error:
            raise EmulatorError(f"the model data {uri} cannot be fetched: {error}") from error

    def _fetch_archive(self, bucket: str, key: str) -> None:
        archive = self.folder / "model.tar.gz"
        with archive.open("wb") as file:
            shutil.copyfileobj(self._s3.get_object(Bucket=bucket, Key=key)["Body"], file)
        _unpack(archive, self._data)
        archive.unlink()

    def _fetch_prefix(self, bucket: str, prefix: str) -> None:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for entry in page.get("Contents", []):
                path = (self._data / entry["Key"][len(prefix) :]).resolve()
                if not path.is_relative_to(self._data.resolve()):
                    raise EmulatorError(
                        f"the object {entry['Key']} leads out of the model's folder"
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                self._s3.download_file(bucket, entry["Key"], str(path))

    def start(self) -> None:
        """Start the process; on Linux it dies with the thread that calls this."""
        command = self._image.command(self._data)
        with (self.folder / "log").open("ab") as log:
            self._process = spawn(command, self._variables(), str(self._data), log.fileno())
        self.restarts += 1
        pid = self._process.pid
        (self.folder / "pid").write_text(json.dumps([pid, started(pid)]))

    def _variables(self) -> dict[str, str]:
        own = self._model["PrimaryContainer"].get("Environment", {})
        isolated = bool(self._model.get("EnableNetworkIsolation"))
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self.folder / "root"),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{self._data / 'code'}{os.pathsep}{self._image.packages}",
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            **({} if isolated else self._given),
            **{name: self._inside(str(value)) for name, value in own.items()},
            # What this machine has in place of the instance type's devices.
            "ISOMORPH_DEVICE": "cpu",
        }

    def _inside(self, value: str) -> str:
        """Return where a path of the container's file system is here."""
        owned = any(value == root or value.startswith(f"{root}/") for root in _ROOTS)
        return f"{self.folder}{value}" if owned else value

    def ping(self) -> int | None:
        """Return the status of GET /ping, or None if nothing answers in time."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=_PING_SECONDS)
        try:
            connection.request("GET", "/ping")
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def last_words(self) -> str:
        """Return the last line that it printed for a person, else its last one."""
        try:
            lines = (self.folder / "log").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "it said nothing"
        said = [line.strip() for line in lines if line.strip()]
        told = [line for line in said if line.startswith(("isomorph:", "toolkit:"))]
        return (told or said or ["it said nothing"])[-1][:500]

    def stop(self) -> None:
        """Let it end as a container does, then kill it; nothing of it is left but its log."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def kill_leftovers(folder: Path) -> None:
    """Kill containers that an embedded AWS left which was killed itself, should any live on."""
    for file in folder.glob("containers/*/pid"):
        try:
            pid, since = json.loads(file.read_text())
        except ValueError:  # killed while it wrote this
            continue
        if since and started(pid) == since:  # it may be another process by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a model's files and folders, and nothing that leads out of its own.

    Python has a filter for that only from 3.11.4 on; where it is, it looks as well.
    """
    with tarfile.open(archive, "r:gz") as content:
        for entry in content:
            inside = (folder / entry.name).resolve().is_relative_to(folder.resolve())
            if not (inside and (entry.isfile() or entry.isdir())):
                raise tarfile.TarError(
                    f"{entry.name!r} is no file or folder, or leads out of the model's"
                )
        content.extraction_filter = getattr(tarfile, "data_filter", None)
        content.extractall(folder)  # noqa: S202 - looked at above
