"""Runs on EKS: PyTorchJobs, which the cluster's Kubernetes API is asked for with AWS credentials.

A run that Kueue has queued is stopped by deactivating its Workload, one that it has not by
suspending its PyTorchJob (docs/decisions/0023-jobs-on-eks.md has why). Both remove the pods, whose
ranks save a checkpoint first, and leave the PyTorchJob.
"""

import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from isomorph.environments import Environment
from isomorph.errors import UserError
from isomorph.training import manifests, places
from isomorph.training.eks_endpoint import Token, endpoint
from isomorph.training.eks_log import Follower
from isomorph.training.eks_state import at, pods_of, queued, row, workload_of
from isomorph.training.jobs import ENDED, PAUSE_S, Job, Part, Submission, known
from isomorph.training.kubernetes_api import ApiError, ConnectionLostError, KubernetesApi
from isomorph.training.places import APP, CLAIM, Place

_MARK = "isomorph/start"  # annotation: which start has made a PyTorchJob
# The operator takes names of DNS-1035; its pods' names are longer by -worker-NNN and a host's.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")
_SECONDS_TO_GO = 180.0  # for an ended run's objects: longer than its pods may take to end
_SECONDS_FOR_KUEUE = 10.0


def connect(environment: Environment, outputs: Mapping[str, str]) -> KubernetesApi:
    """Return the Kubernetes API of an environment's training cluster."""
    name, env = outputs["EksCluster"], environment.name
    where = f"config/{env}.yaml"
    hints = {
        "reach": f"its endpoint is private, so that it answers inside of the VPC alone; run this "
        f"there, or print what to apply with `isomorph start moe --env {env} --manifests`",
        "admit": f"your role needs an access entry: eks.members of innovations.moe.training in "
        f"{where}, or a team's members",
        "allow": f"your role must be one of eks.members of innovations.moe.training or of a team's "
        f"members in {where}, and an admin must have run `isomorph access moe --env {env}`",
    }
    return KubernetesApi(endpoint(environment, name), Token(environment, name), hints)


