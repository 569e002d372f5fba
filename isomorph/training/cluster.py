"""The training cluster of an environment: its nodes, and its jobs through the controller."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from isomorph.environments import Environment
from isomorph.errors import UserError
from isomorph.training import sessions

STACK = "moe-training"
_JOB = "model_code/moe/lifecycle/job.sh"
ENDED = frozenset({"done", "failed", "stopped", "lost"})


@dataclass(frozen=True)
class TrainingCluster:
    """What `isomorph start`, `status`, `logs` and `stop` talk to."""

    environment: Environment

    @cached_property
    def outputs(self) -> dict[str, str]:
        """The outputs of the deployed stack; a stack that is not there is a UserError."""
        return self.environment.outputs(STACK)

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self.outputs["ClusterName"]

    @property
    def on_slurm(self) -> bool:
        """Whether Slurm places its jobs; else Kubernetes does."""
        return self.outputs["Orchestrator"] == "slurm"

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes as HyperPod lists them."""
        sagemaker = self.environment.client("sagemaker")
        with self.environment.aws_errors():
            pages = sagemaker.get_paginator("list_cluster_nodes").paginate(ClusterName=self.name)
            return [row for page in pages for row in page["ClusterNodeSummaries"]]

    def summary(self) -> str:
        """Return how many of its nodes run."""
        states = [row["InstanceStatus"]["Status"] for row in self.nodes()]
        return f"{states.count('Running')} of {len(states)} nodes run"

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
        raise UserError(f"the controller of {self.name} does not run: {states}")

    def ask(self, *words: str) -> list[dict[str, Any]]:
        """Run job.sh on the controller, and return the JSON objects that it printed."""
        if not self.on_slurm:
            raise UserError(
                f"{self.name} is orchestrated by EKS: ask Kubernetes, such as with "
                f"`kubectl get pytorchjobs -n {self.outputs['Namespace']}`"
            )
        said = sessions.run(self.environment, self.target, [_JOB, *words])
        try:
            return [json.loads(line) for line in said.splitlines() if line.strip()]
        except ValueError:
            raise UserError(f"the controller of {self.name} said {said[:200]!r}") from None

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs with their states, the newest first."""
        return sorted(self.ask("status"), key=lambda job: -int(job["job"]))

    def job(self, number: int | None, *, running: bool = False) -> dict[str, Any]:
        """Return one job: the newest, where no number is given.

        Args:
            number: Of the job.
            running: Whether only jobs count that have not ended.

        Raises:
            UserError: there is none.
        """
        jobs = self.jobs()
        for job in jobs:
            if number is not None and int(job["job"]) == number:
                return job
            if number is None and not (running and job["state"] in ENDED):
                return job
        what = f"no job {number}" if number is not None else "no job"
        known = ", ".join(str(job["job"]) for job in jobs) or "none"
        more = " that runs" if running and number is None else ""
        raise UserError(f"there is {what}{more} on {self.name}; jobs: {known}")
