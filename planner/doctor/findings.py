"""What the doctor is given, in plain values, and what it finds."""

from dataclasses import dataclass
from typing import Literal

from planner.pricing import Service


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to mend before deploying.

    Args:
        what: What is wrong, with the values.
        why: What AWS would say, or do.
        fix: What to change, and where.
        incident: The failure that others had from it.
        level: A problem stops a deployment; a note is to be known; unknown was not checked.
    """

    what: str
    why: str
    fix: str
    incident: str
    level: Literal["problem", "note", "unknown"] = "problem"


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """A subnet that machines are placed in."""

    zone: str
    free_addresses: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """Machines that a deployment asks for.

    Args:
        orchestrator: slurm or eks, of a HyperPod cluster.
        zone: Where they go; None lets the service choose among the subnets.
        plan_arn: Training plan that they are billed to; None is on demand.
        plan_zone: Where that plan's capacity is.
    """

    service: Service
    instance_type: str
    count: int
    orchestrator: Literal["slurm", "eks"] | None = None
    zone: str | None = None
    plan_arn: str | None = None
    plan_zone: str | None = None

    @property
    def instance(self) -> str:
        """The type without SageMaker's prefix."""
        return self.instance_type.removeprefix("ml.")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An environment, as far as the doctor needs it.

    Args:
        subnets: Where machines go; empty when they are not made yet.
        images: Container images, as repository:tag.
        runtimes: Lambda runtimes, such as python3.13.
        models: Bedrock model ids that it calls.
        role_arn: The role that deploys, and `actions` what it must be allowed.
    """

    name: str
    region: str
    availability_zones: tuple[str, ...]
    subnets: tuple[Subnet, ...] = ()
    groups: tuple[Group, ...] = ()
    images: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    role_arn: str | None = None
    actions: tuple[str, ...] = ()
