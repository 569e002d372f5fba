"""The shared cache of latents: tokens in flight x bytes x time to live -> nodes of ElastiCache."""

import math
from dataclasses import dataclass

from model_code.common.architecture import Architecture
from planner.catalogue import GIB, CacheNode, cache_nodes, limits, price
from planner.load import Load
from planner.serving import Misfit

# The server needs room to fork, to replicate and to evict; the rest of a node holds values.
USABLE_SHARE = 0.8
REPLICAS = 1  # a second node a shard, in another zone
BLOCK_TOKENS = 16  # one value: the latents of so many tokens, of all layers


@dataclass(frozen=True, kw_only=True)
class CacheFit:
    """A replication group in cluster mode.

    Args:
        tokens: What it holds at once: prompts of `ttl_s` seconds, or those in flight if more.
        nodes: Shards with their replicas.
        usd_per_hour: None when no price is at hand.
        serverless_usd_per_hour: The same bytes in ElastiCache Serverless.
        gbps: Traffic when every prompt is written once and read once.
    """

    node: CacheNode
    shards: int
    replicas: int
    nodes: int
    tokens: int
    bytes: int
    value_bytes: int
    gbps: float
    usd_per_hour: float | None
    serverless_usd_per_hour: float | None


def tokens_held(load: Load) -> int:
    """Return the tokens that the cache holds at this load."""
    return max(
        load.concurrent * load.context, math.ceil(load.requests_per_s * load.ttl_s * load.prompt)
    )


def fit_cache(architecture: Architecture, load: Load, region: str) -> CacheFit | Misfit:
    """Return the cheapest replication group that holds the load's tokens."""
    tokens = tokens_held(load)
    size = architecture.latent_bytes_per_token(load.kv_dtype)
    need = tokens * size
    most = int(limits("elasticache")["nodes_per_cluster"])
    found = []
    for node in cache_nodes():
        shards = max(1, math.ceil(need / (node.usable_gib * GIB * USABLE_SHARE)))
        nodes = shards * (1 + REPLICAS)
        if nodes <= most and (region in node.regions):
            row = price("elasticache", node.name, region)
            found.append((node, shards, nodes, row.usd * nodes if row else None))
    if not found:
        largest = max(node.usable_gib for node in cache_nodes()) * GIB * USABLE_SHARE
        holds = int(largest * (most // (1 + REPLICAS)))
        fp8 = "" if load.kv_dtype == "fp8" else "kv_dtype=fp8, "
        return Misfit(
            instance="cache.r7g.16xlarge",
            reason=(
                f"{tokens:,} tokens of {size:,} bytes are {need / GIB:,.0f} GiB; "
                f"a cluster of {most} nodes in {region} holds {holds / GIB:,.0f}"
            ),
            remedy=f"ttl_s={max(1, int(load.ttl_s * holds / need))}, {fp8}or less load",
        )
    # Those with a price first, the cheapest; without any price, the fewest nodes.
    node, shards, nodes, usd = min(
        found, key=lambda row: (row[3] is None, row[3] or 0.0, row[2], row[0].usable_gib)
    )
    data = price("elasticache", "serverless-data", region)
    requests = price("elasticache", "serverless-requests", region)
    moved = 2 * load.requests_per_s * load.prompt * size  # written once, read once
    serverless = None
    if data and requests and need / 1e9 <= limits("elasticache")["serverless_max_gb"]:
        # An ECPU is a kilobyte moved.
        serverless = need / 1e9 * data.usd + moved / 1e3 * 3600 / 1e6 * requests.usd
    return CacheFit(
        node=node,
        shards=shards,
        replicas=REPLICAS,
        nodes=nodes,
        tokens=tokens,
        bytes=need,
        value_bytes=BLOCK_TOKENS * size,
        gbps=moved * 8 / 1e9,
        usd_per_hour=usd,
        serverless_usd_per_hour=serverless,
    )
