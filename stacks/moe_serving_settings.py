"""`innovations.moe.serving` of an environment file: pools of fleets, and an endpoint."""

import re
import zoneinfo
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from config import Amount, Count, EnvironmentConfig, Section, ec2_instance_types
from constructs_lib.bounds import MOST_POOLS
from constructs_lib.machine_images import NEURON
from planner import Architecture, PlanError, resolve
from planner.experts import check_expert_budget, expert_memory
from planner.neuron import NEURON_FAMILIES
from stacks.fleet_settings import CapacitySettings, ServerSettings, certificate_conflicts
from stacks.moe_serving_size import endpoint_size, pool_misfit

FAMILIES = (*NEURON_FAMILIES, "c7i", "r7i")  # a CPU touches the active experts' bytes alone
_POOL = re.compile(r"[a-z0-9][a-z0-9-]{0,23}")
_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_DAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_POINTER = r"^s3://[a-z0-9.-]{3,63}/moe/[A-Za-z0-9._/-]+/#sha256=[0-9a-f]{64}$"


def _instance_type(name: str) -> str:
    allowed = sorted(each for each in ec2_instance_types() if each.split(".")[0] in FAMILIES)
    if name not in allowed:
        raise ValueError(f"got {name!r}; allowed: {', '.join(allowed)}")
    return name


def family(instance_type: str) -> str:
    """Return a type up to its size."""
    return instance_type.split(".")[0]


class CanarySettings(Section):
    """A second fleet of a pool, which takes a share of its requests."""

    percent: Count = Field(default=10, ge=1, le=50, description="of the pool's requests")
    instance_type: str | None = Field(default=None, description="left out, as the pool's")
    capacity: Count = Field(default=1, ge=1, le=100, description="its nodes")
    weights: str | None = Field(
        default=None,
        pattern=_POINTER,
        description="s3://BUCKET/moe/NAME/VERSION/#sha256=DIGEST; left out, as every pool's",
    )

    @field_validator("instance_type")
    @classmethod
    def _is_allowed(cls, name: str | None) -> str | None:
        return None if name is None else _instance_type(name)


class PoolSettings(CapacitySettings):
    """A fleet that keeps the experts of one domain or adapter warm."""

    instance_type: str = Field(
        default="inf2.xlarge", description="EC2 type of family inf2, trn2, c7i or r7i"
    )
    volume_gib: Count | None = Field(
        default=None, ge=20, le=16384, description="disk of a node; left out, the planner's"
    )
    canary: CanarySettings | None = Field(default=None, description="a share on other nodes")

    @field_validator("instance_type")
    @classmethod
    def _is_allowed(cls, name: str) -> str:
        return _instance_type(name)

    @field_validator("max_capacity")
    @classmethod
    def _maximum_is_not_below_minimum(cls, most: int, info: ValidationInfo) -> int:
        least = info.data.get("min_capacity", most)
        if most < least:
            raise ValueError(f"got {most}; must be at least min_capacity, which is {least}")
        return most

    def machines(self) -> dict[str, str]:
        """Return the instance types of the pool and its canary, by their keys."""
        canary = self.canary and self.canary.instance_type
        types = {"instance_type": self.instance_type}
        return types | ({"canary.instance_type": canary} if canary else {})


class NightSettings(Section):
    """Hours in which the endpoint is not there."""

    stop: str = Field(description="when it goes, such as 20:00")
    start: str = Field(description="when it comes back, such as 07:00")
    timezone: str = Field(default="Etc/UTC", description="of both, such as Europe/Berlin")
    days: str = Field(
        default="*", description="days on which it comes back, such as MON-FRI; *: every day"
    )

    @field_validator("stop", "start")
    @classmethod
    def _is_a_time(cls, time: str, info: ValidationInfo) -> str:
        if not _TIME.fullmatch(time):
            raise ValueError(f"got {time!r}; must be hours and minutes in quotes, such as '20:00'")
        if info.data.get("stop") == time:
            raise ValueError(f"got {time!r}, which is when it stops; the night must have a length")
        return time

    @field_validator("timezone")
    @classmethod
    def _is_a_timezone(cls, name: str) -> str:
        if name not in zoneinfo.available_timezones():
            raise ValueError(f"got {name!r}; must be a time zone such as Europe/Berlin or Etc/UTC")
        return name

    @field_validator("days")
    @classmethod
    def _are_days(cls, days: str) -> str:
        parts = [part for each in days.split(",") for part in each.split("-")]
        if days != "*" and not set(parts) <= set(_DAYS):
            raise ValueError(f"got {days!r}; must be *, or days such as MON-FRI or MON,WED,SUN")
        return days


