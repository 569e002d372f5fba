"""What HyperPod's operator and LMCache are told: the keys that their documents name, no login."""

import pytest
from ruamel.yaml import YAML

from tests.cdk_app import literal, resources

from stacks.mla_clients import hyperpod, lmcache  # isort: skip

URL = "rediss://cache.example:6379"


def test_hyperpod_gets_the_keys_that_its_page_names():
    assert YAML(typ="safe").load(hyperpod(URL)) == {
        "kvCacheSpec": {
            "enableL1Cache": True,
            "enableL2Cache": True,
            "l2CacheSpec": {"l2CacheBackend": "redis", "l2CacheLocalUrl": URL},
        }
    }


def test_lmcache_gets_the_keys_of_its_configuration_file():
    assert YAML(typ="safe").load(lmcache(URL, 64)) == {
        "chunk_size": 64,
        "local_cpu": True,
        "max_local_cpu_size": 5.0,
        "remote_url": URL,
        "remote_serde": "naive",
    }


@pytest.mark.parametrize("name", ["hyperpod", "lmcache"])
def test_the_parameters_have_the_address_and_no_login(templates, name):
    found = {
        each["Properties"]["Name"]: literal(each["Properties"]["Value"])
        for each in resources(templates["mla"], "AWS::SSM::Parameter").values()
    }
    text = found[f"/isomorph/test/mla/{name}"]
    assert '"rediss://{' in text
    assert "@" not in text
    assert "resolve:" not in text
