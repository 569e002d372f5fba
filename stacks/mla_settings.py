"""Settings of multi-head latent attention: its fleet, and the cache that the nodes share."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from config import EnvironmentConfig
from planner import PlanError
from planner.cache_size import CacheSize
from stacks.fleet_settings import FleetSettings
from stacks.mla_cache import CacheLoad, CacheSettings, size_of

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
