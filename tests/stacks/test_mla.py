"""Settings of latent attention: each followed from YAML to the template."""

from typing import Any

import pytest

from tests.cdk_app import literal, only, resources

from config import ConfigError  # isort: skip
from stacks.mla_settings import MlaSettings  # isort: skip
from stacks.mla_cache import CacheLoad, CacheSettings  # isort: skip
from tests.stacks.fleet_reader import FLEET_TRACE, data, env_line  # isort: skip
from tests.stacks.together import Together  # isort: skip

CACHE, USER = "AWS::ElastiCache::ReplicationGroup", "AWS::ElastiCache::User"
PARAMETERS = "AWS::ElastiCache::ParameterGroup"
SERVERLESS = "AWS::ElastiCache::ServerlessCache"


def cache(name: str) -> Any:
    return lambda template: only(template, CACHE)[name]


def serverless(template: dict) -> dict:
    return only(template, SERVERLESS)["CacheUsageLimits"]


def alarm(name: str) -> Any:
    def read(template: dict) -> float:
        found = resources(template, "AWS::CloudWatch::Alarm").items()
        return next(each["Properties"]["Threshold"] for key, each in found if name in key)

    return read


def size(template: dict) -> str:
    return template["Outputs"]["CacheSize"]["Value"]


def secret(template: dict) -> dict:
    return only(template, "AWS::SecretsManager::Secret")["GenerateSecretString"]


TRACE = {
    **FLEET_TRACE,
    "model": ("kimi-k2", env_line("ISOMORPH_MODEL"), "kimi-k2"),
    "engine": ("native", env_line("ISOMORPH_ENGINE"), "native"),
    "instance_type": ("r7i.8xlarge", lambda found: data(found)["InstanceType"], "r7i.8xlarge"),
    "architecture": ("deepseek-v3", lambda found: "of 140,544 bytes" in size(found), True),  # fp32
    "block_tokens": (128, env_line("ISOMORPH_LATENT_BLOCK"), "128"),
    "tenant": ("blue", env_line("ISOMORPH_TENANT"), "blue"),
}
# Of the sections inside: what is given with it, how to read it, what it becomes.
INSIDE: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "cache.kind": ({"kind": "serverless"}, lambda found: len(resources(found, CACHE)), 0),
    "cache.dtype": ({"dtype": "fp8"}, env_line("ISOMORPH_LATENT_DTYPE"), "fp8"),
    "cache.engine": ({"engine": "redis"}, cache("Engine"), "redis"),
    "cache.node_type": ({"node_type": "cache.r8g.2xlarge"}, cache("CacheNodeType"),
                        "cache.r8g.2xlarge"),
    "cache.shards": ({"shards": 5}, cache("NumNodeGroups"), 5),
    "cache.replicas": ({"replicas": 2}, cache("ReplicasPerNodeGroup"), 2),
    "cache.failover": ({"failover": True}, cache("AutomaticFailoverEnabled"), True),
    "cache.max_gb": ({"kind": "serverless", "max_gb": 77},
                     lambda found: serverless(found)["DataStorage"]["Maximum"], 77),
    "cache.max_ecpu": ({"kind": "serverless", "max_ecpu": 7000},
                       lambda found: serverless(found)["ECPUPerSecond"]["Maximum"], 7000),
    "cache.policy": ({"policy": "volatile-ttl"},
                     lambda found: only(found, PARAMETERS)["Properties"]["maxmemory-policy"],
                     "volatile-ttl"),
    "cache.snapshot_days": ({"snapshot_days": 3}, cache("SnapshotRetentionLimit"), 3),
    "cache.access": ({"access": "token"}, lambda found: len(resources(found, USER)), 0),
    "cache.tls": ({"tls": True}, cache("TransitEncryptionEnabled"), True),
    "cache.password_length": ({"password_length": 99},
                              lambda found: secret(found)["PasswordLength"], 99),
    "cache.rotation_days": ({"rotation_days": 7}, lambda found: only(
        found, "AWS::SecretsManager::RotationSchedule")["RotationRules"][
            "AutomaticallyAfterDays"], 7),
    "cache.alarm_memory_percent": ({"alarm_memory_percent": 71}, alarm("Shard1Memory"), 71),
    "cache.alarm_evictions": ({"alarm_evictions": 72}, alarm("Shard1Evictions"), 72),
    "cache.alarm_hit_percent": ({"alarm_hit_percent": 73}, alarm("HitRate"), 73),
    "load.concurrent": ({"concurrent": 1000}, lambda found: "1000 x 2,048" in size(found), True),
    "load.context": ({"context": 4096}, lambda found: "8 x 4,096" in size(found), True),
    "load.output": ({"output": 48}, lambda found: "x 2,000 tokens" in size(found), True),
    "load.requests_per_s": ({"requests_per_s": 2.5}, lambda found: "2.5 prompts/s" in size(found),
                            True),
    "load.ttl_s": ({"ttl_s": 90}, env_line("ISOMORPH_LATENT_TTL_S"), "90"),
}  # fmt: skip


