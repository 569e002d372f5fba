"""The router of pools: which pool's experts are warm for a text.

Tokens are routed to experts inside of the engine, layer by layer. What is chosen here is which pool
of servers a whole request goes to, before any model has read it.
"""

from model_code.moe.route.router import POOL_HEADER, POOLS_FILE, PoolRouter

__all__ = ["POOLS_FILE", "POOL_HEADER", "PoolRouter"]
