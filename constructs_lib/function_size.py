"""What a function gets, how it answers, and what Lambda would refuse of that. Without the CDK."""

from collections.abc import Sequence
from dataclasses import dataclass

_SNAPSHOT_TMP_MIB = 512  # the most of /tmp that SnapStart takes
_SNAPSHOT_PYTHON = (3, 12)  # the first of Python's runtimes with SnapStart
_MANAGED_LEAST_MIB = 2048


@dataclass(frozen=True, kw_only=True)
class ManagedInstances:
    """Which machines Lambda may launch for the function.

    Args:
        instance_types: EC2 instance types, such as r7i.large.
        max_vcpus: Of all of them together; what bounds the bill.
    """

    instance_types: Sequence[str]
    max_vcpus: int


@dataclass(frozen=True, kw_only=True)
class FunctionSize:
    """What the function gets.

    Args:
        memory_mib: Memory, and with it the share of processors.
        ephemeral_mib: /tmp, where the weights lie.
        timeout_seconds: The longest invocation.
        architecture: x86_64 or arm64.
        python: Version of the managed runtime, such as 3.14.
    """

    memory_mib: int
    ephemeral_mib: int
    timeout_seconds: int
    architecture: str
    python: str


@dataclass(frozen=True, kw_only=True)
class FunctionMode:
    """How the function answers and scales.

    Args:
        streaming: Answers token by token through our own runtime; else at once, through AWS's.
        reserved_concurrency: Invocations at once at most, which bounds the bill; None: the
            account's.
        provisioned_concurrency: Environments that are kept loaded; 0 for none.
        snap_start: Whether new environments start from a snapshot.
        managed: Machines of ours that Lambda runs it on; None: Lambda's own.
    """

    streaming: bool
    reserved_concurrency: int | None = None
    provisioned_concurrency: int = 0
    snap_start: bool = False
    managed: ManagedInstances | None = None


def refusals(size: FunctionSize, mode: FunctionMode, *, image: bool) -> list[str]:
    """Return what Lambda would refuse of a function, one line each.

    Sources: Lambda's developer guide, "Lambda SnapStart" and "Lambda Managed Instances".
    """
    found = []
    if mode.snap_start:
        version = tuple(int(part) for part in size.python.split("."))
        for wrong, why in (
            (mode.provisioned_concurrency, "not together with provisioned_concurrency; choose one"),
            (image, "not for images; set package to zip"),
            (
                size.ephemeral_mib > _SNAPSHOT_TMP_MIB,
                f"not with {size.ephemeral_mib} MiB of /tmp; at most {_SNAPSHOT_TMP_MIB}: smaller "
                f"weights, or provisioned_concurrency",
            ),
            (version < _SNAPSHOT_PYTHON, f"not with Python {size.python}; 3.12 or newer"),
            (
                mode.streaming,
                "not with our own runtime, which takes part in no snapshot; set streaming to false",
            ),
        ):
            if wrong:
                found.append(f"snap_start: {why}")
    if mode.managed:
        if mode.snap_start or mode.provisioned_concurrency or mode.reserved_concurrency:
            found.append(
                "managed_instances: they keep environments of their own; without snap_start, "
                "provisioned_concurrency and reserved_concurrency"
            )
        if size.memory_mib < _MANAGED_LEAST_MIB:
            found.append(
                f"managed_instances: memory_mib is {size.memory_mib}; at least {_MANAGED_LEAST_MIB}"
            )
    reserved = mode.reserved_concurrency
    if reserved is not None and mode.provisioned_concurrency > reserved:
        found.append(
            f"provisioned_concurrency: got {mode.provisioned_concurrency}; at most "
            f"reserved_concurrency, which is {reserved}"
        )
    return found