class EndpointSettings(Section):
    """The SageMaker endpoint."""

    instance_type: str | None = Field(
        default=None, description="ml.inf2 or ml.trn2; left out, the cheapest Inf2 that carries it"
    )
    instances: Count | None = Field(
        default=None, ge=1, le=100, description="always there; left out, what the load needs"
    )
    max_instances: Count | None = Field(
        default=None, ge=1, le=100, description="at most; left out, as instances"
    )
    volume_gib: Count | None = Field(
        default=None, ge=1, le=16384, description="disk; left out, the planner's"
    )
    concurrent: Count = Field(
        default=8, ge=1, le=10000, description="sequences in flight that it is sized for"
    )
    invocations: Count = Field(
        default=120, ge=1, description="a minute and machine at which another is added"
    )
    scale_out_seconds: Count = Field(
        default=60, ge=0, le=3600, description="between two machines that are added"
    )
    scale_in_seconds: Count = Field(
        default=900, ge=0, le=3600, description="after any change, before one is taken away"
    )
    canary_percent: Count = Field(
        default=10, ge=1, le=50, description="of the machines that try an update"
    )
    canary_minutes: Count = Field(
        default=10, ge=1, le=60, description="that they are watched for before the rest follows"
    )
    night: NightSettings | None = Field(default=None, description="hours without the endpoint")
    alarm_latency_seconds: Amount = Field(
        default=20, gt=0, description="alarm above this mean latency; an update is rolled back"
    )
    alarm_errors: Count = Field(
        default=5, ge=0, description="alarm above this many 5xx a minute; as above"
    )

    @field_validator("max_instances")
    @classmethod
    def _maximum_is_not_below(cls, most: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("instances")
        if most is not None and least is not None and most < least:
            raise ValueError(f"got {most}; must be at least instances, which is {least}")
        return most


class MoeServingSettings(ServerSettings):
    """Pools behind one load balancer, an endpoint, or both, with the same weights."""

    engine: Literal["native"] = Field(
        default="native", description="what decodes: our own code on torch"
    )
    architecture: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="config in config/models that sizes it; left out, as model",
    )
    expert_mib: Count | None = Field(
        default=None, ge=1, description="memory for experts on a node; left out: all of them"
    )
    expert_source: Literal["disk", "s3"] = Field(
        default="disk", description="where experts are that are not in memory"
    )
    session_minutes: Count = Field(
        default=30, ge=1, le=10080, description="that a caller with cookies stays with a node"
    )
    pools: dict[str, PoolSettings] = Field(
        default_factory=dict, description="a fleet for each domain or adapter, by its name"
    )
    default_pool: str | None = Field(
        default=None, description="pool of requests that name none; left out, the first"
    )
    endpoint: EndpointSettings | None = Field(default=None, description="a SageMaker endpoint")
    alarm_hit_percent: Amount = Field(
        default=80, ge=0, le=100, description="alarm below this share of experts found in memory"
    )
    alarm_stall_percent: Amount = Field(
        default=20, ge=0, le=100, description="alarm above this share of time that loads take"
    )

    @field_validator("pools")
    @classmethod
    def _pools_have_names(cls, pools: dict[str, PoolSettings]) -> dict[str, PoolSettings]:
        for name in pools:
            if not _POOL.fullmatch(name):
                raise ValueError(f"got the pool {name!r}; a name must match {_POOL.pattern}")
        if len(pools) > MOST_POOLS:
            raise ValueError(f"got {len(pools)} pools; allowed: at most {MOST_POOLS}")
        return pools

    @field_validator("default_pool")
    @classmethod
    def _default_is_a_pool(cls, name: str | None, info: ValidationInfo) -> str | None:
        pools = info.data.get("pools", {})
        if name is not None and name not in pools:
            raise ValueError(f"unknown pool {name!r}; allowed: {', '.join(pools) or 'none'}")
        return name

    @field_validator("endpoint")
    @classmethod
    def _something_serves(
        cls, endpoint: EndpointSettings | None, info: ValidationInfo
    ) -> EndpointSettings | None:
        if endpoint is None and not info.data.get("pools", {"": None}):
            raise ValueError("missing, and there are no pools; add endpoint, pools, or both")
        return endpoint

    @property
    def weights_dtype(self) -> str:
        """What the planner calls the weights in memory."""
        if self.quantization != "none":
            return self.quantization
        return "fp32" if self.dtype == "float32" else "bf16"

    @property
    def first_pool(self) -> str:
        """The pool of requests that name none."""
        return self.default_pool or next(iter(self.pools))

    def wheels(self) -> set[tuple[str, str]]:
        """Return Python and engine of every wheelhouse that the nodes need."""
        types = [name for pool in self.pools.values() for name in pool.machines().values()]
        return {self.wheels_of(name) for name in types}

    def wheels_of(self, instance_type: str) -> tuple[str, str]:
        """Return Python and engine of the wheelhouse of one instance type."""
        if family(instance_type) in NEURON_FAMILIES:
            return "3.12", "neuron"  # torch is the machine image's
        return self.python, self.engine

    def conflicts(self, environment: EnvironmentConfig, model: str) -> Iterator[tuple[str, str]]:
        """Yield what is right for one environment or model and wrong for this one."""
        yield from self.python_conflicts(environment)
        if self.pools:
            yield from certificate_conflicts(self.certificate_arn, environment)
        try:
            architecture = resolve(self.architecture or model)
            expert_memory(architecture, self.weights_dtype)
        except PlanError as error:
            yield "architecture", str(error)
            return
        if self.context > architecture.context:
            yield "context", f"got {self.context}; {model} was made for {architecture.context}"
            return
        yield from self._memory_conflicts(architecture)
        yield from self._endpoint_conflicts(architecture, environment.region)

    def _memory_conflicts(self, architecture: Architecture) -> Iterator[tuple[str, str]]:
        if self.expert_mib is not None:
            try:
                check_expert_budget(architecture, self.weights_dtype, self.expert_mib)
            except PlanError as error:
                yield "expert_mib", str(error)
                return
        for name, pool in self.pools.items():
            for key, instance_type in pool.machines().items():
                if misfit := pool_misfit(self, architecture, instance_type):
                    yield f"pools.{name}.{key}", misfit
            own = NEURON.least_gib if family(pool.instance_type) in NEURON_FAMILIES else 0
            if pool.volume_gib is not None and pool.volume_gib < own:
                yield (
                    f"pools.{name}.volume_gib",
                    f"got {pool.volume_gib}; the image of {pool.instance_type} has {own} GiB",
                )
            if pool.requests_in_flight_target > self.slots:
                yield (
                    f"pools.{name}.requests_in_flight_target",
                    f"got {pool.requests_in_flight_target}; must be at most slots, "
                    f"which is {self.slots}",
                )

    def _endpoint_conflicts(
        self, architecture: Architecture, region: str
    ) -> Iterator[tuple[str, str]]:
        if self.endpoint is None:
            return
        try:
            size = endpoint_size(self, architecture, region)
        except PlanError as error:
            yield "endpoint.instance_type", str(error)
            return
        least = self.endpoint.instances or size.instances
        if (self.endpoint.max_instances or least) < least:
            yield (
                "endpoint.max_instances",
                f"got {self.endpoint.max_instances}; the load needs {least}",
            )
        if self.endpoint.volume_gib is not None and size.volume_gib is None:
            yield (
                "endpoint.volume_gib",
                f"got {self.endpoint.volume_gib}; {size.instance_type} has disks of its own",
            )

    def remarks(self, region: str, model: str) -> Iterator[str]:
        """Yield what is allowed and yet likely to be a mistake."""
        architecture = resolve(self.architecture or model)
        if self.endpoint:
            size = endpoint_size(self, architecture, region)
            given = self.endpoint.instances
            if given is not None and given < size.instances:
                yield f"endpoint.instances {given}: the load takes {size.instances}"
