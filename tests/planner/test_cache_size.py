"""The size of a cache of latents: the planner's own, and what was asked for."""

import dataclasses

import pytest

from planner import plan
from planner.cache_size import CacheAsk, cache_size
from planner.errors import PlanError
from planner.load import Load
from planner.sizing import latent_cache
from tests.planner.common import model

V3 = model("deepseek-v3")
LOAD = Load(concurrent=32, context=8192)
REGION = "us-east-1"


def test_what_nobody_asks_for_is_what_the_plan_prints():
    planned = latent_cache(V3, LOAD, REGION)
    found = cache_size(V3, LOAD, REGION)
    assert (found.node_type, found.shards, found.replicas) == (
        planned.node.name, planned.shards, planned.replicas,
    )  # fmt: skip
    assert found.fits


def test_the_sum_is_told_with_its_numbers():
    found = cache_size(V3, LOAD, REGION)
    assert found.tokens == round(0.625 * 7936 * 600)
    assert "tokens of 70,272 bytes" in found.reasons[0]
    assert "0.625 prompts/s x 7,936 tokens x 600 s" in found.reasons[1]


def test_in_fp8_a_token_is_its_latent_a_scale_and_its_key_in_16_bits():
    assert V3.latent_bytes_per_token("fp8") == 61 * (512 + 1 + 2 * 64)
    assert V3.latent_bytes_per_token() == V3.kv_bytes_per_token() == 70_272
    found = cache_size(V3, dataclasses.replace(LOAD, kv_dtype="fp8"), REGION)
    assert found.fits
    assert "tokens of 39,101 bytes" in found.reasons[0]
    ask = CacheAsk(node_type="cache.r7g.4xlarge")
    assert cache_size(V3, dataclasses.replace(LOAD, kv_dtype="fp8"), REGION, ask).shards == 2


def test_the_plan_asks_for_the_cache_that_it_sized():
    found = plan("deepseek-v3", "concurrent=32,context=8192,kv_dtype=fp8")
    cache = next(each for each in found.placements if each.service == "ElastiCache")
    assert cache.settings["cache"]["dtype"] == "fp8"
    assert "x 39,101 bytes" in cache.reasons[0]
    plain = plan("deepseek-v3", "concurrent=32,context=8192")
    cache = next(each for each in plain.placements if each.service == "ElastiCache")
    assert "dtype" not in cache.settings["cache"]


def test_a_node_type_decides_the_shards():
    found = cache_size(V3, LOAD, REGION, CacheAsk(node_type="cache.r7g.4xlarge"))
    assert found.shards == 3  # 194.8 GiB over 80% of 105.81
    assert found.fits


def test_shards_decide_the_node_type():
    found = cache_size(V3, LOAD, REGION, CacheAsk(shards=2))
    assert found.shards == 2
    assert found.fits
    smaller = cache_size(V3, LOAD, REGION, CacheAsk(shards=2, node_type="cache.r7g.2xlarge"))
    assert not smaller.fits


def test_an_explicit_size_stands_and_says_that_it_does_not_fit():
    found = cache_size(V3, LOAD, REGION, CacheAsk(node_type="cache.r7g.large", shards=1))
    assert (found.node_type, found.shards, found.fits) == ("cache.r7g.large", 1, False)
    assert found.holds < found.tokens
    assert "does not fit: prompts are thrown out after about 32 s" in found.reasons[-1]


def test_without_replicas_there_is_one_shard():
    found = cache_size(V3, LOAD, REGION, CacheAsk(replicas=0))
    assert (found.shards, found.node_type) == (1, "cache.r7g.12xlarge")


def test_serverless_holds_what_its_limit_says():
    found = cache_size(V3, LOAD, REGION, CacheAsk(serverless_gb=100))
    assert found.holds == 100_000_000_000 // 70_272
    assert not found.fits


@pytest.mark.parametrize(
    ("ask", "region", "message"),
    [
        (CacheAsk(node_type="cache.r7i.large"), REGION,
         "got 'cache.r7i.large'; sold in us-east-1: cache.r7g.large, "),
        (CacheAsk(), "nowhere-1", "no cache node that is sold in nowhere-1"),
        (CacheAsk(shards=1), "nowhere-1", "no cache node that is sold in nowhere-1"),
        (CacheAsk(node_type="cache.r7g.large", shards=60), REGION,
         "60 shards of 2 nodes are more than the 90 nodes of a cluster"),
    ],
)  # fmt: skip
def test_fails_when_the_size_cannot_be(ask, region, message):
    with pytest.raises(PlanError) as caught:
        cache_size(V3, LOAD, region, ask)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kv_dtype", "remedy"), [("bf16", r"\d+, kv_dtype=fp8, or less load"), ("fp8", r"\d+, or less")]
)
def test_fails_when_no_cluster_holds_the_load(kv_dtype, remedy):
    load = Load(concurrent=9000, context=8192, ttl_s=3600, kv_dtype=kv_dtype)
    with pytest.raises(PlanError, match=f"what would fit: ttl_s={remedy}"):
        cache_size(V3, load, REGION)
