"""The size that a stack gives its cache of latents: the planner's, or the one that is asked for."""

import math
from dataclasses import dataclass

from model_code.common.architecture import Architecture
from planner.caching import REPLICAS, USABLE_SHARE, fit_cache, tokens_held
from planner.catalogue import GIB, CacheNode, cache_nodes, limits, price
from planner.errors import PlanError
from planner.load import Load
from planner.serving import Misfit


@dataclass(frozen=True, kw_only=True)
class CacheAsk:
    """What a person wants of the cache; what is left out, the load decides.

    Args:
        node_type: Such as cache.r7g.large.
        replicas: Further nodes of a shard.
        serverless_gb: The most that a serverless cache may hold; with it there are no nodes.
    """

    node_type: str | None = None
    shards: int | None = None
    replicas: int = REPLICAS
    serverless_gb: int | None = None


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """A cache for a load. What was asked for stands, also where it does not fit.

    Args:
        node_type: Empty for a serverless cache.
        tokens: What the load wants held.
        holds: Tokens that it holds.
        request: Tokens of one request, which it must hold at least.
        reasons: The arithmetic, one line each; when it does not fit, what would.
    """

    node_type: str
    shards: int
    replicas: int
    tokens: int
    holds: int
    request: int
    reasons: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it holds what the load wants held."""
        return self.holds >= self.tokens


def cache_size(
    architecture: Architecture, load: Load, region: str, ask: CacheAsk | None = None
) -> CacheSize:
    """Return the size of the cache for a load.

    Raises:
        PlanError: a node type that is unknown or not sold in the region, more nodes than a
            cluster may have, or, with nothing asked for, a load that no cluster holds.
    """
    ask, asked = ask or CacheAsk(), load.of(architecture)
    token = architecture.latent_bytes_per_token(asked.kv_dtype)
    if ask.serverless_gb is not None:
        return _sized(asked, token, int(ask.serverless_gb * 1e9), "", 0, 0)
    node, shards = _nodes(architecture, asked, region, ask, token)
    most = int(limits("elasticache")["nodes_per_cluster"])
    if shards * (1 + ask.replicas) > most:
        raise PlanError(
            f"{shards} shards of {1 + ask.replicas} nodes are more than the {most} nodes of a "
            f"cluster; a larger node type, fewer replicas or a shorter ttl_s would do"
        )
    usable = int(shards * node.usable_gib * GIB * USABLE_SHARE)
    return _sized(asked, token, usable, node.name, shards, ask.replicas)


def _nodes(
    architecture: Architecture, load: Load, region: str, ask: CacheAsk, token: int
) -> tuple[CacheNode, int]:
    sold = _sold(region)
    if ask.node_type is None and ask.shards is None and ask.replicas == REPLICAS:
        found = fit_cache(architecture, load, region)
        if isinstance(found, Misfit):
            raise PlanError(f"{found.reason}; what would fit: {found.remedy}")
        return found.node, found.shards
    need = tokens_held(load) * token
    choices = [_known(ask.node_type, sold, region)] if ask.node_type else sold
    sizes = [(node, ask.shards or _shards(node, need, ask.replicas)) for node in choices]
    enough = [
        (node, shards)
        for node, shards in sizes
        if shards * node.usable_gib * GIB * USABLE_SHARE >= need
    ]
    if not enough:  # what was asked for is too small: the most of it
        return max(sizes, key=lambda row: row[0].usable_gib * row[1])
    return min(enough, key=lambda row: _cost(row[0], row[1], region))


def _shards(node: CacheNode, need: int, replicas: int) -> int:
    if not replicas:
        return 1  # several take cluster mode, which takes replicas
    return max(1, math.ceil(need / (node.usable_gib * GIB * USABLE_SHARE)))


def _cost(node: CacheNode, shards: int, region: str) -> tuple[bool, float, float]:
    row = price("elasticache", node.name, region)
    return row is None, row.usd * shards if row else 0.0, node.usable_gib * shards


def _sold(region: str) -> list[CacheNode]:
    found = [node for node in cache_nodes() if region in node.regions]
    if not found:
        raise PlanError(f"the catalogue has no cache node that is sold in {region}")
    return found


def _known(name: str, sold: list[CacheNode], region: str) -> CacheNode:
    allowed = {node.name: node for node in sold}
    if name not in allowed:
        raise PlanError(f"got {ascii(name)[:40]}; sold in {region}: {', '.join(allowed)}")
    return allowed[name]


def _sized(load: Load, token: int, usable: int, node: str, shards: int, replicas: int) -> CacheSize:
    tokens, holds = tokens_held(load), usable // token
    what = f"{shards} x {node} with {replicas} replica(s)" if node else f"{usable / 1e9:,.0f} GB"
    lines = [
        f"{what} holds {holds:,} tokens of {token:,} bytes",
        f"the load wants {tokens:,} held: the larger of {load.concurrent} x {load.context:,} in "
        f"flight and {load.requests_per_s:g} prompts/s x {load.prompt:,} tokens x {load.ttl_s:g} s",
    ]
    if holds < tokens:
        lasts = int(load.ttl_s * holds / tokens)
        lines.append(f"does not fit: prompts are thrown out after about {lasts} s")
    return CacheSize(
        node_type=node,
        shards=shards,
        replicas=replicas,
        tokens=tokens,
        holds=holds,
        request=load.context,
        reasons=tuple(lines),
    )
