"""`innovations.moe.training` of an environment file: a HyperPod cluster and what it trains."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from config import EnvironmentConfig, Section
from stacks.moe_training_groups import GroupSettings

MOST_GROUPS = 100


class MoeTrainingSettings(Section):
    """`innovations.moe.training`."""

    orchestrator: Literal["slurm", "eks"] = Field(
        default="slurm", description="what places jobs on nodes"
    )
    zone: str | None = Field(
        default=None, description="zone of all nodes; left out, the environment's first"
    )
    groups: dict[str, GroupSettings] = Field(description="groups of nodes, by name")

    @field_validator("groups")
    @classmethod
    def _groups_are_of_a_cluster(cls, groups: dict[str, GroupSettings]) -> dict[str, GroupSettings]:
        if not 1 <= len(groups) <= MOST_GROUPS:
            raise ValueError(f"got {len(groups)} groups; a cluster has 1 to {MOST_GROUPS}")
        if not any(group.role == "workers" for group in groups.values()):
            raise ValueError("no group has the role workers; one of them must train")
        return groups

    @property
    def workers(self) -> dict[str, GroupSettings]:
        """The groups that train."""
        return {name: each for name, each in self.groups.items() if each.role == "workers"}

    def conflicts(self, environment: EnvironmentConfig, model: str) -> Iterator[tuple[str, str]]:
        """Yield what is right for one environment or model and wrong for this one."""
        zones = environment.availability_zones
        if self.zone is not None and self.zone not in zones:
            yield "zone", f"got {self.zone!r}; allowed: {', '.join(zones)}"

    def remarks(self, region: str, model: str) -> Iterator[str]:
        """Yield what is allowed and yet likely to be a mistake."""
        yield from ()
