"""What a training cluster has besides nodes: file system, orchestrator, alarms, as settings."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from config import Amount, Count, Section

if TYPE_CHECKING:
    from constructs_lib import AccountingDatabase, Lustre, Policy, Team, TrainingLimits

ROLE_PATTERN = r"^arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+$"
TEAM_PATTERN = r"^[a-z0-9](-*[a-z0-9]){0,39}$"
# What AWS labels nodes with, from the widest part of its network to the narrowest:
# docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-hyperpod-topology.html
Topology = Literal[
    "topology.k8s.aws/network-node-layer-1",
    "topology.k8s.aws/network-node-layer-2",
    "topology.k8s.aws/network-node-layer-3",
    "topology.k8s.aws/ultraserver-id",
]


class LustreSettings(Section):
    """`innovations.moe.training.lustre`: the file system that all nodes share."""

    capacity_gib: Count = Field(default=1200, description="its size: 1200, or a multiple of 2400")
    mb_s_per_tib: Literal[125, 250, 500, 1000] = Field(
        default=125, description="throughput for each TiB"
    )

    @field_validator("capacity_gib")
    @classmethod
    def _is_sold(cls, size: int) -> int:
        if size != 1200 and (size < 2400 or size % 2400):
            raise ValueError(f"got {size}; allowed: 1200, 2400 and multiples of 2400")
        return size

    def size(self) -> "Lustre":
        """Return what the construct is told."""
        from constructs_lib import Lustre

        return Lustre(capacity_gib=self.capacity_gib, mb_s_per_tib=self.mb_s_per_tib)


class AccountingSettings(Section):
    """`innovations.moe.training.accounting`: where Slurm keeps who ran what."""

    endpoint: str = Field(min_length=1, max_length=255, description="host name of a MySQL database")
    port: Count = Field(default=3306, ge=1, le=65535, description="where it listens")
    name: str | None = Field(default=None, max_length=64, description="schema; left out, its own")
    secret_arn: str = Field(
        pattern=r"^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:.+$",
        description="secret with its user name and password",
    )

    def database(self) -> "AccountingDatabase":
        """Return what the construct is told."""
        from constructs_lib import AccountingDatabase

        return AccountingDatabase(
            endpoint=self.endpoint, port=self.port, name=self.name, secret_arn=self.secret_arn
        )


class TeamSettings(Section):
    """One team of `innovations.moe.training.governance.teams`."""

    nodes: Count = Field(ge=1, le=6758, description="nodes of the workers' type that are its own")
    weight: Count = Field(
        default=0, ge=0, le=100, description="its share of idle nodes, against other teams'"
    )
    sharing: Literal["DontLend", "Lend", "LendAndBorrow"] = Field(
        default="LendAndBorrow", description="who may use idle nodes of whom"
    )
    borrow_percent: Count = Field(
        default=50, ge=1, le=500, description="of its own nodes, the most that it may borrow"
    )
    preempt: bool = Field(
        default=True, description="its urgent tasks stop its own that are less so"
    )
    members: tuple[str, ...] = Field(
        default=(), description="ARNs of the IAM roles that submit its tasks"
    )

    def team(self, instance_type: str) -> "Team":
        """Return what the construct is told."""
        from constructs_lib import Team

        return Team(
            instance_type=instance_type,
            nodes=self.nodes,
            weight=self.weight,
            sharing=self.sharing,
            borrow_percent=self.borrow_percent,
            preempt=self.preempt,
        )


class GovernanceSettings(Section):
    """`innovations.moe.training.governance`: who gets the nodes of a cluster on EKS."""

    priorities: dict[str, Count] = Field(
        default={"training": 90, "experiments": 50},
        min_length=1,
        max_length=10,
        description="weight of each priority class, 0 to 100; the highest goes first",
    )
    fair_share: bool = Field(
        default=True, description="idle nodes go by the teams' weights; else first come"
    )
    idle_sharing: bool = Field(default=False, description="teams may use nodes that no team owns")
    topology: Topology | None = Field(
        default=None,
        description="label of nodes that are near each other: Kueue prefers those of one value for "
        "a run's pods; left out, any nodes",
    )
    teams: dict[str, TeamSettings] = Field(min_length=1, description="quotas, by team")

    @field_validator("priorities")
    @classmethod
    def _weights_are_percent(cls, priorities: dict[str, int]) -> dict[str, int]:
        for name, weight in priorities.items():
            if not 0 <= weight <= 100:
                raise ValueError(f"got {weight} for {name}; a weight is 0 to 100")
        return priorities

    def policy(self) -> "Policy":
        """Return what the construct is told."""
        from constructs_lib import Policy

        return Policy(
            priorities=self.priorities,
            fair_share=self.fair_share,
            idle_sharing=self.idle_sharing,
        )


class EksSettings(Section):
    """`innovations.moe.training.eks`: the EKS cluster that nodes join."""

    version: Literal["1.31", "1.32", "1.33", "1.34"] = Field(
        default="1.34", description="of Kubernetes; HyperPod takes no newer"
    )
    admins: tuple[str, ...] = Field(
        min_length=1, description="ARNs of the IAM roles that may do everything in it"
    )
    members: tuple[str, ...] = Field(
        default=(),
        description="ARNs of the IAM roles that may start and stop runs, of every team if there "
        "are teams",
    )
    chart: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{7,40}$",
        description="revision of AWS's HyperPod chart that is installed in it; left out: none yet, "
        "and there are no nodes before it is",
    )


class AlarmSettings(Section):
    """`innovations.moe.training.alarms`: when a run raises an alarm."""

    tokens_per_second: Amount = Field(default=0, ge=0, description="below this; 0: never")
    mfu_percent: Amount = Field(
        default=0, ge=0, le=100, description="below this share of the peak FLOPs; 0: never"
    )
    expert_load: Amount = Field(
        default=3, ge=1, description="fullest expert above this multiple of the mean"
    )
    gradient_norm: Amount = Field(default=100, gt=0, description="above this, before clipping")
    checkpoint_minutes: Amount = Field(
        default=60, gt=0, description="last whole checkpoint older than this"
    )

    def limits(self) -> "TrainingLimits":
        """Return what the construct is told."""
        from constructs_lib import TrainingLimits

        return TrainingLimits(
            tokens_per_second=self.tokens_per_second,
            mfu_percent=self.mfu_percent,
            expert_load=self.expert_load,
            gradient_norm=self.gradient_norm,
            checkpoint_seconds=60 * self.checkpoint_minutes,
        )
