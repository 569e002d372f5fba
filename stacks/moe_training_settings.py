"""`innovations.moe.training` of an environment file: a HyperPod cluster and what it trains."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from config import Amount, Count, EnvironmentConfig, Section
from stacks import moe_training_checks as checks
from stacks.moe_training_groups import GroupSettings
from stacks.moe_training_parts import (
    AccountingSettings,
    AlarmSettings,
    EksSettings,
    GovernanceSettings,
    LustreSettings,
)

MOST_GROUPS = 100
_GROUP = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


class MoeTrainingSettings(Section):
    """`innovations.moe.training`."""

    orchestrator: Literal["slurm", "eks"] = Field(
        default="slurm", description="what places jobs on nodes"
    )
    python: Literal["host", "3.11", "3.12"] = Field(
        default="3.11", description="the nodes' Python; host: this machine's"
    )
    architecture: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="config in config/models of what is trained; left out, as model",
    )
    expert_parallel: Count | None = Field(
        default=None, ge=1, description="ranks that share a layer's experts; left out, all"
    )
    zone: str | None = Field(
        default=None, description="zone of all nodes; left out, the environment's first"
    )
    groups: dict[str, GroupSettings] = Field(description="groups of nodes, by name")
    lustre: LustreSettings = Field(
        default=LustreSettings(), description="the file system that all nodes share"
    )
    accounting: AccountingSettings | None = Field(
        default=None, description="database of Slurm's accounting; left out, on the controller"
    )
    eks: EksSettings | None = Field(
        default=None, description="the EKS cluster that nodes join; for orchestrator eks"
    )
    governance: GovernanceSettings | None = Field(
        default=None, description="teams, quotas and priorities; for orchestrator eks"
    )
    node_recovery: bool = Field(
        default=True, description="reboot or replace a node that fails a health check"
    )
    continuous: bool = Field(
        default=False, description="bring nodes in one by one and keep trying; else all or nothing"
    )
    checkpoint_memory_percent: Count | None = Field(
        default=None,
        ge=20,
        le=100,
        description="of the nodes' memory, for checkpoints that go to S3 later; for eks",
    )
    mlflow: str | None = Field(
        default=None,
        pattern=r"^(https?://|arn:aws[a-z-]*:sagemaker:)[\w.:/@%+=,-]+$",
        description="where runs are tracked: URL or ARN of an MLflow server",
    )
    budget_usd: Amount | None = Field(
        default=None, gt=0, description="a month, for HyperPod, EKS and FSx; left out: no budget"
    )
    alarms: AlarmSettings = Field(default=AlarmSettings(), description="when a run raises an alarm")

    @field_validator("groups")
    @classmethod
    def _groups_make_a_cluster(cls, groups: dict[str, GroupSettings]) -> dict[str, GroupSettings]:
        if not 1 <= len(groups) <= MOST_GROUPS:
            raise ValueError(f"got {len(groups)} groups; a cluster has 1 to {MOST_GROUPS}")
        for name in groups:
            if not _GROUP.fullmatch(name):
                raise ValueError(
                    f"got {name!r} as a group's name; allowed: up to 63 letters, digits and hyphens"
                )
        if not any(group.role == "workers" for group in groups.values()):
            raise ValueError(
                f"none of {', '.join(groups)} has the role workers; one of them must train"
            )
        return groups

    @property
    def workers(self) -> dict[str, GroupSettings]:
        """The groups that train. A run takes one of them; the first, if none is named."""
        return {name: each for name, each in self.groups.items() if each.role == "workers"}

    def named(self, role: str) -> str:
        """Return the name of the first group with a role, or nothing."""
        return next((name for name, each in self.groups.items() if each.role == role), "")

    def zone_in(self, zones: tuple[str, ...]) -> str:
        """Return the zone of groups that name none."""
        return self.zone or zones[0]

    def zone_of(self, group: GroupSettings, zones: tuple[str, ...]) -> str:
        """Return the zone of a group's nodes."""
        return group.zone or self.zone_in(zones)

    def cluster_name(self, environment: str) -> str:
        """Return the cluster's name: another one where CloudFormation must replace the cluster."""
        create_only = json.dumps([self.orchestrator, self.zone])
        return f"{environment}-moe-{hashlib.sha256(create_only.encode()).hexdigest()[:6]}"

    def conflicts(self, environment: EnvironmentConfig, model: str) -> Iterator[tuple[str, str]]:
        """Yield what is right for one environment or model and wrong for this one."""
        yield from checks.conflicts(self, environment, model)

    def remarks(self, region: str, model: str) -> Iterator[str]:
        """Yield what is allowed and yet likely to be a mistake."""
        yield from checks.remarks(self, model)


def engine_of(chosen: MoeTrainingSettings) -> str | None:
    """Return which wheels the nodes install: torch's CPU build among them, or all but torch.

    Accelerators need a torch that fits their drivers: that is the image's business. Pods bring
    all in their container.
    """
    if chosen.orchestrator == "eks":
        return None
    machines = [each.machine for each in chosen.workers.values()]
    return "native" if all(each is None or each.runtime == "cpu" for each in machines) else "image"
