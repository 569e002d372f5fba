"""Whether a model fits a Lambda function: memory, image and time, for one sequence at a time."""

import dataclasses
import math
from dataclasses import dataclass

from model_code.common.architecture import Architecture
from planner.catalogue import Instance, instances, limits, price
from planner.load import Load
from planner.roofline import Demand, speed
from planner.serving import Misfit

MIB = 2**20
# Python, the engine and the handler; measured with llama.cpp at about 160 MiB above the weights.
RUNTIME_MIB = 256
CODE_GB = 0.5  # of the image, besides the weights
MIB_PER_VCPU = 1769
TMP_LEAST_MIB = 512  # what every function gets
TMP_RESERVE_MIB = 80  # besides the weights: what fetching them leaves free, and the runtime's files
SMALLER = {"fp32": ("bf16", "int8", "int4"), "bf16": ("int8", "int4"), "int4": ()}


@dataclass(frozen=True, kw_only=True)
class FunctionFit:
    """A Lambda function that answers one request at a time."""

    dtype: str
    memory_mib: int
    weight_bytes: int
    kv_bytes: int
    image_gb: float
    seconds: float
    tokens_per_s: float
    concurrency: int
    usd_per_request: float | None
    usd_per_hour: float | None

    @property
    def ephemeral_mib(self) -> int:
        """Size of /tmp that holds the weights when they are fetched from S3, in MiB."""
        return max(TMP_LEAST_MIB, math.ceil(self.weight_bytes / MIB) + TMP_RESERVE_MIB)

    @property
    def usd_per_million(self) -> float | None:
        """A million requests: duration and the price of requests; None where one is missing."""
        return None if self.usd_per_request is None else 1e6 * self.usd_per_request


def fit_function(
    architecture: Architecture, load: Load, region: str, memory_mib: int | None = None
) -> FunctionFit | Misfit:
    """Return the function with the widest dtype that fits, from the load's downwards.

    Args:
        architecture: The model.
        load: What is asked of it.
        region: For prices.
        memory_mib: What the function gets; left out, as much as gives it the most processors.
    """
    found = _fit(architecture, load, region, load.dtype, memory_mib)
    for dtype in SMALLER.get(load.dtype, ("int4",)):
        if isinstance(found, FunctionFit):
            break
        found = _fit(architecture, load, region, dtype, memory_mib)
    return found


def _fit(
    architecture: Architecture, load: Load, region: str, dtype: str, memory_mib: int | None
) -> FunctionFit | Misfit:
    most = limits("lambda")
    given = memory_mib or most["memory_mib"]
    demand = Demand(architecture, dtype=dtype, kv_dtype=load.kv_dtype, context=load.context)
    need = math.ceil((demand.weights + demand.kv) / MIB) + RUNTIME_MIB
    image = demand.weights / 1e9 + CODE_GB

    def misfit(reason: str, remedy: str) -> Misfit:
        return Misfit(instance="lambda", reason=reason, remedy=remedy)

    if need > given:
        whose = "Lambda gives" if given == most["memory_mib"] else "the function is given"
        more = f"memory_mib={need}, or " if need <= most["memory_mib"] else ""
        return misfit(
            f"needs {need:,} MiB in {dtype} (weights, {load.context:,} tokens of cache, "
            f"{RUNTIME_MIB} MiB runtime); {whose} {given:,}",
            f"{more}{need - given:,} MiB less: a smaller model or dtype; or EC2",
        )
    if image > most["image_gb"]:
        return misfit(
            f"its image would be {image:.1f} GB in {dtype}; Lambda takes {most['image_gb']}",
            "weights in a smaller dtype, or fetched when it starts",
        )
    machine = _machine(min(most["vcpus"], given / MIB_PER_VCPU))
    pace = speed(demand, machine, devices=1, batch=1, prompt=load.prompt)
    seconds = pace.prefill_s + load.output * pace.step_s
    if seconds > most["timeout_s"]:
        return misfit(
            f"an answer takes {seconds:,.0f} s in {dtype}; Lambda stops after {most['timeout_s']}",
            f"a shorter context, or output={int(load.output * most['timeout_s'] / seconds)}",
        )
    if 1 / pace.step_s < load.tokens_per_s:
        return misfit(
            f"decodes {1 / pace.step_s:.2g} tokens/s in {dtype}, asked is {load.tokens_per_s:g}",
            f"tokens_per_s={1 / pace.step_s:.2g}, or a smaller dtype",
        )
    # All memory, since CPUs come with it, up to what gives the most of them.
    memory = memory_mib or min(most["memory_mib"], max(need, most["vcpus"] * MIB_PER_VCPU))
    row, call = price("lambda", "duration", region), price("lambda", "requests", region)
    each = row.usd * seconds * memory / 1024 + call.usd / 1e6 if row and call else None
    return FunctionFit(
        dtype=dtype,
        memory_mib=memory,
        weight_bytes=demand.weights,
        kv_bytes=demand.kv,
        image_gb=image,
        seconds=seconds,
        tokens_per_s=1 / pace.step_s,
        concurrency=max(1, math.ceil(load.requests_per_s * seconds)),
        usd_per_request=each,
        usd_per_hour=each * load.requests_per_s * 3600 if each is not None else None,
    )


def _machine(vcpus: float) -> Instance:
    """Return a machine of so many vCPUs like C7i's; what Lambda runs on is not published."""
    base = instances()["c7i.large"]
    scale = vcpus / base.vcpus
    return dataclasses.replace(
        base,
        name="lambda",
        vcpus=max(1, int(vcpus)),
        bandwidth=base.bandwidth * scale,
        rates={dtype: rate * scale for dtype, rate in base.rates.items()},
    )
