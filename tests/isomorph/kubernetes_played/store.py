"""Objects of the played cluster, with the rules that the real API server keeps."""

import copy
import datetime
import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

from tests.isomorph.kubernetes_played.schemas import check_object

Object = dict[str, Any]
GROUPS = {
    "api/v1": {"namespaces": "Namespace", "persistentvolumes": "PersistentVolume",
               "persistentvolumeclaims": "PersistentVolumeClaim", "pods": "Pod",
               "serviceaccounts": "ServiceAccount"},
    "apis/rbac.authorization.k8s.io/v1": {"roles": "Role", "rolebindings": "RoleBinding"},
    "apis/kubeflow.org/v1": {"pytorchjobs": "PyTorchJob"},
    "apis/kueue.x-k8s.io/v1beta1": {"workloads": "Workload", "localqueues": "LocalQueue"},
}  # fmt: skip
OF_THE_CLUSTER = {"Namespace", "PersistentVolume"}
FOREGROUND = "foregroundDeletion"


class Refused(Exception):  # noqa: N818 - as the API says it
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class Store:
    """All objects. Whoever reads gets copies."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._version = 0

    def get(self, kind: str, namespace: str, name: str) -> Object:
        with self.lock:
            return copy.deepcopy(self._found(kind, namespace, name))

    def all(self, kind: str, namespace: str | None = None) -> list[Object]:
        with self.lock:
            return [copy.deepcopy(each) for (its, where, _), each in sorted(self._objects.items())
                    if its == kind and namespace in (None, where)]  # fmt: skip

    def create(self, kind: str, namespace: str, given: Object) -> Object:
        with self.lock:
            name = given["metadata"]["name"]
            if (kind, namespace, name) in self._objects:
                raise Refused(409, "AlreadyExists", f'{kind} "{name}" already exists')
            if namespace and ("Namespace", "", namespace) not in self._objects:
                raise Refused(404, "NotFound", f'namespaces "{namespace}" not found')
            if given["metadata"].get("namespace", "") != namespace:
                raise Refused(400, "BadRequest", "the namespace of the object does not match")
            if not re.fullmatch(r"[a-z0-9]([-.:a-z0-9]{0,251}[a-z0-9])?", name):
                raise Refused(422, "Invalid", f'{kind} "{name}" is invalid: metadata.name')
            made = copy.deepcopy(given)
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            made["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now}
            return self._put(kind, namespace, made)

    def change(self, kind: str, namespace: str, name: str, how: Callable[[Object], None]) -> Object:
        """Change an object in place; its specification, if it is a volume's, cannot change."""
        with self.lock:
            before = self._found(kind, namespace, name)
            after = copy.deepcopy(before)
            how(after)
            if "Volume" in kind and after["spec"] != before["spec"]:
                raise Refused(422, "Invalid", f'{kind} "{name}" is invalid: spec is immutable')
            return after if after == before else self._put(kind, namespace, after)

    def delete(self, kind: str, namespace: str, name: str, options: Object) -> Object:
        with self.lock:
            found = self._found(kind, namespace, name)
            wanted = options.get("preconditions", {}).get("uid")
            if wanted not in (None, found["metadata"]["uid"]):
                raise Refused(409, "Conflict", "the UID in the precondition does not match")
            if options.get("propagationPolicy") == "Foreground" or kind == "Pod":
                return self.change(kind, namespace, name, _mark)
            return self._objects.pop((kind, namespace, name))

    def remove(self, kind: str, namespace: str, name: str) -> None:
        with self.lock:
            self._objects.pop((kind, namespace, name), None)

    def _found(self, kind: str, namespace: str, name: str) -> Object:
        found = self._objects.get((kind, namespace, name))
        if found is None:
            raise Refused(404, "NotFound", f'{kind} "{name}" not found')
        return found

    def _put(self, kind: str, namespace: str, value: Object) -> Object:
        try:
            check_object({key: each for key, each in value.items() if key != "status"})
        except (AssertionError, ValueError, KeyError, AttributeError) as error:
            raise Refused(422, "Invalid", f"{kind} is invalid: {error!r}") from None
        self._version += 1
        value["metadata"]["resourceVersion"] = str(self._version)
        self._objects[kind, namespace, value["metadata"]["name"]] = value
        return copy.deepcopy(value)


def _mark(found: Object) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found["metadata"].setdefault("deletionTimestamp", now)
    if found["kind"] != "Pod":
        found["metadata"]["finalizers"] = [FOREGROUND]


def merged(found: Any, change: Any) -> Any:
    """Return a JSON merge patch applied (RFC 7386)."""
    if not isinstance(change, dict):
        return change
    result = dict(found) if isinstance(found, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
