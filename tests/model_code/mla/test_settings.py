"""The store's settings and its secret: what is read, and what each mistake is told."""

import json
import re
from pathlib import Path

import pytest

from model_code.common.errors import SettingsError
from model_code.common.server.settings import Settings
from model_code.mla.serve.reuse import Reuse
from model_code.mla.store.errors import UnavailableError
from model_code.mla.store.resp import Address, Credentials
from model_code.mla.store.secret import SecretCredentials
from model_code.mla.store.settings import StoreSettings
from tests.model_code.mla.valkey import make_certificate

URL = {"ISOMORPH_LATENT_STORE_URL": "rediss://cache.example:6380"}
SERVER = {"ISOMORPH_MODEL": "m", "ISOMORPH_WEIGHTS": "w", "ISOMORPH_STATE": "s"}


def read(**more: str) -> StoreSettings:
    found = StoreSettings.from_environment(URL | {f"ISOMORPH_{k}": v for k, v in more.items()})
    assert found
    return found


def test_defaults() -> None:
    assert read() == StoreSettings(
        address=Address("cache.example", 6380), tls=True, cluster=False, secret="", ca="",
        block=256, ttl_s=3600, tenant="default", dtype="auto",
    )  # fmt: skip
    assert StoreSettings.from_environment({}) is None


def test_everything_that_can_be_set(tmp_path: Path) -> None:
    certificate, _ = make_certificate(tmp_path)
    found = read(
        LATENT_STORE_CLUSTER="1", LATENT_STORE_SECRET="arn:x", LATENT_BLOCK="64",
        LATENT_TTL_S="60", TENANT="a.b", LATENT_DTYPE="fp8", LATENT_STORE_CA=str(certificate),
    )  # fmt: skip
    assert (found.cluster, found.secret, found.block, found.ttl_s, found.tenant, found.dtype) == (
        True, "arn:x", 64, 60, "a.b", "fp8",
    )  # fmt: skip
    context = found.tls_context()
    assert context is not None
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1
    plain = read(LATENT_STORE_URL="redis://[::1]")
    assert plain.address == Address("::1", 6379)
    assert plain.tls_context() is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"LATENT_STORE_URL": "http://h"}, "is no address of a store; allowed: rediss://HOST:PORT"),
        ({"LATENT_STORE_URL": "rediss://u:hunter2@h"}, "password being in ISOMORPH_LATENT_STORE_"),
        ({"LATENT_STORE_URL": "rediss://h:99999"}, "is no address of a store"),
        ({"LATENT_STORE_URL": "rediss://h/0"}, "is no address of a store"),
        ({"LATENT_STORE_URL": "rediss://"}, "is no address of a store"),
        (
            {"LATENT_STORE_URL": "redis://h", "LATENT_STORE_SECRET": "arn"},
            "ISOMORPH_LATENT_STORE_URL begins with redis://, which would send the password of "
            "ISOMORPH_LATENT_STORE_SECRET unencrypted; allowed with a secret: rediss://",
        ),
        (
            {"LATENT_STORE_CA": "/no/such"},
            "ISOMORPH_LATENT_STORE_CA is '/no/such'; it must be a file of PEM certificates: "
            "No such file or directory",
        ),
        ({"LATENT_STORE_CLUSTER": "yes"}, "ISOMORPH_LATENT_STORE_CLUSTER is 'yes'; allowed: 0, 1"),
        (
            {"LATENT_BLOCK": "100"},
            "ISOMORPH_LATENT_BLOCK is '100'; blocks must divide 256 tokens: allowed are 16, 32, "
            "64, 128 and 256",
        ),
        ({"LATENT_DTYPE": "fp16"}, "ISOMORPH_LATENT_DTYPE is 'fp16'; allowed: auto, fp8"),
        ({"LATENT_BLOCK": "512"}, "blocks must divide 256 tokens"),
        ({"LATENT_BLOCK": "8"}, "blocks must divide 256 tokens"),
        ({"LATENT_BLOCK": "²56"}, "blocks must divide 256 tokens"),
        (
            {"LATENT_TTL_S": "0"},
            "ISOMORPH_LATENT_TTL_S is '0'; allowed: whole numbers from 1 to 2592000",
        ),
        ({"LATENT_TTL_S": "forever"}, "allowed: whole numbers from 1"),
        (
            {"TENANT": "a b"},
            "ISOMORPH_TENANT is 'a b'; allowed: 1 to 64 letters, digits and ._-",
        ),
    ],
)
def test_each_mistake_is_told_in_one_line(given: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)) as told:
        read(**given)
    assert "\n" not in str(told.value)
    assert "hunter2" not in str(told.value)


def test_only_the_native_engine_reuses() -> None:
    native = SERVER | {"ISOMORPH_ENGINE": "native"}
    assert Reuse.from_environment(native, Settings.from_environment(native)) is None
    assert Reuse.from_environment(native | URL, Settings.from_environment(native))
    other = Settings.from_environment(SERVER | {"ISOMORPH_ENGINE": "llama.cpp"})
    with pytest.raises(SettingsError, match=r"is 'llama.cpp'; the store of latents is for native"):
        Reuse.from_environment(URL, other)


@pytest.mark.usefixtures("aws")
def test_the_secret_is_fetched_once_and_again_when_it_is_refused() -> None:
    import boto3

    manager = boto3.client("secretsmanager")
    value = {"username": "u", "password": "one", "more": 1}
    arn = manager.create_secret(Name="s", SecretString=json.dumps(value))["ARN"]
    now = 100.0
    source = SecretCredentials(arn, clock=lambda: now)
    assert source(False) == Credentials("u", "one")
    manager.put_secret_value(SecretId=arn, SecretString=json.dumps(value | {"password": "two"}))
    now += 60
    assert source(False) == Credentials("u", "one")
    assert source(True) == Credentials("u", "two")
    manager.put_secret_value(SecretId=arn, SecretString=json.dumps(value | {"password": "three"}))
    assert source(True) == Credentials("u", "two"), "not at once again"
    now += 10
    assert source(True) == Credentials("u", "three")


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    "text", ["hunter2", "[]", '{"username": "u"}', '{"username": 1, "password": 2}']
)
def test_a_secret_of_another_form_is_not_shown(text: str) -> None:
    import boto3

    arn = boto3.client("secretsmanager").create_secret(Name="s", SecretString=text)["ARN"]
    source = SecretCredentials(arn)
    with pytest.raises(UnavailableError, match="must be JSON with a username and a password") as no:
        source(False)
    assert "hunter2" not in str(no.value)
    assert no.value.__cause__ is None
    with pytest.raises(UnavailableError, match="could not be read a moment ago"):
        source(False)
