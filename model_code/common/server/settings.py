"""The server's settings, read from its environment (a fleet's node keeps them in fleet.env)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_code.common.engine import ENGINES
from model_code.common.errors import SettingsError

DTYPES = ("auto", "float32", "bfloat16")
QUANTIZATIONS = ("none", "int8", "int4")
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104  a node's security group decides


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that differs between two servers.

    Args:
        weights: s3:// prefix that holds a manifest.json, or a local folder.
        weights_sha256: Digest of that manifest; required for s3://.
        state: Where fetched weights are kept.
        drain_s: How long running requests may take after SIGTERM.
        dtype: What the native engine computes in; auto takes bfloat16 where the CPU has it.
        quantization: What the native engine keeps its matrices in; llama.cpp has the file's bits.
    """

    model: str
    engine: str
    weights: str
    weights_sha256: str
    state: Path
    host: str
    port: int
    slots: int
    context: int
    queue: int
    deadline_s: float
    drain_s: float
    dtype: str
    quantization: str
    fleet: str
    metric_namespace: str
    log_group: str

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "Settings":
        """Read and check the environment's ISOMORPH_* variables."""
        weights = _text(env, "ISOMORPH_WEIGHTS")
        sha256 = env.get("ISOMORPH_WEIGHTS_SHA256", "")
        if weights.startswith("s3://") and not _is_sha256(sha256):
            raise SettingsError(
                f"ISOMORPH_WEIGHTS_SHA256 is {sha256!r}; it must be the sha256 of the manifest.json"
                f" at {weights}, 64 hexadecimal digits"
            )
        override = env.get("ISOMORPH_PORT_OVERRIDE", "")
        deadline = _whole(env, "ISOMORPH_DEADLINE_S", 1, 3600, 60)
        return cls(
            model=_text(env, "ISOMORPH_MODEL"),
            engine=_choice(env, "ISOMORPH_ENGINE", ENGINES),
            weights=weights,
            weights_sha256=sha256,
            state=Path(env.get("STATE_DIRECTORY") or _text(env, "ISOMORPH_STATE")),
            host=LOOPBACK if override else EVERYWHERE,
            port=_whole(
                env, "ISOMORPH_PORT_OVERRIDE" if override else "ISOMORPH_PORT", 1, 65535, 8080
            ),
            slots=_whole(env, "ISOMORPH_SLOTS", 1, 256, 8),
            context=_whole(env, "ISOMORPH_CONTEXT", 16, 2**20, 2048),
            queue=_whole(env, "ISOMORPH_QUEUE", 0, 100_000, 64),
            deadline_s=deadline,
            drain_s=_whole(env, "ISOMORPH_DRAIN_S", 1, 3600, deadline + 5),
            dtype=_choice(env, "ISOMORPH_DTYPE", DTYPES, DTYPES[0]),
            quantization=_choice(env, "ISOMORPH_QUANTIZATION", QUANTIZATIONS, QUANTIZATIONS[0]),
            fleet=env.get("ISOMORPH_FLEET", ""),
            metric_namespace=env.get("ISOMORPH_METRIC_NAMESPACE", ""),
            log_group=env.get("ISOMORPH_LOG_GROUP", ""),
        )


def _text(env: Mapping[str, str], name: str) -> str:
    if not (given := env.get(name, "").strip()):
        raise SettingsError(f"{name} is missing; set it in the server's environment (fleet.env)")
    return given


def _choice(env: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str = "") -> str:
    given = env.get(name, "") or default or _text(env, name)
    if given not in allowed:
        raise SettingsError(f"{name} is {given!r}; allowed: {', '.join(allowed)}")
    return given


def _whole(env: Mapping[str, str], name: str, low: int, high: int, default: int) -> int:
    given = env.get(name, "").strip() or str(default)
    if not given.isascii() or not given.isdigit() or not low <= int(given[:20]) <= high:
        raise SettingsError(
            f"{name} is {given[:40]!r}; allowed: whole numbers from {low} to {high}"
        )
    return int(given)


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")
