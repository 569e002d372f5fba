"""What the server of a mixture of experts reads of its environment, besides every server's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from model_code.common.errors import SettingsError
from model_code.common.server.settings import Settings

SOURCES = ("disk", "s3")
DEVICES = ("cpu", "neuron")
_POOL = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MAX_MIB = 1 << 24  # 16 TiB


@dataclass(frozen=True, kw_only=True)
class ExpertSettings:
    """How experts are kept, and which pool this is.

    Args:
        budget_bytes: Memory for routed experts; None keeps all of them.
        source: Where the others are: on the disk, to which all weights are fetched, or in S3.
        loads: Experts loaded at a time.
        prefetch: Whether the next layer's likely experts are loaded ahead.
        pool: This pool's name; empty if there are no pools.
        pools: All of them, with this one.
        device: Where it computes; neuron takes the graphs of `isomorph compile moe`.
    """

    budget_bytes: int | None = None
    source: str = "disk"
    loads: int = 4
    prefetch: bool = True
    pool: str = ""
    pools: tuple[str, ...] = ()
    device: str = "cpu"

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "ExpertSettings":
        """Read and check the ISOMORPH_EXPERT_* and ISOMORPH_POOL* variables."""
        mib = env.get("ISOMORPH_EXPERT_MIB", "").strip()
        source = env.get("ISOMORPH_EXPERT_SOURCE", "").strip() or SOURCES[0]
        if source not in SOURCES:
            raise SettingsError(
                f"ISOMORPH_EXPERT_SOURCE is {source[:40]!r}; allowed: {', '.join(SOURCES)}"
            )
        if source == "s3" and not mib:
            raise SettingsError(
                "ISOMORPH_EXPERT_SOURCE is 's3' without ISOMORPH_EXPERT_MIB, the memory that "
                "experts may take; set it, or let ISOMORPH_EXPERT_SOURCE be 'disk'"
            )
        device = env.get("ISOMORPH_DEVICE", "").strip() or DEVICES[0]
        if device not in DEVICES:
            raise SettingsError(
                f"ISOMORPH_DEVICE is {device[:40]!r}; allowed: {', '.join(DEVICES)}"
            )
        if device == "neuron" and mib:
            raise SettingsError(
                "ISOMORPH_EXPERT_MIB is set with ISOMORPH_DEVICE=neuron, whose graphs hold all "
                "experts; leave one of them out"
            )
        prefetch = env.get("ISOMORPH_EXPERT_PREFETCH", "").strip() or "1"
        if prefetch not in ("0", "1"):
            raise SettingsError(f"ISOMORPH_EXPERT_PREFETCH is {prefetch[:40]!r}; allowed: 0, 1")
        pool, pools = _pools(env)
        return cls(
            budget_bytes=_whole("ISOMORPH_EXPERT_MIB", mib, _MAX_MIB) << 20 if mib else None,
            source=source,
            loads=_whole("ISOMORPH_EXPERT_LOADS", env.get("ISOMORPH_EXPERT_LOADS", "") or "4", 32),
            prefetch=prefetch == "1", device=device, pool=pool, pools=pools,
        )  # fmt: skip

    def check(self, settings: Settings) -> None:
        """Refuse what does not go together with the server's settings."""
        if settings.engine != "native":
            raise SettingsError(
                f"ISOMORPH_ENGINE is {settings.engine!r}; a mixture of experts is served by native"
            )
        if self.budget_bytes is not None and settings.quantization != "none":
            raise SettingsError(
                f"ISOMORPH_QUANTIZATION is {settings.quantization!r} with ISOMORPH_EXPERT_MIB; "
                f"experts out of a cache keep their dtype: allowed is none, or no budget"
            )
        if self.source == "s3" and not settings.weights.startswith("s3://"):
            raise SettingsError(
                f"ISOMORPH_EXPERT_SOURCE is 's3', and ISOMORPH_WEIGHTS is {settings.weights!r}; it "
                f"must be s3://bucket/prefix/ then"
            )


def _pools(env: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    pool = env.get("ISOMORPH_POOL", "").strip()
    given = env.get("ISOMORPH_POOLS", "").strip() or pool
    pools = tuple(name.strip() for name in given.split(",")) if given else ()
    for name in filter(None, (pool, *pools)) if pools else ():
        if not _POOL.fullmatch(name):
            raise SettingsError(
                f"ISOMORPH_POOLS names {name[:40]!r}; allowed: up to 32 small letters, digits and "
                f"hyphens, not a hyphen first"
            )
    if pools and pool not in pools:
        raise SettingsError(
            f"ISOMORPH_POOL is {pool[:40]!r}; allowed are those of ISOMORPH_POOLS: "
            f"{', '.join(pools)}"
        )
    return pool, pools


def _whole(name: str, given: str, most: int) -> int:
    given = given.strip()
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:20]) <= most:
        raise SettingsError(f"{name} is {given[:40]!r}; allowed: whole numbers from 1 to {most}")
    return int(given)
