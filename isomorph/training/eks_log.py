"""The log of a run's first pod, over restarts of its container and of the pod itself.

Lines come with their times, so that a stream that breaks off goes on where it was, without a line
twice or none. https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from isomorph.training.eks_state import WORKER, at
from isomorph.training.jobs import ENDED, PAUSE_S, Job, Part
from isomorph.training.kubernetes_api import ApiError, KubernetesApi

_LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z ")
_LONGEST_LINE = 1 << 20
_CONTAINER = "pytorch"


@dataclass
class Follower:
    """Reads the log of one run.

    Args:
        api: Of the cluster.
        namespace: Of the run.
        name: Of the run.
        look: Returns the run as commands show it, now.
    """

    api: KubernetesApi
    namespace: str
    name: str
    look: Callable[[], Job]
    _count: int = 0
    # When each container's last line was: by pod and restarts, seconds and digits of nanoseconds.
    _seen: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)

    def parts(self, *, follow: bool) -> Iterator[Part]:
        """Yield parts until there is nothing more, or, if followed, until the run has ended."""
        while True:
            run = self.look()  # before the log is read: when it has ended, the log is whole
            pod = self.api.get("Pod", WORKER.format(name=self.name), self.namespace)
            state, why = str(run["state"]), str(run["why"])
            for text in self._texts(pod, follow=follow and state not in ENDED):
                yield self._part(state, text, "")
            if not follow or state in ENDED:
                break
            yield self._part(state, "", why)
            time.sleep(PAUSE_S)
        if not self._count and not why:
            why = "there is no log: its pods are gone, or have not begun"
        yield self._part(state, "", why)

    def _part(self, state: str, text: str, why: str) -> Part:
        self._count += len(text.encode())
        return Part(state=state, next=self._count, text=text, why=why)

    def _texts(self, pod: dict[str, Any] | None, *, follow: bool) -> Iterator[str]:
        """Yield what is new in the container that runs, after what the one before it left."""
        for status in at(pod, "status", "containerStatuses") or []:
            if at(status, "name") != _CONTAINER:
                continue
            uid, restarts = str(at(pod, "metadata", "uid")), int(at(status, "restartCount") or 0)
            if restarts and not {(uid, restarts), (uid, restarts - 1)} & self._seen.keys():
                yield from self._lines((uid, restarts - 1), {"previous": "true"})
            if at(status, "state", "waiting") is None:
                yield from self._lines((uid, restarts), {"follow": "true"} if follow else {})

    def _lines(self, container: tuple[str, int], query: dict[str, str]) -> Iterator[str]:
        given = {"container": _CONTAINER, "timestamps": "true", **query}
        if container in self._seen:
            given["sinceTime"] = f"{self._seen[container][0]}Z"
        rest = b""
        try:
            for piece in self.api.log(WORKER.format(name=self.name), self.namespace, given):
                *whole, rest = (rest + piece).split(b"\n")
                if len(rest) > _LONGEST_LINE:
                    whole, rest = [*whole, rest], b""
                if text := "".join(self._new(container, line) for line in whole):
                    yield text
        except ApiError as error:
            # The container has not begun, or its log has gone with its node.
            if error.status not in (400, 404):
                raise
        if rest and "follow" not in query:  # else the rest of the line is still to come
            yield self._new(container, rest)

    def _new(self, container: tuple[str, int], line: bytes) -> str:
        """Return a line without its time, or nothing if it was there before."""
        found = _LINE.match(line)
        if found is None:
            return line.decode("utf-8", "replace") + "\n"
        when = (found[1].decode(), (found[2] or b"").decode().ljust(9, "0"))
        if when <= self._seen.get(container, ("", "")):
            return ""
        self._seen[container] = when
        return line[found.end() :].decode("utf-8", "replace") + "\n"
