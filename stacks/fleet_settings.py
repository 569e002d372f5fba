"""What the sections of fleets share: servers, capacity, and the sizes that a load asks for."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from config import (
    Amount,
    Count,
    EnvironmentConfig,
    InnovationSettings,
    Section,
    ec2_instance_types,
    regions,
)
from planner.sizing import FleetSize
from stacks.fleet_size import SIZED, FleetLoad, PlanError, planned, shortfalls
from stacks.wheelhouse import HOST, python_command

if TYPE_CHECKING:
    from constructs_lib import Limits, Server

_CERTIFICATE = re.compile(r"arn:(aws[a-z-]*):acm:([a-z0-9-]+):(\d{12}):certificate/[0-9a-f-]{36}")


class ServerSettings(Section):
    """What the servers of a fleet, or of all fleets of a stack, are told; who may reach them."""

    engine: str = Field(description="what decodes")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="what native computes in; auto: bfloat16 where the CPU has it"
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        default="none", description="what native keeps its matrices in; none: as dtype says"
    )
    python: Literal["host", "3.11"] = Field(
        default="3.11", description="the nodes' Python; host: this machine's"
    )
    boot_minutes: Count = Field(
        default=15, ge=2, le=60, description="from launch to the first healthy answer, at most"
    )
    port: Count = Field(default=8080, ge=1024, le=65535, description="where the server listens")
    slots: Count = Field(default=8, ge=1, le=256, description="requests at work in a node")
    context: Count = Field(
        default=2048, ge=64, le=1048576, description="tokens of a request with its answer"
    )
    queue: Count = Field(default=64, ge=1, le=100000, description="requests waiting in a node")
    deadline_seconds: Count = Field(
        default=60, ge=1, le=3600, description="the longest that a request may take"
    )
    certificate_arn: str | None = Field(
        default=None, description="ACM certificate of the load balancer; only embedded has none"
    )
    alarm_latency_seconds: Amount = Field(
        default=10, gt=0, description="alarm above this 99th percentile of the time to first byte"
    )
    alarm_error_percent: Amount = Field(
        default=5, ge=0, le=100, description="alarm above this share of 5xx answers"
    )

    def server(
        self,
        *,
        environment: str,
        model: str,
        python: str,
        quantization: str,
        more: Mapping[str, str],
    ) -> "Server":
        """Return what a node's server is told.

        Args:
            environment: Its name.
            model: That it serves.
            python: The node's, `host` or a version.
            quantization: As the node has it.
            more: What it is told besides, by the names of its variables.
        """
        from constructs_lib import Server

        return Server(
            environment=environment,
            model=model,
            engine=self.engine,
            dtype=self.dtype,
            quantization=quantization,
            python=python_command(python),
            port=self.port,
            slots=self.slots,
            context=self.context,
            queue=self.queue,
            deadline_s=self.deadline_seconds,
            more=more,
        )

    @property
    def limits(self) -> "Limits":
        """When a fleet raises an alarm."""
        from constructs_lib import Limits

        return Limits(
            latency_seconds=self.alarm_latency_seconds, error_percent=self.alarm_error_percent
        )

    def python_conflicts(self, environment: EnvironmentConfig) -> Iterator[tuple[str, str]]:
        """Yield why this Python does not fit an environment."""
        if self.python == HOST and environment.aws != "embedded":
            yield "python", "got 'host', which is only for aws: embedded; allowed here: '3.11'"


class CapacitySettings(Section):
    """How many machines a fleet has, and when it gets another."""

    min_capacity: Count = Field(default=1, ge=1, le=1000, description="nodes always there")
    max_capacity: Count = Field(default=1, ge=1, le=1000, description="nodes at most")
    warm_pool: Count = Field(default=0, ge=0, le=1000, description="stopped nodes in reserve")
    requests_in_flight_target: Count = Field(
        default=6, ge=1, description="requests in flight per node at which another is added"
    )


class FleetSettings(CapacitySettings, ServerSettings, InnovationSettings):
    """Settings of a fleet. An innovation narrows the engine and says which machines it takes."""

    FAMILY: ClassVar[str]

    instance_type: str = Field(description="EC2 instance type, of the innovation's family")
    volume_gib: Count = Field(default=30, ge=20, le=16384, description="disk of a node")

    @field_validator("instance_type")
    @classmethod
    def _is_of_the_family(cls, name: str) -> str:
        allowed = sorted(each for each in ec2_instance_types() if each.startswith(f"{cls.FAMILY}."))
        if name not in allowed:
            raise ValueError(f"got {name!r}; allowed: {', '.join(allowed)}")
        return name

    @field_validator("requests_in_flight_target")
    @classmethod
    def _target_can_be_reached(cls, target: int, info: ValidationInfo) -> int:
        slots = info.data.get("slots", target)
        if target > slots:
            raise ValueError(f"got {target}; must be at most slots, which is {slots}")
        return target

    def planned(self, region: str) -> FleetSize | None:
        """Return the size that a load asks for, or None where there is no load."""
        return None

    def sized(self, region: str) -> Self:
        """Return these settings with the sizes that are left out, as the load asks for them."""
        size = self.planned(region)
        if size is None:
            return self
        values = {**self._set(), **size.settings(), **self._given()}
        if "max_capacity" not in self._given():  # a minimum that is given may be above the plan
            values["max_capacity"] = max(values["max_capacity"], values["min_capacity"])
        return type(self).model_validate(values)

    def remarks(self, region: str) -> Iterator[str]:
        """Yield in which way sizes given here are below what the load given here needs."""
        size = self.planned(region)
        if size is not None:
            yield from shortfalls(size, self._given())

    def _set(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self._set().items() if name in SIZED}

    def conflicts(self, environment: EnvironmentConfig) -> Iterator[tuple[str, str]]:
        """Yield what is right for one environment and wrong for this one."""
        try:
            sized = self.sized(environment.region)
            if sized.max_capacity < (least := sized.min_capacity):
                got = f"got {sized.max_capacity}; must be at least min_capacity, which is {least}"
                yield "max_capacity", got
        except PlanError as error:
            key = "architecture" if str(error).startswith("no model ") else "load"
            yield key, str(error).removeprefix("load: ")
        except ValidationError as error:  # a size that is given contradicts one that is planned
            for each in error.errors():
                yield str(each["loc"][0]), str(each["msg"]).removeprefix("Value error, ")
        yield from self.python_conflicts(environment)
        yield from certificate_conflicts(self.certificate_arn, environment)


def certificate_conflicts(
    arn: str | None, environment: EnvironmentConfig
) -> Iterator[tuple[str, str]]:
    """Yield why a load balancer's certificate, or its lack, does not fit an environment."""
    if arn is None:
        if environment.aws != "embedded":
            yield (
                "certificate_arn",
                "missing; add the ARN of an ACM certificate (only aws: embedded has none)",
            )
        return
    match = _CERTIFICATE.fullmatch(arn)
    partition = regions()[environment.region]
    wanted = f"arn:{partition}:acm:{environment.region}:{environment.account}:certificate/UUID"
    if not match or match.groups() != (partition, environment.region, environment.account):
        yield "certificate_arn", f"got {arn!r}; must be {wanted}"


class LoadedFleetSettings(FleetSettings):
    """Settings of a fleet that may be sized by what it is for."""

    architecture: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="config in config/models that a load is planned with; left out, as model",
    )
    load: FleetLoad | None = Field(
        default=None, description="what the fleet is for: sizes that are left out come from it"
    )

    def planned(self, region: str) -> FleetSize | None:
        """Return the size that the load asks for, or None where no load is given.

        Raises:
            PlanError: No such model, a load that cannot be, or nothing of the family carries it.
        """
        if self.load is None:
            return None
        return planned(
            self.load,
            self._given(),
            model=self.architecture or self.model,
            family=self.FAMILY,
            region=region,
        )
