"""Settings of the latent cache of mla: what it is for, and how large, checked against the model."""

import dataclasses
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from config import Amount, Count, Section
from planner import Load, PlanError, resolve
from planner.cache_size import CacheAsk, CacheSize, cache_size
from stacks.fleet_size import LoadSettings

if TYPE_CHECKING:
    from constructs_lib import Login, Nodes, Serverless

Value = TypeVar("Value", str | None, int | None)
_PLANNED = {"float32": "fp32", "bfloat16": "bf16"}  # in the planner's words


class CacheLoad(LoadSettings):
    """`innovations.mla.load`: what the cache is sized for."""

    ttl_s: Count = Field(
        default=600, ge=1, le=604800, description="seconds that a prompt's latents are kept"
    )

    def of(self, context: int | None) -> Load:
        """Return the planner's load; `context` is the fleet's own, if it gives one."""
        return dataclasses.replace(super().of(context), ttl_s=self.ttl_s)


class CacheSettings(Section):
    """`innovations.mla.cache`: the cache itself. Sizes that are left out come from the load."""

    kind: Literal["nodes", "serverless"] = Field(
        default="nodes", description="nodes: a replication group; serverless"
    )
    engine: Literal["valkey", "redis"] = Field(default="valkey", description="what serves it")
    dtype: Literal["auto", "fp8"] = Field(
        default="auto", description="what latents are stored in; auto: what the model computes in"
    )
    node_type: str | None = Field(
        default=None, description="ElastiCache node type, such as cache.r7g.large"
    )
    shards: Count | None = Field(default=None, ge=1, le=500, description="parts of the key space")
    replicas: Count = Field(default=1, ge=0, le=5, description="further nodes of each shard")
    failover: bool | None = Field(
        default=None, strict=True, description="whether a replica takes over; as replicas allow"
    )
    max_gb: Count = Field(
        default=10, ge=1, le=5000, description="the most that a serverless cache holds"
    )
    max_ecpu: Count = Field(
        default=100_000, ge=1000, le=15_000_000, description="its kilobytes a second at most"
    )
    policy: Literal["allkeys-lru", "volatile-ttl"] = Field(
        default="allkeys-lru", description="what goes when memory is full"
    )
    snapshot_days: Count = Field(
        default=0, ge=0, le=35, description="for how long daily snapshots are kept; 0: none"
    )
    access: Literal["user", "token"] = Field(
        default="user", description="user: one that may do only what nodes do; token: AUTH"
    )
    tls: bool = Field(default=True, strict=True, description="always true: logins need it")
    password_length: Count = Field(default=64, description="characters of the password, 16 to 128")
    rotation_days: Count = Field(default=30, ge=1, le=1000, description="between two passwords")
    alarm_memory_percent: Amount = Field(default=95, gt=0, le=100, description="of a node's memory")
    alarm_evictions: Amount = Field(default=1000, ge=0, description="of a shard in a minute")
    alarm_hit_percent: Amount = Field(
        default=10, ge=0, le=100, description="alarm below this share of lookups that hit"
    )

    @field_validator("failover")
    @classmethod
    def _someone_can_take_over(cls, failover: bool | None, info: ValidationInfo) -> bool | None:
        replicas = info.data.get("replicas", 0)
        if failover and not replicas:
            raise ValueError("got True with replicas 0; failover takes a second node: replicas: 1")
        if failover is False and replicas:
            raise ValueError(
                f"got False with replicas {replicas}; a replica takes over by itself: leave it out"
            )
        return failover

    @field_validator("shards")
    @classmethod
    def _shards_are_for_nodes(cls, shards: int | None, info: ValidationInfo) -> int | None:
        return _only_of_nodes(shards, info)

    @field_validator("node_type")
    @classmethod
    def _type_is_for_nodes(cls, name: str | None, info: ValidationInfo) -> str | None:
        return _only_of_nodes(name, info)

    @field_validator("replicas")
    @classmethod
    def _several_shards_have_replicas(cls, replicas: int, info: ValidationInfo) -> int:
        shards = info.data.get("shards") or 1
        if shards > 1 and not replicas:
            raise ValueError(
                f"got 0 with shards {shards}; cluster mode has failover, which takes replicas: 1"
            )
        return replicas

    @field_validator("access")
    @classmethod
    def _serverless_has_users(cls, access: str, info: ValidationInfo) -> str:
        if access == "token" and info.data.get("kind") == "serverless":
            raise ValueError("got 'token' with kind 'serverless', which knows users alone: 'user'")
        return access

    @field_validator("tls")
    @classmethod
    def _logins_need_tls(cls, tls: bool, info: ValidationInfo) -> bool:
        if not tls:
            raise ValueError(
                f"got False with access {info.data.get('access')!r}; a login over plain TCP is "
                f"readable, and ElastiCache refuses it: leave tls out"
            )
        return tls

    @field_validator("password_length")
    @classmethod
    def _length_is_allowed(cls, length: int) -> int:
        if not 16 <= length <= 128:
            raise ValueError(f"got {length}; ElastiCache takes passwords of 16 to 128 characters")
        return length

    def ask(self) -> CacheAsk:
        """Return what is asked of the planner."""
        if self.kind == "serverless":
            return CacheAsk(serverless_gb=self.max_gb)
        return CacheAsk(node_type=self.node_type, shards=self.shards, replicas=self.replicas)

    def of(self, size: CacheSize) -> "Nodes | Serverless":
        """Return what the construct is told."""
        from constructs_lib import Nodes, Serverless

        if self.kind == "serverless":
            return Serverless(max_gb=self.max_gb, max_ecpu=self.max_ecpu)
        return Nodes(
            node_type=size.node_type,
            shards=size.shards,
            replicas=size.replicas,
            policy=self.policy,
            snapshot_days=self.snapshot_days,
        )

    def login(self) -> "Login":
        """Return how nodes log in."""
        from constructs_lib import Login

        return Login(
            access=self.access,
            password_length=self.password_length,
            rotation_days=self.rotation_days,
        )


def _only_of_nodes(value: Value, info: ValidationInfo) -> Value:
    if value is not None and info.data.get("kind") == "serverless":
        raise ValueError(f"got {value!r} with kind 'serverless', which has max_gb and max_ecpu")
    return value


def size_of(
    model: str, load: CacheLoad, cache: CacheSettings, *, context: int, dtype: str, region: str
) -> CacheSize:
    """Return the cache's size for a model of config/models, or a PlanError.

    The fleet computes in `dtype`, which on R7i is bfloat16 when it is `auto`.
    """
    architecture = resolve(model)
    if "mla" not in architecture.innovations:
        raise PlanError(f"{model} has no latent attention: its layers are not MLA's")
    kept = "fp8" if cache.dtype == "fp8" else _PLANNED.get(dtype, "bf16")
    asked = dataclasses.replace(load.of(context), kv_dtype=kept)
    return cache_size(architecture, asked, region, cache.ask())
