"""Multi-head latent attention: R7i nodes that share a cache of latents in ElastiCache."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from aws_cdk import CfnOutput, Stack
from constructs import Construct
from pydantic import Field, ValidationInfo, field_validator

from config import EnvironmentConfig
from constructs_lib import CacheLimits, DataKey, LatentCache, LatentWatch
from planner import PlanError
from planner.cache_size import CacheSize
from stacks.base import Base
from stacks.fleet import decode_fleet
from stacks.fleet_settings import FleetSettings
from stacks.mla_cache import CacheLoad, CacheSettings, size_of
from stacks.mla_clients import LatentClients

_BLOCKS = (16, 32, 64, 128, 256)  # what the store takes: model_code/mla/store/settings.py


class MlaSettings(FleetSettings):
    """`innovations.mla` of an environment file."""

    FAMILY: ClassVar[str] = "r7i"  # memory for weights; its cores have AMX as well

    engine: Literal["native"] = Field(
        default="native", description="what decodes: our own code on torch"
    )
    instance_type: str = Field(default="r7i.large", description="EC2 instance type, of family r7i")
    architecture: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="config in config/models that sizes the cache; left out, as model",
    )
    block_tokens: Literal[16, 32, 64, 128, 256] = Field(
        default=64, description="tokens of a value; divides context"
    )
    tenant: str = Field(
        default="default",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="whose latents these are; no tenant reads another's",
    )
    load: CacheLoad = Field(default=CacheLoad(), description="what the cache is sized for")
    cache: CacheSettings = Field(default=CacheSettings(), description="the cache itself")

    @field_validator("block_tokens")
    @classmethod
    def _blocks_divide_the_context(cls, block: int, info: ValidationInfo) -> int:
        context = info.data.get("context", block)
        if context % block:
            sizes = [str(size) for size in _BLOCKS if context % size == 0]
            raise ValueError(
                f"got {block}, which does not divide context, {context}; allowed with it: "
                f"{', '.join(sizes) or 'none, so change context'}"
            )
        return block

    def size(self, region: str) -> CacheSize:
        """Return the cache's size: what is asked for, else what the load needs; or a PlanError."""
        model = self.architecture or self.model
        return size_of(
            model,
            self.load,
            self.cache,
            context=self.context,
            dtype=self.dtype,
            region=region,
        )

    def conflicts(self, environment: EnvironmentConfig) -> Iterator[tuple[str, str]]:
        """Yield what is right for one environment and wrong for this one."""
        yield from super().conflicts(environment)
        try:
            size = self.size(environment.region)
        except PlanError as error:
            yield _key(str(error)), str(error).removeprefix("load: ")
            return
        if size.holds < size.request:
            yield (
                "cache",
                f"holds {size.holds:,} tokens, and one request of the load has {size.request:,}; "
                f"a larger node_type or max_gb, or more shards would do",
            )


def _key(error: str) -> str:
    """Return the setting that an error of the planner is about."""
    if error.startswith("load: "):
        return "load"
    if error.startswith("no model ") or " has no latent attention" in error:
        return "architecture"
    return "cache.node_type" if error.startswith("got ") else "cache"


class MlaStack(Stack):
    """A cache of latents, and a fleet of R7i nodes that fill and read it."""

    def __init__(self, scope: Construct, slug: str, *, settings: MlaSettings, base: Base) -> None:
        super().__init__(scope, slug)
        site, size = base.site(self), settings.size(self.region)
        cache = LatentCache(
            self,
            "LatentCache",
            site=site,
            engine=settings.cache.engine,
            size=settings.cache.of(size),
            login=settings.cache.login(),
            key=DataKey(self, "CacheKey", description="latents, their password", retained=False),
        )
        fleet = decode_fleet(
            self,
            slug,
            settings=settings,
            base=base,
            site=site,
            more=_told(settings, cache),
            statements=cache.access.read_statements(),
        )
        cache.allow_from(fleet.security_group, "nodes of the fleet")
        LatentWatch(
            self,
            "LatentWatch",
            cache=cache,
            namespace=fleet.namespace,
            fleet=self.stack_name,
            limits=CacheLimits(
                memory_percent=settings.cache.alarm_memory_percent,
                evictions=settings.cache.alarm_evictions,
                hit_percent=settings.cache.alarm_hit_percent,
            ),
            topic=site.alarm_topic,
        )
        LatentClients(
            self,
            "Clients",
            prefix=f"/isomorph/{base.environment}/{slug}",
            url=cache.url,
            block_tokens=settings.block_tokens,
        )
        CfnOutput(self, "LatentStore", value=cache.url)
        CfnOutput(self, "LatentSecret", value=cache.access.secret.secret_arn)
        CfnOutput(self, "CacheSize", value="; ".join(size.reasons))


def _told(settings: MlaSettings, cache: LatentCache) -> dict[str, str]:
    return {
        "ISOMORPH_LATENT_STORE_URL": cache.url,
        "ISOMORPH_LATENT_STORE_CLUSTER": str(int(cache.cluster)),
        "ISOMORPH_LATENT_STORE_SECRET": cache.access.secret.secret_arn,
        "ISOMORPH_LATENT_STORE_CA": "",  # Amazon's, which the system knows
        "ISOMORPH_LATENT_BLOCK": str(settings.block_tokens),
        "ISOMORPH_LATENT_DTYPE": settings.cache.dtype,
        "ISOMORPH_LATENT_TTL_S": str(settings.load.ttl_s),
        "ISOMORPH_TENANT": settings.tenant,
    }