@dataclass(frozen=True)
class EksJobs:
    """The runs of a cluster that EKS orchestrates.

    Args:
        environment: Whose AWS it is.
        outputs: Of the stack moe-training.
    """

    environment: Environment
    outputs: Mapping[str, str]
    placer: str = "Kubernetes"
    columns: tuple[str, ...] = (
        "job", "name", "state", "config", "steps", "nodes", "begun", "why",
    )  # fmt: skip

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        return self.outputs["ClusterName"]

    @cached_property
    def api(self) -> KubernetesApi:
        """The cluster's Kubernetes API."""
        return connect(self.environment, self.outputs)

    def check(self, *, name: str | None, team: str | None, manifests: bool) -> None:
        """Refuse a name that no pod can have, a team that is not there, and a run that runs."""
        if name is not None:
            _check_name(name)
        place = places.place_of(self.outputs, team)
        if not manifests:
            self._check_queue(place)
            if name is not None:
                self._check_free(name)

    def manifests(self, wanted: Submission) -> str:
        """Return volume, claim and PyTorchJob in one List."""
        place, published = self._what_is_there(wanted)
        job = manifests.job(self.environment, self.outputs, place, published, wanted)
        return manifests.dump([*places.volume(place, published.lustre), job])

    def start(self, wanted: Submission) -> Job:
        """Make the PyTorchJob; what is left of an ended run of the name goes first."""
        place, published = self._what_is_there(wanted)
        self._check_free(wanted.name)
        self._remove(place, wanted.name)
        if self.api.get("PersistentVolumeClaim", CLAIM, place.namespace) is None:
            for each in places.volume(place, published.lustre):
                self.api.apply(each)
        job = manifests.job(self.environment, self.outputs, place, published, wanted)
        made = self._create(job, place)
        return row(place, made, None, [])

    def all(self) -> list[Job]:
        """Return the runs of all namespaces that the caller may read, the newest first."""
        found: list[Job] = []
        refused: list[ApiError] = []
        there = places.places(self.outputs)
        for place in there:
            try:
                found += self._in(place)
            except ApiError as error:
                if error.status != 403:
                    raise
                refused.append(error)
        if len(refused) == len(there):
            raise refused[0]
        return sorted(found, key=lambda job: str(job["begun"]), reverse=True)

    def named(self, given: str, jobs: list[Job]) -> list[Job]:
        """Return the runs of a name, or the one of TEAM/NAME."""
        if not _NAME.fullmatch(given.rpartition("/")[2]):
            raise UserError(
                f"--job is {given!r}; on EKS a run has a name, or TEAM/NAME; jobs: {known(jobs)}"
            )
        return [job for job in jobs if given in (job["job"], job["name"])]

    def log(self, job: Job, *, follow: bool) -> Iterator[Part]:
        """Yield the log of the run's first pod, where rank 0 is."""
        place = self._place(job)
        look = Follower(self.api, place.namespace, job["name"], lambda: self._now(place, job))
        return look.parts(follow=follow)

    def stop(self, job: Job) -> None:
        """Deactivate or suspend a run: its pods are told to end, and have 120 s."""
        if job["state"] in ENDED:
            raise UserError(f"job {job['job']} does not run: it is {job['state']}")
        place = self._place(job)
        there = self.api.get("PyTorchJob", job["name"], place.namespace)
        if there is None:
            raise UserError(f"job {job['job']} is gone: somebody has deleted its PyTorchJob")
        if queued(there):
            workload = self._workload(there, place, str(job["job"]))
            self.api.merge("Workload", workload, place.namespace, {"spec": {"active": False}})
        else:
            change = {"spec": {"runPolicy": {"suspend": True}}}
            self.api.merge("PyTorchJob", job["name"], place.namespace, change)

    def _what_is_there(self, wanted: Submission) -> tuple[Place, places.Published]:
        _check_name(wanted.name)
        place = places.place_of(self.outputs, wanted.team)
        return place, places.published(self.environment, self.outputs)

    def _check_queue(self, place: Place) -> None:
        if place.queue and self.api.get("LocalQueue", place.queue, place.namespace) is None:
            raise UserError(
                f"{place.namespace} has no queue {place.queue} of Kueue: the task governance "
                f"add-on makes it of the team's quota; look at both in the console of HyperPod"
            )

    def _check_free(self, name: str) -> None:
        """Refuse a name whose run has not ended: both would write the same checkpoints."""
        for job in self.all():
            if job["name"] == name and job["state"] not in ENDED:
                raise UserError(
                    f"job {job['job']} runs already: isomorph logs moe --job {job['job']}, or "
                    f"isomorph stop moe --job {job['job']}"
                )

    def _remove(self, place: Place, name: str) -> None:
        """Remove an ended run's PyTorchJob, with its pods and Workload; wait until it is gone."""
        there = self.api.get("PyTorchJob", name, place.namespace)
        if there is None:
            return
        if at(there, "metadata", "labels", "app") != APP:
            raise UserError(
                f"{place.namespace} has a PyTorchJob {name} that isomorph did not make; give the "
                f"run another --name"
            )
        uid = at(there, "metadata", "uid")
        self.api.delete("PyTorchJob", name, place.namespace, uid)
        until = time.monotonic() + _SECONDS_TO_GO
        while at(self.api.get("PyTorchJob", name, place.namespace), "metadata", "uid") == uid:
            if time.monotonic() > until:
                raise UserError(
                    f"the ended PyTorchJob {name} is still there {_SECONDS_TO_GO:.0f} s after it "
                    f"was deleted; what holds it is in its finalizers and pods"
                )
            time.sleep(PAUSE_S)

    def _create(self, job: dict[str, Any], place: Place) -> dict[str, Any]:
        """Create a PyTorchJob once, also if the connection is lost while it is made."""
        name, mark = job["metadata"]["name"], uuid.uuid4().hex
        job["metadata"]["annotations"][_MARK] = mark
        try:
            return self.api.create(job)
        except ConnectionLostError:
            there = self.api.get("PyTorchJob", name, place.namespace)
            if at(there, "metadata", "annotations", _MARK) == mark:
                return dict(there or {})
            raise
        except ApiError as error:
            if error.status == 409:
                raise UserError(
                    f"somebody else has started {name} just now: isomorph logs moe --job {name}"
                ) from None
            raise

    def _in(self, place: Place) -> list[Job]:
        """Return the runs of one namespace."""
        label = f"app={APP}"
        jobs = self.api.items("PyTorchJob", place.namespace, label)
        workloads, pods = [], []
        if jobs:
            pods = self.api.items("Pod", place.namespace, label)
        if any(map(queued, jobs)):
            workloads = self.api.items("Workload", place.namespace)
        return [row(place, job, workload_of(job, workloads), pods_of(job, pods)) for job in jobs]

    def _now(self, place: Place, job: Job) -> Job:
        """Return a run as it is now; one that is gone has been deleted, and so stopped."""
        for each in self._in(place):
            if each["name"] == job["name"]:
                return each
        return {**job, "state": "stopped", "why": "somebody has deleted its PyTorchJob"}

    def _place(self, job: Job) -> Place:
        [place] = [
            each for each in places.places(self.outputs) if each.job(job["name"]) == job["job"]
        ]
        return place

    def _workload(self, job: Mapping[str, Any], place: Place, name: str) -> str:
        """Return the name of a job's Workload; Kueue makes it moments after the job."""
        until = time.monotonic() + _SECONDS_FOR_KUEUE
        while True:
            found = workload_of(job, self.api.items("Workload", place.namespace))
            if found is not None:
                return str(at(found, "metadata", "name"))
            if time.monotonic() > until:
                raise UserError(
                    f"Kueue has made no Workload of job {name}, by which it could be stopped; is "
                    f"Kueue's controller well?"
                )
            time.sleep(PAUSE_S)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name is {name!r}; on EKS allowed: up to 50 small letters, digits and hyphens, a "
            f"letter first and no hyphen last"
        )
