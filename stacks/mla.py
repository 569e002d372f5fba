"""Multi-head latent attention: R7i nodes that share a cache of latents in ElastiCache."""

from aws_cdk import CfnOutput, Stack
from constructs import Construct

from constructs_lib import CacheLimits, DataKey, LatentCache, LatentWatch
from stacks.base import Base
from stacks.fleet import decode_fleet
from stacks.mla_clients import LatentClients
from stacks.mla_settings import MlaSettings


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
