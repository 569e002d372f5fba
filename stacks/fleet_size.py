"""How large a fleet is: as its section says, else as the planner sizes the load it is for."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from config import Amount, Count, Section
from planner import Load, PlanError, resolve
from planner.sizing import FleetSize, fleet

SIZED = (
    *("instance_type", "volume_gib", "min_capacity", "max_capacity", "slots", "context"),
    "requests_in_flight_target",
)


class LoadSettings(Section):
    """`innovations.<slug>.load`: what is asked of the model, in the planner's words."""

    concurrent: Count = Field(default=8, ge=1, le=10**6, description="sequences in flight")
    context: Count | None = Field(
        default=None, ge=1, le=10**7, description="tokens of a sequence, prompt and answer"
    )
    output: Count | None = Field(
        default=None, ge=1, le=10**7, description="of them, tokens of the answer"
    )
    requests_per_s: Amount | None = Field(
        default=None, gt=0, le=10**6, description="new sequences a second"
    )

    def of(self, context: int | None) -> Load:
        """Return the planner's load; `context` is the fleet's own, if it gives one."""
        return Load(
            concurrent=self.concurrent,
            context=self.context or context or 0,
            output=self.output or 0,
            requests_per_s=self.requests_per_s or 0.0,
        )


class FleetLoad(LoadSettings):
    """The load of a fleet."""

    tokens_per_s: Amount = Field(
        default=5, gt=0, le=10**6, description="least speed of one sequence"
    )
    dtype: Literal["fp32", "bf16", "fp8", "int8", "int4"] = Field(
        default="bf16", description="weights, as the engine computes with them"
    )
    kv_dtype: Literal["fp32", "bf16", "fp8", "int8"] = Field(
        default="bf16", description="cache of keys and values"
    )

    def of(self, context: int | None) -> Load:
        """Return the planner's load; `context` is the fleet's own, if it gives one."""
        return dataclasses.replace(
            super().of(context),
            tokens_per_s=self.tokens_per_s,
            dtype=self.dtype,
            kv_dtype=self.kv_dtype,
        )


def planned(
    load: FleetLoad, given: Mapping[str, Any], *, model: str, family: str, region: str
) -> FleetSize:
    """Return the planner's size for a load; what the section gives itself is kept by the caller.

    Args:
        load: What the fleet is for.
        given: The sizes that the section gives itself.
        model: A config in config/models.
        family: EC2 instance family of the innovation.
        region: Where the fleet stands.

    Raises:
        PlanError: No such model, a load that cannot be, or nothing of the family carries it.
    """
    return fleet(
        resolve(model),
        load.of(given.get("context")),
        family=family,
        region=region,
        instance=given.get("instance_type"),
    )


def shortfalls(size: FleetSize, given: Mapping[str, Any]) -> Iterator[str]:
    """Yield in which way sizes that a section gives itself are below what its load needs."""
    if not size.fits:
        yield from size.reasons
        return
    needed = size.slots * size.instances
    slots = given.get("slots", size.slots)
    nodes = given.get("max_capacity", 2 * size.instances)
    if slots * nodes < needed:
        yield f"max_capacity {nodes} x slots {slots} take {slots * nodes} of {needed} sequences"
    if given.get("context", size.context) < size.context:
        yield f"context {given['context']}: the load's sequences have {size.context:,} tokens"
    if given.get("slots", 0) > size.most_slots:
        yield f"slots {slots} of {size.context:,} tokens: {size.most_slots} fit the memory"
    if given.get("volume_gib", size.volume_gib) < size.volume_gib:
        yield f"volume_gib {given['volume_gib']}: the system and the weights take {size.volume_gib}"


__all__ = ["SIZED", "FleetLoad", "LoadSettings", "PlanError", "planned", "shortfalls"]
