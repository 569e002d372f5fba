"""Runs that Slurm places: job.sh on the controller is asked, through Session Manager."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from isomorph.environments import Environment
from isomorph.errors import UserError
from isomorph.training import sessions
from isomorph.training.jobs import ENDED, PAUSE_S, Job, Part, Submission, known

_JOB = "model_code/moe/lifecycle/job.sh"


@dataclass(frozen=True)
class SlurmJobs:
    """The runs of a cluster that Slurm orchestrates.

    Args:
        environment: Whose AWS it is.
        outputs: Of the stack moe-training.
        nodes: Lists the cluster's nodes.
    """

    environment: Environment
    outputs: Mapping[str, str]
    nodes: Callable[[], list[dict[str, Any]]]
    placer: str = "Slurm"
    columns: tuple[str, ...] = (
        "job", "name", "state", "config", "steps", "nodes", "slurm", "begun",
    )  # fmt: skip

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        return self.outputs["ClusterName"]

    @cached_property
    def target(self) -> str:
        """The controller, as Session Manager names it.

        Raises:
            UserError: no controller, or it does not run.
        """
        group = self.outputs["ControllerGroup"]
        found = [row for row in self.nodes() if row["InstanceGroupName"] == group]
        for row in found:
            if row["InstanceStatus"]["Status"] == "Running":
                identity = self.outputs["ClusterArn"].rpartition("/")[2]
                return f"sagemaker-cluster:{identity}_{group}-{row['InstanceId']}"
        states = ", ".join(row["InstanceStatus"]["Status"] for row in found) or "there is none"
        raise UserError(f"the controller of {self.cluster} does not run: {states}")

    def check(self, *, name: str | None, team: str | None, manifests: bool) -> None:
        """Refuse what is for EKS."""
        for option, is_given in (("--team", team is not None), ("--manifests", manifests)):
            if is_given:
                raise self._is_for_eks(option)

    def start(self, wanted: Submission) -> Job:
        """Submit a batch script."""
        [job] = self._ask("start", wanted.name, str(wanted.nodes), *wanted.run.words())
        return job

    def manifests(self, wanted: Submission) -> str:
        """Slurm has none."""
        raise self._is_for_eks("--manifests")

    def _is_for_eks(self, option: str) -> UserError:
        return UserError(f"{option} is for EKS; {self.cluster} is orchestrated by Slurm")

    def all(self) -> list[Job]:
        """Return all jobs that job.sh has noted, the newest first."""
        return sorted(self._ask("status"), key=lambda job: -int(job["job"]))

    def named(self, given: str, jobs: list[Job]) -> list[Job]:
        """Return the job of a number."""
        if not (given.isascii() and given.isdecimal()):
            raise UserError(f"--job is {given!r}; Slurm's are numbers; jobs: {known(jobs)}")
        return [job for job in jobs if int(job["job"]) == int(given)]

    def log(self, job: Job, *, follow: bool) -> Iterator[Part]:
        """Yield parts of the file that the job writes."""
        number, first = str(job["job"]), 0
        while True:
            [said] = self._ask("logs", number, str(first))
            part = Part(state=said["state"], next=said["next"], text=said["text"], why="")
            yield part
            nothing, first = part["next"] == first, part["next"]
            if nothing and (not follow or part["state"] in ENDED):
                return
            if nothing:
                time.sleep(PAUSE_S)

    def stop(self, job: Job) -> None:
        """Signal the batch script, then its ranks."""
        self._ask("stop", str(job["job"]))

    def _ask(self, *words: str) -> list[dict[str, Any]]:
        """Run job.sh on the controller, and return the JSON objects that it printed."""
        said = sessions.run(self.environment, self.target, [_JOB, *words])
        try:
            return [json.loads(line) for line in said.splitlines() if line.strip()]
        except ValueError:
            raise UserError(f"the controller of {self.cluster} said {said[:200]!r}") from None
