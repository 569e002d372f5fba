"""What other servers are told to share the cache of latents: HyperPod's operator, and LMCache.

Neither parameter has a login in it: a parameter is no place for one. Whoever starts a client reads
the secret (output LatentSecret) and puts `USER:PASSWORD@` after the two slashes; passwords here are
letters and digits, so nothing needs an escape.

Formats:
    HyperPod: docs.aws.amazon.com/sagemaker/latest/dg/
        sagemaker-hyperpod-model-deployment-caching-routing.html (`kvCacheSpec`)
    LMCache: docs/source/kv_cache/storage_backends/redis.rst and
        lmcache/v1/storage_backend/connector/redis_adapter.py, which takes `rediss://`
"""

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_ssm as ssm
from constructs import Construct


class LatentClients(Construct):
    """Settings of other servers, as parameters that a manifest or a start script reads.

    LMCache's Redis connector knows no cluster: it works with one shard, or serverless.

    Args:
        prefix: Of the parameters' names, such as /isomorph/prod/mla.
        url: rediss://HOST:PORT of the cache.
        block_tokens: Tokens of a value.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, prefix: str, url: str, block_tokens: int
    ) -> None:
        super().__init__(scope, construct_id)
        texts = {"HyperPod": hyperpod(url), "LMCache": lmcache(url, block_tokens)}
        for name, text in texts.items():
            parameter = ssm.StringParameter(
                self,
                name,
                parameter_name=f"{prefix}/{name.lower()}",
                string_value=text,
                description=f"how {name} shares the cache of latents; the login is in a secret",
            )
            CfnOutput(Stack.of(self), f"{name}Settings", value=parameter.parameter_name)


def hyperpod(url: str) -> str:
    """Return the part of an `InferenceEndpointConfig`'s spec that names the cache, in YAML."""
    return f"""\
kvCacheSpec:
  enableL1Cache: true
  enableL2Cache: true
  l2CacheSpec:
    l2CacheBackend: redis
    l2CacheLocalUrl: "{url}"
"""


def lmcache(url: str, chunk_tokens: int) -> str:
    """Return LMCache's configuration file, which LMCACHE_CONFIG_FILE names, in YAML.

    `naive` sends values as they are. A value is `chunk_tokens` long, as ours are.
    """
    return f"""\
chunk_size: {chunk_tokens}
local_cpu: true
max_local_cpu_size: 5.0
remote_url: "{url}"
remote_serde: naive
"""
