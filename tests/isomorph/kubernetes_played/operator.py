"""The training operator, Kueue and the kubelet, as far as a PyTorchJob needs them.

What they do is what their sources do: training-operator's pkg/controller.v1/common/job.go
(a suspended job loses its pods whatever cleanPodPolicy says; a finished one keeps them),
pytorch/elastic.go (PET_ variables), and Kueue's pkg/controller/jobframework/reconciler.go (a queued
job is suspended at once; while its Workload is admitted it is unsuspended, whoever suspended it).
"""

import contextlib
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from tests.isomorph.kubernetes_played.containers import Container, environment, read_log
from tests.isomorph.kubernetes_played.server import Played
from tests.isomorph.kubernetes_played.store import FOREGROUND, Object, Refused, Store

QUEUE = "kueue.x-k8s.io/queue-name"
FULL = "couldn't assign flavors to pod set worker: insufficient unused quota for nvidia.com/gpu"


class Operator:
    """Reconciles until it is closed.

    Args:
        played: The API.
        folder: Where pods, mounts and programs are.
        variables: What pods get besides their own, such as where AWS is.
    """

    def __init__(self, played: Played, folder: Path, variables: dict[str, str]) -> None:
        self.store: Store = played.store
        self.room = True  # whether Kueue has quota
        self._folder, self._variables = folder, variables
        self.containers: dict[str, Container] = {}
        self._ports: dict[str, int] = {}
        self._end = threading.Event()
        played.log = self._log
        self.shared = folder / "fsx"
        self.shared.mkdir()
        self.problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def said(self) -> list[tuple[int | None, int, bytes]]:
        """Exit code, restarts and log of every container that there was."""
        return [
            (each.process.returncode, each.restarts, b"".join(each.lines))
            for each in self.containers.values()
        ]

    def close(self) -> None:
        self._end.set()
        self._thread.join(timeout=30)
        for container in self.containers.values():
            container.kill()
        if self.problem:
            raise self.problem

    def _run(self) -> None:
        while not self._end.wait(0.02):
            try:
                for job in self.store.all("PyTorchJob"):
                    with contextlib.suppress(Refused):  # it changed meanwhile
                        self._kueue(job)
                        self._reconcile(self.store.get("PyTorchJob", *_key(job)))
                for pod in self.store.all("Pod"):
                    self._kubelet(pod)
            except Exception as error:  # close() raises it
                self.problem = error
                return

    def _kueue(self, job: Object) -> None:
        if QUEUE not in job["metadata"].get("labels", {}) or _is(job, "Succeeded", "Failed"):
            return
        namespace, name = _key(job)
        own = f"pytorchjob-{name}-{job['metadata']['uid'][:5]}"
        there = [each for each in self.store.all("Workload", namespace)
                 if each["metadata"]["name"] == own]  # fmt: skip
        if not there:
            self._suspend(job, True)
            workload = {
                "apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload",
                "metadata": {"name": own, "namespace": namespace,
                             "ownerReferences": [_owner(job)]},
                "spec": {"queueName": job["metadata"]["labels"][QUEUE], "active": True},
            }  # fmt: skip
            self.store.create("Workload", namespace, workload)
            return
        [workload] = there
        admitted = self.room and workload["spec"]["active"]
        conditions = {"QuotaReserved": (admitted, "" if admitted else FULL)}
        if not workload["spec"]["active"]:
            text = "The workload is deactivated"
            conditions = {"QuotaReserved": (False, text), "Evicted": (True, text)}
        self._state("Workload", namespace, own, conditions)
        self._suspend(job, not admitted)

    def _suspend(self, job: Object, suspended: bool) -> None:
        policy = {"suspend": suspended}
        self.store.change("PyTorchJob", *_key(job),
                          lambda found: found["spec"]["runPolicy"].update(policy))  # fmt: skip

    def _reconcile(self, job: Object) -> None:
        namespace, name = _key(job)
        pods = [each for each in self.store.all("Pod", namespace) if _owns(job, each)]
        if "deletionTimestamp" in job["metadata"]:
            self._collect(job, pods)
        elif _is(job, "Succeeded", "Failed"):
            return
        elif job["spec"]["runPolicy"].get("suspend"):
            self._end_pods(pods)
            self._state(
                "PyTorchJob",
                namespace,
                name,
                {"Suspended": (True, "is suspended"), "Running": (False, "is suspended")},
            )
        else:
            self._run_pods(job, pods)

    def _collect(self, job: Object, pods: list[Object]) -> None:
        """The garbage collector, in the foreground: what the job owns goes first."""
        self._end_pods(pods)
        if not pods:
            for each in self.store.all("Workload", _key(job)[0]):
                if _owns(job, each):
                    self.store.remove("Workload", *_key(each))
            assert job["metadata"]["finalizers"] == [FOREGROUND]
            self.store.remove("PyTorchJob", *_key(job))

    def _run_pods(self, job: Object, pods: list[Object]) -> None:
        namespace, name = _key(job)
        worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
        wanted = [f"{name}-worker-{number}" for number in range(worker["replicas"])]
        for each in wanted:
            if each not in {pod["metadata"]["name"] for pod in self.store.all("Pod", namespace)}:
                self._create_pod(job, each)
        phases = [pod.get("status", {}).get("phase") for pod in pods]
        restarts = sum(_restarts(pod) for pod in pods)
        found = {"Created": (True, "is created")}
        if phases.count("Succeeded") == len(wanted):
            found |= {"Succeeded": (True, "successfully completed"), "Running": (False, "")}
        elif restarts > job["spec"]["runPolicy"]["backoffLimit"]:
            text = f"Job {name} has failed because it has reached the specified backoff limit"
            found |= {"Failed": (True, text), "Running": (False, text)}
            self._end_pods(pods)
        elif "Running" in phases:
            found |= {"Running": (True, "is running"), "Suspended": (False, "is resumed")}
        self._state("PyTorchJob", namespace, name, found)

    def _create_pod(self, job: Object, name: str) -> None:
        template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
        accounts = self.store.all("ServiceAccount", job["metadata"]["namespace"])
        account = template["spec"]["serviceAccountName"]
        assert account in {each["metadata"]["name"] for each in accounts}, "no service account"
        labels = {**template["metadata"]["labels"], "training.kubeflow.org/replica-type": "worker"}
        metadata = {"name": name, "namespace": job["metadata"]["namespace"], "labels": labels,
                    "ownerReferences": [_owner(job)]}  # fmt: skip
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        made = self.store.create("Pod", metadata["namespace"], pod)
        elastic, uid = job["spec"]["elasticPolicy"], job["metadata"]["uid"]
        port = self._ports.setdefault(uid, _free_port())
        variables = {
            **environment(self._folder, Path(sys.executable)), **self._variables,
            "HOSTNAME": name, "PYTHONUNBUFFERED": "0",
            # No service resolves a pod's name here; sorted as the names are.
            "ISOMORPH_POD_ADDRESS": f"127.0.0.{int(name.rpartition('-')[2]) + 1}",
            "PET_RDZV_BACKEND": elastic["rdzvBackend"], "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}",
            "PET_NNODES": f"{elastic['minReplicas']}:{elastic['maxReplicas']}",
            "PET_MAX_RESTARTS": str(elastic["maxRestarts"]),
            "PET_NPROC_PER_NODE": job["spec"]["nprocPerNode"],
        }  # fmt: skip
        [spec] = pod["spec"]["containers"]
        own = self._folder / made["metadata"]["uid"]
        own.mkdir()
        claims = {each["name"]: each for each in pod["spec"]["volumes"]}
        mounts = [each["mountPath"] for each in spec["volumeMounts"]
                  if "persistentVolumeClaim" in claims[each["name"]]]  # fmt: skip
        roots = {path: str(self.shared) for path in mounts}
        container = Container(spec, {"/tmp/": f"{own}/", **roots}, variables)  # noqa: S108
        self.containers[made["metadata"]["uid"]] = container

    def _kubelet(self, pod: Object) -> None:
        container = self.containers.get(pod["metadata"]["uid"])
        if container is None:
            return
        code, phase = container.exit_code, "Running"
        if "deletionTimestamp" in pod["metadata"]:
            if code is not None:
                self.store.remove("Pod", *_key(pod))
                return
            container.terminate(pod["spec"]["terminationGracePeriodSeconds"])
        elif code == 0:
            phase = "Succeeded"
        elif code is not None:
            container.start()
        state = {"terminated": {"exitCode": 0}} if phase == "Succeeded" else {"running": {}}
        status = {"phase": phase, "containerStatuses": [
            {"name": pod["spec"]["containers"][0]["name"], "restartCount": container.restarts,
             "state": state}]}  # fmt: skip
        with contextlib.suppress(Refused):
            self.store.change("Pod", *_key(pod), lambda found: found.update(status=status))

    def _end_pods(self, pods: list[Object]) -> None:
        for pod in pods:
            with contextlib.suppress(Refused):
                self.store.delete("Pod", *_key(pod), {})

    def _state(
        self, kind: str, namespace: str, name: str, conditions: dict[str, tuple[bool, str]]
    ) -> None:
        def change(found: Object) -> None:
            old = {each["type"]: each for each in found.get("status", {}).get("conditions", [])}
            for kind, (on, text) in conditions.items():
                old[kind] = {"type": kind, "status": str(on), "message": text, "reason": "Played"}
            found.setdefault("status", {})["conditions"] = list(old.values())

        self.store.change(kind, namespace, name, change)

    def _log(self, uid: str, asked: str, follow: bool) -> Any:
        return read_log(self.containers.get(uid), asked, follow)


def _key(found: Object) -> tuple[str, str]:
    return found["metadata"]["namespace"], found["metadata"]["name"]


def _owner(job: Object) -> Object:
    return {"apiVersion": job["apiVersion"], "kind": job["kind"], "controller": True,
            "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}  # fmt: skip


def _owns(job: Object, each: Object) -> bool:
    return any(owner["uid"] == job["metadata"]["uid"]
               for owner in each["metadata"].get("ownerReferences", []))  # fmt: skip


def _is(found: Object, *kinds: str) -> bool:
    conditions = found.get("status", {}).get("conditions", [])
    return any(each["type"] in kinds and each["status"] == "True" for each in conditions)


def _restarts(pod: Object) -> int:
    statuses = pod.get("status", {}).get("containerStatuses", [])
    return sum(each["restartCount"] for each in statuses)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
