"""Instance groups of a training cluster, as an environment file says them."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from config import Count, Section, hyperpod_instance_types
from planner.catalogue import Instance, instances

if TYPE_CHECKING:
    from constructs_lib import NodeGroup

HealthCheck = Literal["InstanceStress", "InstanceConnectivity"]
# What HyperPod never has, and where that kind of work goes.
_ELSEWHERE = {
    "inf2": "serve on it with moe.serving, and train on ml.trn2.48xlarge",
    "c7i": "ml.r7i and ml.m7i have the same cores",
}


class PlanSettings(Section):
    """A training plan that was bought: its capacity is in one zone, which its ARN does not say."""

    arn: str = Field(
        pattern=r"^arn:aws[a-z-]*:sagemaker:[a-z0-9-]+:\d{12}:training-plan/[a-zA-Z0-9-]{1,64}$",
        description="ARN of the training plan",
    )
    zone: str = Field(description="zone of its capacity; isomorph plans search says it")


class GroupSettings(Section):
    """One group of `innovations.moe.training.groups`: nodes of one type that do one thing."""

    role: Literal["controller", "login", "workers", "data"] = Field(
        description="controller and login are Slurm's; workers train; data prepares what they read"
    )
    instance_type: str = Field(description="type of its nodes, such as ml.p5e.48xlarge")
    count: Count = Field(default=1, le=6758, description="nodes")
    min_count: Count | None = Field(
        default=None, ge=1, le=6758, description="nodes without which the group is not in service"
    )
    processes_per_node: Count | None = Field(
        default=None, ge=1, le=512, description="ranks of a node; left out, its accelerators"
    )
    volume_gib: Count = Field(
        default=100, ge=1, le=16384, description="disk of a node besides the system's"
    )
    zone: str | None = Field(
        default=None, description="zone of its nodes; left out, the cluster's or the plan's"
    )
    plan: PlanSettings | None = Field(
        default=None, description="the training plan that its nodes come from"
    )
    capacity: Literal["on_demand", "spot"] | None = Field(
        default=None,
        description="how its nodes are bought; spot: cheaper, and taken away at two minutes' "
        "notice; left out, on demand or by the plan",
    )
    interface: Literal["efa", "efa-only"] | None = Field(
        default=None,
        description="of a node's EFA cards: each with an address, or for EFA alone, which saves "
        "addresses; left out, HyperPod chooses",
    )
    partition: str | None = Field(
        default=None,
        max_length=63,
        pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*$",
        description="Slurm partition of workers and data; left out, the group's name",
    )
    deep_health_checks: tuple[HealthCheck, ...] = Field(
        default=(), description="tests of accelerators and links before a node takes work; hours"
    )
    threads_per_core: Literal[1, 2] | None = Field(
        default=None, description="1 switches hyper-threads off; left out, as the type has them"
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="labels of its nodes in Kubernetes"
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
            f"allowed of its family: {', '.join(near)}" if near else f"it has families {families}"
        )
        raise ValueError(f"got {name!r}, which HyperPod does not have; {hint}")

    @field_validator("count")
    @classmethod
    def _someone_works(cls, count: int) -> int:
        if count < 1:
            raise ValueError(f"got {count}; a group has at least 1 node: leave the group out")
        return count

    @model_validator(mode="after")
    def _least_is_not_above_count(self) -> Self:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"got min_count {self.min_count}; must be at most count, {self.count}")
        return self

    @property
    def machine(self) -> Instance | None:
        """The type's row in the catalogue, if it has one."""
        return instances().get(self.instance_type.removeprefix("ml."))

    @property
    def devices(self) -> int:
        """Accelerators of a node, as the catalogue has them; 1 where it computes on its CPUs."""
        return self.machine.devices if self.machine else 1

    @property
    def ranks(self) -> int:
        """Processes of a run that a node has."""
        return self.processes_per_node or self.devices

    def node_group(self, name: str) -> "NodeGroup":
        """Return what the construct is told."""
        from constructs_lib import NodeGroup

        return NodeGroup(
            name=name,
            role=self.role,
            instance_type=self.instance_type,
            count=self.count,
            min_count=self.min_count,
            volume_gib=self.volume_gib,
            zone=self.zone,
            plan_arn=self.plan.arn if self.plan else None,
            capacity=self.capacity,
            interface=self.interface,
            partition=self.partition,
            deep_health_checks=self.deep_health_checks,
            threads_per_core=self.threads_per_core,
            labels=self.labels,
        )
