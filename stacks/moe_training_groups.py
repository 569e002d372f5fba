"""Instance groups of a training cluster, as an environment file says them."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from config import Count, Section, hyperpod_instance_types
from planner.catalogue import instances

HealthCheck = Literal["InstanceStress", "InstanceConnectivity"]
# What a cluster never trains on, and where that kind of work goes.
_ELSEWHERE = {
    "inf2": "serve on it with moe.serving, and train on ml.trn2.48xlarge",
    "c7i": "use ml.r7i or ml.m7i here",
}


class PlanSettings(Section):
    """A training plan that was bought: its capacity is in one zone, which its ARN does not say."""

    arn: str = Field(
        pattern=r"^arn:aws[a-z-]*:sagemaker:[a-z0-9-]+:\d{12}:training-plan/[a-zA-Z0-9-]{1,64}$",
        description="ARN of the training plan",
    )
    zone: str = Field(description="availability zone of its capacity: isomorph plans search")


class GroupSettings(Section):
    """One group of `innovations.moe.training.groups`: nodes of one type that do one thing."""

    role: Literal["controller", "login", "workers", "data"] = Field(
        description="controller and login are Slurm's; workers train; data prepares what they read"
    )
    instance_type: str = Field(description="type of its nodes, such as ml.p5e.48xlarge")
    count: Count = Field(default=1, ge=1, le=6758, description="nodes")
    min_count: Count | None = Field(
        default=None, ge=1, le=6758, description="nodes without which the group is not in service"
    )
    volume_gib: Count = Field(
        default=100, ge=1, le=16384, description="disk of a node besides its own, /opt/sagemaker"
    )
    plan: PlanSettings | None = Field(
        default=None, description="the training plan that its nodes come from"
    )
    partition: str | None = Field(
        default=None,
        pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*$",
        description="Slurm partition of workers and data; left out, the group's name",
    )
    deep_health_checks: tuple[HealthCheck, ...] = Field(
        default=(), description="tests of accelerators and links before a node takes work; hours"
    )

    @field_validator("instance_type")
    @classmethod
    def _is_of_hyperpod(cls, name: str) -> str:
        allowed = hyperpod_instance_types()
        if name in allowed:
            return name
        family = name.removeprefix("ml.").split(".")[0]
        near = sorted(each for each in allowed if each.startswith(f"ml.{family}."))
        families = ", ".join(sorted({each.split(".")[1] for each in allowed}))
        hint = _ELSEWHERE.get(family) or (
            f"allowed of it: {', '.join(near)}" if near else f"allowed families: {families}"
        )
        raise ValueError(f"got {name!r}, which HyperPod does not have; {hint}")

    @model_validator(mode="after")
    def _least_is_not_above_count(self) -> Self:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"got min_count {self.min_count}; must be at most count, {self.count}")
        return self

    @property
    def devices(self) -> int:
        """Accelerators of a node, as the catalogue has them; 1 where it computes on its CPUs."""
        known = instances().get(self.instance_type.removeprefix("ml."))
        return known.devices if known else 1
