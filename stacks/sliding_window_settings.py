"""Settings of sliding-window attention: its fleet, and its function for what comes rarely."""

import functools
import sys
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from config import Amount, Count, EnvironmentConfig, ec2_instance_types
from config.schema import Section
from constructs_lib.function_size import FunctionMode, FunctionSize, ManagedInstances, refusals
from planner.errors import PlanError
from planner.functions import FunctionFit
from planner.load import Load
from planner.planning import resolve
from planner.sizing import window_fleet, window_function, window_of
from stacks.fleet_settings import LoadedFleetSettings
from stacks.wheelhouse import HOST

AUTO = "auto"


class WindowFunctionSettings(Section):
    """`innovations.sliding_window.function` of an environment file."""

    package: Literal["zip", "image"] = Field(
        default="zip", description="zip: libraries and code, to 250 MB; image: built with Docker"
    )
    python: Literal["host", "3.12", "3.13", "3.14"] = Field(
        default="3.14", description="the managed runtime; host: this machine's"
    )
    processor: Literal["x86_64", "arm64"] = Field(
        default="x86_64", description="the function's processor"
    )
    memory_mib: Count | None = Field(
        default=None, ge=128, le=10240, description="memory; left out, the planner's"
    )
    ephemeral_mib: Count | None = Field(
        default=None, ge=512, le=10240, description="disk for weights; left out, the planner's"
    )
    timeout_seconds: Count = Field(
        default=120, ge=1, le=900, description="the longest invocation; answers are cut before"
    )
    context: Count = Field(
        default=2048, ge=64, le=1048576, description="tokens of a request with its answer"
    )
    streaming: bool = Field(
        default=True, description="token by token through our own runtime; else whole answers"
    )
    reserved_concurrency: Count | None = Field(
        default=5, ge=1, le=100000, description="invocations at once at most; bounds the bill"
    )
    provisioned_concurrency: Count = Field(
        default=0, ge=0, le=10000, description="environments kept loaded; they bill while idle"
    )
    snap_start: bool = Field(default=False, description="start environments from a snapshot")
    managed_instance_types: tuple[str, ...] = Field(
        default=(), description="run on Lambda managed instances of these types, such as r7i.large"
    )
    managed_max_vcpus: Count = Field(
        default=16, ge=2, le=15000, description="of all managed instances together"
    )
    cloudfront_key_group: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f-]{36}$",
        description="key group whose signed requests CloudFront lets in; left out: none",
    )
    cloudfront_web_acl_arn: str | None = Field(
        default=None,
        pattern=r"^arn:aws[a-z-]*:wafv2:us-east-1:\d{12}:global/webacl/.+$",
        description="web ACL of AWS WAF for CloudFront",
    )
    alarm_duration_share: Amount = Field(
        default=0.9, gt=0, le=1, description="alarm above this share of the timeout"
    )
    alarm_errors: Count = Field(
        default=0, ge=0, description="alarm above this many failed invocations in five minutes"
    )

    @field_validator("managed_instance_types")
    @classmethod
    def _are_r7i(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        allowed = sorted(each for each in ec2_instance_types() if each.startswith("r7i."))
        for name in names:
            if name not in allowed:
                raise ValueError(f"got {name!r}; allowed: {', '.join(allowed)}")
        return names

    @property
    def mode(self) -> FunctionMode:
        """How the function answers and scales, in the construct's words."""
        types = self.managed_instance_types
        return FunctionMode(
            streaming=self.streaming,
            reserved_concurrency=self.reserved_concurrency,
            provisioned_concurrency=self.provisioned_concurrency,
            snap_start=self.snap_start,
            managed=ManagedInstances(instance_types=types, max_vcpus=self.managed_max_vcpus)
            if types
            else None,
        )


class SlidingWindowSettings(LoadedFleetSettings):
    """`innovations.sliding_window` of an environment file."""

    FAMILY: ClassVar[str] = "r7i"  # the most memory for a core of those with AMX

    engine: Literal["llama.cpp", "native"] = Field(
        default="llama.cpp", description="what decodes: llama.cpp, or our own code on torch"
    )
    instance_type: str = Field(
        default=AUTO, description="EC2 type of family r7i; auto: the planner's, by GB/s per dollar"
    )
    function: WindowFunctionSettings = Field(
        default_factory=WindowFunctionSettings, description="the Lambda function"
    )

    @field_validator("instance_type")
    @classmethod
    def _is_of_the_family(cls, name: str) -> str:
        if name == AUTO:
            return name
        allowed = sorted(each for each in ec2_instance_types() if each.startswith(f"{cls.FAMILY}."))
        if name not in allowed:
            raise ValueError(f"got {name!r}; allowed: auto, {', '.join(allowed)}")
        return name

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in super()._given().items() if value != AUTO}

    def conflicts(self, environment: EnvironmentConfig) -> Iterator[tuple[str, str]]:
        """Yield what is right for one environment or model and wrong for this one."""
        yield from super().conflicts(environment)
        if self.function.python == HOST and environment.aws != "embedded":
            yield (
                "function.python",
                "got 'host', which is only for aws: embedded; allowed here: '3.12', '3.13', '3.14'",
            )
        try:
            model = resolve(self.architecture or self.model)
            window = window_of(model)
        except PlanError as error:
            yield "model", str(error)
            return
        for key, context in (
            ("context", self.context),
            ("function.context", self.function.context),
        ):
            if not window < context <= model.context:
                yield (
                    key,
                    f"got {context}; must be above the window of {self.model}, {window}, or there "
                    f"is nothing to save, and at most the {model.context} that it was made for",
                )
                return
        try:
            fit = function_fit(self, environment.region)
            fleet_type(self, environment.region)
        except PlanError as error:
            yield "model", str(error)
            return
        small = self.function.ephemeral_mib
        if small is not None and small < fit.ephemeral_mib:
            yield (
                "function.ephemeral_mib",
                f"got {small}; the weights of {self.model} need {fit.ephemeral_mib}",
            )
        image = self.function.package == "image"
        for refusal in refusals(function_size(self, fit), self.function.mode, image=image):
            yield "function", refusal


@functools.cache
def function_fit(settings: SlidingWindowSettings, region: str) -> FunctionFit:
    """Return how the model fits the function, with at most 8 bits a weight as GGUF files have."""
    asked = Load(
        concurrent=settings.function.reserved_concurrency or 1,
        context=settings.function.context,
        dtype="int8",
        tokens_per_s=1,
    )
    model = resolve(settings.architecture or settings.model)
    return window_function(model, asked, region, settings.function.memory_mib)


@functools.cache
def fleet_type(settings: SlidingWindowSettings, region: str) -> str:
    """Return the nodes' instance type: the one that is given, or the planner's."""
    if settings.instance_type != AUTO:
        return settings.instance_type
    asked = Load(concurrent=settings.slots, context=settings.context, tokens_per_s=1)
    model = resolve(settings.architecture or settings.model)
    return window_fleet(model, asked, region, settings.FAMILY).instance_type


def function_size(settings: SlidingWindowSettings, fit: FunctionFit) -> FunctionSize:
    """Return what the function gets; an explicit size wins over the planner's."""
    function, here = settings.function, python_version()
    return FunctionSize(
        memory_mib=function.memory_mib or fit.memory_mib,
        ephemeral_mib=function.ephemeral_mib or fit.ephemeral_mib,
        timeout_seconds=function.timeout_seconds,
        architecture=function.processor,
        python=here if function.python == HOST else function.python,
    )


def python_version() -> str:
    """Return this machine's Python as Lambda's runtimes are called."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"
