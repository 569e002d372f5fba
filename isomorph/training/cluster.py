"""The training cluster of an environment: its nodes, and who places its runs."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from isomorph.environments import Environment
from isomorph.training.jobs import Jobs

STACK = "moe-training"


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

    def jobs(self) -> Jobs:
        """Return its runs: those of Slurm, or those of Kubernetes."""
        if self.outputs["Orchestrator"] == "slurm":
            from isomorph.training.slurm_jobs import SlurmJobs

            return SlurmJobs(self.environment, self.outputs, self.nodes)
        from isomorph.training.eks_jobs import EksJobs

        return EksJobs(self.environment, self.outputs)
