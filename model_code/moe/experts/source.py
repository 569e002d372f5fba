"""Brings an expert's bytes into memory, from a folder or from S3, and checks them. For any thread.

Bytes go straight to their place: from a file with pread, from S3 through a socket's buffer.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from model_code.common.errors import WeightsError
from model_code.common.weights import Location
from model_code.moe.experts import ExpertsUnavailableError
from model_code.moe.experts.index import PARTS, Expert, ExpertIndex, Range

Places = Sequence[memoryview]  # of an expert's gate, up and down, in that order
_PAUSE_S = 1.0  # after a failure, so that not each token waits for a timeout
_GONE = "an expert's weights cannot be loaded at the moment; try again later"


class Source(Protocol):
    """Where experts come from."""

    def read(self, layer: int, number: int, places: Places) -> None:
        """Fill the places with an expert's bytes.

        Raises:
            ExpertsUnavailableError: Another try may succeed.
            WeightsError: The bytes are not those that they should be.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class DiskSource:
    """Experts in a folder. A digest is checked when an expert is read for the first time.

    Args:
        forget: Ask the system not to keep what was read in its own cache as well. It is better
            kept where memory is to spare, and a measurement of disks wants it gone.
    """

    def __init__(self, folder: Path, index: ExpertIndex, *, forget: bool = False) -> None:
        self._folder, self._index, self._forget = folder, index, forget
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        self._checked: set[tuple[int, int]] = set()

    def read(self, layer: int, number: int, places: Places) -> None:
        """See `Source`."""
        expert = self._index.layers[layer][number]
        for name, part, place in zip(PARTS, expert.parts, places, strict=True):
            done = self._fill(part, place)
            if done < part.bytes:
                raise WeightsError(
                    f"{self._folder / part.file}: truncated: {name} of expert {number} in layer "
                    f"{layer} ends after {done:,} of {part.bytes:,} bytes"
                )
        if expert.sha256 and (layer, number) not in self._checked:
            check(expert, places, f"{self._folder / expert.parts[0].file}", layer, number)
            self._checked.add((layer, number))

    def close(self) -> None:
        """See `Source`."""
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def _fill(self, part: Range, place: memoryview) -> int:
        done = 0
        descriptor = self._descriptor(part.file)
        while done < part.bytes:
            try:
                count = os.preadv(descriptor, [place[done:]], part.start + done)
            except OSError as error:
                raise WeightsError(
                    f"{self._folder / part.file}: cannot be read: {error.strerror}"
                ) from error
            if count == 0:
                break
            done += count
        if self._forget:
            os.posix_fadvise(descriptor, part.start, part.bytes, os.POSIX_FADV_DONTNEED)
        return done

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._files:
                try:
                    self._files[file] = os.open(self._folder / file, os.O_RDONLY)
                except OSError as error:
                    raise WeightsError(
                        f"{self._folder / file}: cannot be read: {error.strerror}"
                    ) from error
            return self._files[file]


class S3Source:
    """Experts in S3, each fetched with one ranged GET where its parts are neighbours.

    What was fetched is kept in a folder too, as sparse files of the same names, so that the second
    visit needs no network. A full disk only ends that.

    Args:
        client: Makes a client with short timeouts: a token waits for the answer.
    """

    def __init__(
        self, location: Location, index: ExpertIndex, copies: Path, client: Callable[[], Any]
    ) -> None:
        self._location, self._index, self._copies = location, index, copies
        self._client, self._s3 = client, None
        self._lock = threading.Lock()
        self._kept: set[tuple[int, int]] = set()
        self._failed_at = -_PAUSE_S
        copies.mkdir(parents=True, exist_ok=True)
        self._disk = DiskSource(copies, index)

    def read(self, layer: int, number: int, places: Places) -> None:
        """See `Source`."""
        if (layer, number) in self._kept:
            try:
                self._disk.read(layer, number, places)
                return
            except WeightsError:  # what S3 has is right
                self._kept.discard((layer, number))
        if time.monotonic() - self._failed_at < _PAUSE_S:
            raise ExpertsUnavailableError(_GONE)
        expert = self._index.layers[layer][number]
        try:
            self._fetch(expert, places)
        except (BotoCoreError, ClientError, HTTPError, OSError) as error:
            self._failed_at = time.monotonic()
            raise ExpertsUnavailableError(_GONE) from error
        file = expert.parts[0].file
        check(expert, places, self._location.uri + file, layer, number)
        self._keep(layer, number, expert, places)

    def close(self) -> None:
        """See `Source`."""
        self._disk.close()

    def _fetch(self, expert: Expert, places: Places) -> None:
        whole = expert.whole
        if whole is None:
            for part, place in zip(expert.parts, places, strict=True):
                self._get(part, [place])
            return
        pairs = sorted(zip((part.start for part in expert.parts), places, strict=True))
        self._get(whole, [place for _, place in pairs])

    def _get(self, part: Range, places: Places) -> None:
        """Fill the places, one behind the other, with a range of an object."""
        answer = self._connected().get_object(
            Bucket=self._location.bucket,
            Key=self._location.prefix + part.file,
            Range=f"bytes={part.start}-{part.start + part.bytes - 1}",
        )
        with answer["Body"] as body:
            for place in places:
                done = 0
                while done < len(place):
                    data = body.read(min(len(place) - done, 1 << 20))
                    if not data:
                        raise ConnectionError("the answer ends too early")
                    place[done : done + len(data)] = data
                    done += len(data)

    def _connected(self) -> Any:
        with self._lock:
            if self._s3 is None:
                self._s3 = self._client()
            return self._s3

    def _keep(self, layer: int, number: int, expert: Expert, places: Places) -> None:
        try:
            for part, place in zip(expert.parts, places, strict=True):
                with (self._copies / part.file).open("ab"):
                    pass
                with (self._copies / part.file).open("r+b") as file:
                    os.pwritev(file.fileno(), [place], part.start)
            self._kept.add((layer, number))
        except OSError:
            return


def check(expert: Expert, places: Places, where: str, layer: int, number: int) -> None:
    """Refuse bytes with another digest than the index has."""
    digest = hashlib.sha256()
    for place in places:
        digest.update(place)
    if expert.sha256 and digest.hexdigest() != expert.sha256:
        raise WeightsError(
            f"{where}: expert {number} of layer {layer} has sha256 {digest.hexdigest()}, "
            f"experts.json says {expert.sha256}"
        )