@pytest.fixture(scope="module")
def everything(synthesize):
    return synthesize(None, mla={name: given for name, (given, _, _) in TRACE.items()})["mla"]


@pytest.fixture(scope="module")
def sections(synthesize):
    return Together(
        {name: {name.partition(".")[0]: given} for name, (given, _, _) in INSIDE.items()},
        lambda given: synthesize(None, mla=given)["mla"],
        apart=("cache.access", "cache.tls", "cache.failover",
               "load.concurrent", "load.context", "load.output"),
        kind=lambda given: given.get("cache", {}).get("kind"),
    )  # fmt: skip


def test_every_setting_is_followed():
    assert {*TRACE, "cache", "load"} == set(MlaSettings.model_fields)
    inside = {"cache": CacheSettings, "load": CacheLoad}
    assert set(INSIDE) == {
        f"{section}.{name}" for section, model in inside.items() for name in model.model_fields
    }


@pytest.mark.parametrize("name", TRACE)
def test_setting_reaches_the_template(everything, name):
    _, read, expected = TRACE[name]
    assert read(everything) == expected


@pytest.mark.parametrize("name", INSIDE)
def test_setting_of_a_section_reaches_the_template(sections, name):
    _, read, expected = INSIDE[name]
    assert read(sections[name]) == expected


def test_every_setting_says_what_it_is():
    for model in (MlaSettings, CacheSettings, CacheLoad):
        assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"instance_type": "c7i.large"}, "instance_type: got 'c7i.large'; allowed: r7i.12xlarge, "),
        ({"engine": "llama.cpp"}, "engine: got 'llama.cpp'; allowed: 'native'"),
        ({"architecture": "gpt-5"}, "architecture: no model 'gpt-5': not a folder, not a file, "),
        ({"model": "llama-3-8b"}, "architecture: llama-3-8b has no latent attention"),
        ({"cache": {"dtype": "fp16"}}, "cache.dtype: got 'fp16'; allowed: 'auto', 'fp8'"),
        ({"block_tokens": 48}, "block_tokens: got 48; allowed: 16, 32, 64, 128, 256"),
        ({"context": 2016, "block_tokens": 64},
         "block_tokens: got 64, which does not divide context, 2016; allowed with it: 16, 32"),
        ({"context": 1001, "block_tokens": 64},
         "does not divide context, 1001; allowed with it: none, so change context"),
        ({"tenant": "A b"}, "tenant: got 'A b'; must match "),
        ({"load": {"ttl_s": 0}}, "load.ttl_s: got 0; should be greater than or equal to 1"),
        ({"load": {"context": 200000}}, "load: context is 200,000; deepseek-v3 was made for"),
        ({"load": {"output": 2048}}, "load: output is 2,048; it must leave a prompt in 2,048"),
        ({"load": {"hours": 1}}, "load.hours: unknown key; allowed: concurrent, context, output, "),
        ({"cache": {"tls": False}}, "cache.tls: got False with access 'user'; a login over plain"),
        ({"cache": {"tls": False, "access": "token"}}, "cache.tls: got False with access 'token'"),
        ({"cache": {"password_length": 15}},
         "cache.password_length: got 15; ElastiCache takes passwords of 16 to 128 characters"),
        ({"cache": {"password_length": 129}}, "cache.password_length: got 129; ElastiCache takes"),
        ({"cache": {"replicas": 0, "failover": True}},
         "cache.failover: got True with replicas 0; failover takes a second node: replicas: 1"),
        ({"cache": {"replicas": 2, "failover": False}},
         "cache.failover: got False with replicas 2; a replica takes over by itself"),
        ({"cache": {"shards": 3, "replicas": 0}},
         "cache.replicas: got 0 with shards 3; cluster mode has failover, which takes replicas: 1"),
        ({"cache": {"node_type": "cache.r7i.large"}},
         "cache.node_type: got 'cache.r7i.large'; sold in us-east-1: cache.r7g.large, "),
        ({"cache": {"node_type": "cache.r7g.large", "shards": 80}},
         "cache: 80 shards of 2 nodes are more than the 90 nodes of a cluster"),
        ({"cache": {"node_type": "cache.r7g.large", "shards": 1, "replicas": 0},
          "context": 163840, "load": {"concurrent": 1}},
         "cache: holds 159,765 tokens, and one request of the load has 163,840; a larger "),
        ({"cache": {"kind": "serverless", "max_gb": 1}, "context": 16384},
         "cache: holds 14,230 tokens, and one request of the load has 16,384"),
        ({"cache": {"kind": "serverless", "shards": 2}},
         "cache.shards: got 2 with kind 'serverless', which has max_gb and max_ecpu"),
        ({"cache": {"kind": "serverless", "node_type": "cache.r7g.large"}},
         "cache.node_type: got 'cache.r7g.large' with kind 'serverless', which has max_gb"),
        ({"cache": {"kind": "serverless", "access": "token"}},
         "cache.access: got 'token' with kind 'serverless', which knows users alone: 'user'"),
        ({"load": {"concurrent": 900000}}, "cache: 18,900,000,000 tokens of 70,272 bytes are"),
    ],
)  # fmt: skip
def test_fails_when_a_setting_is_wrong(synthesize, settings, line):
    with pytest.raises(ConfigError) as caught:
        synthesize(None, mla=settings)
    [found] = str(caught.value).splitlines()
    assert found.startswith("config/test.yaml: innovations.mla.")
    assert line in found


