"""How a run on EKS fares: read from its PyTorchJob, Kueue's Workload and its pods.

The words are those of runs on Slurm. What the conditions mean: Kubeflow's training operator,
pkg/controller.v1/common/job.go, and Kueue, pkg/controller/jobframework/reconciler.go.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from isomorph.training.jobs import Job
from isomorph.training.places import Place

WORKER = "{name}-worker-0"  # as the operator calls the pod whose log begins with rank 0
_QUEUE = "kueue.x-k8s.io/queue-name"
Object = Mapping[str, Any]


def row(place: Place, job: Object, workload: Object | None, pods: list[Object]) -> Job:
    """Return a run as commands show it.

    Args:
        place: Its namespace.
        job: The PyTorchJob.
        workload: Kueue's, if it has made one.
        pods: Of this very job.
    """
    name = str(job["metadata"]["name"])
    state = _state(job, workload, pods)
    settings = {
        key.removeprefix("JOB_").lower(): value
        for key, value in _variables(job).items()
        if key.startswith("JOB_") and key != "JOB_NAME"
    }
    return {
        "job": place.job(name),
        "name": name,
        "nodes": at(job, "spec", "pytorchReplicaSpecs", "Worker", "replicas"),
        "begun": at(job, "metadata", "creationTimestamp"),
        **settings,
        "state": state,
        "why": _why(state, job, workload, pods),
    }


def at(value: object, *path: str) -> Any:
    """Return what is at a path in nested objects, or None: what Kubernetes says is not checked."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def queued(job: Object) -> bool:
    """Return whether Kueue decides when a job runs."""
    return _QUEUE in (at(job, "metadata", "labels") or {})


def workload_of(job: Object, workloads: Iterable[Object]) -> Object | None:
    """Return the Workload that Kueue has made of this very job."""
    uid = at(job, "metadata", "uid")
    for workload in workloads:
        owners = at(workload, "metadata", "ownerReferences") or []
        if any(at(owner, "uid") == uid for owner in owners):
            return workload
    return None


def pods_of(job: Object, pods: Iterable[Object]) -> list[Object]:
    """Return the pods of this very job, not of an older one of the name."""
    uid = at(job, "metadata", "uid")
    return [
        pod
        for pod in pods
        if any(at(owner, "uid") == uid for owner in at(pod, "metadata", "ownerReferences") or [])
    ]


def _state(job: Object, workload: Object | None, pods: list[Object]) -> str:
    if _is(job, "Succeeded"):
        return "done"
    if _is(job, "Failed"):
        return "failed"
    # Pods that were told to end save a checkpoint; until they are gone, the run runs.
    alive = [pod for pod in pods if at(pod, "status", "phase") in ("Running", "Pending")]
    runs = any(at(pod, "status", "phase") == "Running" for pod in alive)
    off = at(job, "metadata", "deletionTimestamp") is not None
    if queued(job):
        off = off or at(workload, "spec", "active") is False
    else:
        off = off or at(job, "spec", "runPolicy", "suspend") is True
    if off:
        return "running" if alive else "stopped"
    return "running" if runs or (pods and _is(job, "Restarting")) else "pending"


def _why(state: str, job: Object, workload: Object | None, pods: list[Object]) -> str:
    """Return what a run waits for, or why it has ended so; one line."""
    found: object = None
    if state == "failed":
        found = at(_condition(job, "Failed"), "message")
    elif state == "stopped":
        # Kueue says so when it was not a person who ended it.
        evicted = _condition(workload, "Evicted")
        if str(at(evicted, "reason")).startswith("DeactivatedDueTo"):
            found = at(evicted, "message")
    elif state == "pending" and queued(job) and not pods:
        found = _waits_in_queue(workload)
    elif state == "pending":
        found = next(filter(None, map(_waits_for, pods)), None) or "its pods are not there yet"
    return " ".join(str(found or "").split())[:300]


def _waits_in_queue(workload: Object | None) -> str:
    if workload is None:
        return "Kueue has not seen it yet"
    for kind in ("QuotaReserved", "Admitted", "Evicted"):
        condition = _condition(workload, kind)
        if condition and at(condition, "status") == ("True" if kind == "Evicted" else "False"):
            return str(at(condition, "message") or at(condition, "reason"))
    return "Kueue has admitted it; its pods are not there yet"


def _waits_for(pod: Object) -> str | None:
    """Return why a pod does not run: no node, or a container that cannot begin."""
    for condition in at(pod, "status", "conditions") or []:
        if at(condition, "type") == "PodScheduled" and at(condition, "status") == "False":
            return str(at(condition, "message") or at(condition, "reason"))
    for container in at(pod, "status", "containerStatuses") or []:
        waiting = at(container, "state", "waiting")
        if waiting:
            return f"{at(waiting, 'reason')}: {at(waiting, 'message') or 'no more is known'}"
    return None


def _condition(value: Object | None, kind: str) -> Object | None:
    for condition in at(value, "status", "conditions") or []:
        if at(condition, "type") == kind:
            found: Object = condition
            return found
    return None


def _is(job: Object, kind: str) -> bool:
    return bool(at(_condition(job, kind), "status") == "True")


def _variables(job: Object) -> dict[str, str]:
    containers = at(job, "spec", "pytorchReplicaSpecs", "Worker", "template", "spec", "containers")
    listed = (containers or [{}])[0].get("env") or []
    return {str(at(each, "name")): str(at(each, "value")) for each in listed}