def test_an_explicit_size_stands_and_the_output_says_that_it_does_not_fit(synthesize):
    settings = {"cache": {"node_type": "cache.r7g.large", "shards": 1}, "context": 8192,
                "load": {"concurrent": 64}}  # fmt: skip
    template = synthesize(None, mla=settings)["mla"]
    assert only(template, CACHE)["CacheNodeType"] == "cache.r7g.large"
    assert "does not fit: prompts are thrown out after about" in size(template)


@pytest.mark.parametrize(
    ("settings", "bytes_of_a_token"),
    [({}, 70_272), ({"dtype": "bfloat16"}, 70_272), ({"dtype": "float32"}, 140_544),
     ({"cache": {"dtype": "fp8"}}, 39_101),
     ({"cache": {"dtype": "fp8"}, "dtype": "float32"}, 39_101)],
)  # fmt: skip
def test_the_cache_is_sized_by_what_a_token_leaves_in_it(synthesize, settings, bytes_of_a_token):
    template = synthesize(None, mla=settings)["mla"]
    assert f"tokens of {bytes_of_a_token:,} bytes" in size(template)


def test_a_request_that_is_too_large_for_the_cache_may_fit_it_in_fp8(synthesize):
    settings = {"cache": {"kind": "serverless", "max_gb": 1}, "context": 16384}
    with pytest.raises(ConfigError, match="holds 14,230 tokens, and one request of the load has"):
        synthesize(None, mla=settings)
    settings["cache"]["dtype"] = "fp8"
    assert "holds 25,574 tokens" in size(synthesize(None, mla=settings)["mla"])


def test_the_nodes_are_told_where_the_cache_is_and_not_its_password(templates):
    template = templates["mla"]
    told = {
        name: env_line(f"ISOMORPH_LATENT_{name}")(template)
        for name in ("STORE_URL", "STORE_CLUSTER", "STORE_SECRET", "STORE_CA", "BLOCK", "DTYPE",
                     "TTL_S")
    }  # fmt: skip
    [secret_id] = resources(template, "AWS::SecretsManager::Secret")
    assert told["STORE_URL"].startswith("rediss://{")
    assert told["STORE_CLUSTER"] == "1"
    assert told["STORE_SECRET"] == f"{{{secret_id}}}"
    assert (told["STORE_CA"], told["BLOCK"], told["DTYPE"], told["TTL_S"]) == (
        "", "64", "auto", "600",
    )  # fmt: skip
    assert "resolve:" not in literal(data(template)["UserData"])


def test_one_node_is_no_cluster(synthesize):
    template = synthesize(None, mla={"cache": {"replicas": 0}})["mla"]
    assert env_line("ISOMORPH_LATENT_STORE_CLUSTER")(template) == "0"
    group = only(template, CACHE)
    assert (group["ClusterMode"], group["AutomaticFailoverEnabled"], group["MultiAZEnabled"]) == (
        "disabled", False, False,
    )  # fmt: skip
    assert "PrimaryEndPoint.Address" in str(template["Outputs"]["LatentStore"])


def test_the_outputs_are_those_that_commands_read(templates):
    assert set(templates["mla"]["Outputs"]) == {
        "CacheSize", "Endpoint", "Engine", "Fleet", "HyperPodSettings", "LMCacheSettings",
        "LatentSecret", "LatentStore", "Weights",
    }  # fmt: skip
