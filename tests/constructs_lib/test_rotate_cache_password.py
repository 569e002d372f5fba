"""The rotation function: its four steps against Secrets Manager, a cache that checks passwords."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from constructs_lib.functions.rotate_cache_password import index
from constructs_lib.functions.rotate_cache_password.index import RotationError, handler
from local_aws.caches.authority import Authority

OLD, NEXT = "a" * 32, "11111111-1111-4111-8111-111111111111"


class FakeCache:
    """Answers AUTH over TLS as ElastiCache does, and takes changes of passwords."""

    def __init__(self, authority: Authority) -> None:
        self.passwords, self.changes, self.states = [OLD], [], ["active"]
        self.reply: bytes | None = None
        self._context = authority.context()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    words = connection.recv(4096).split(b"\r\n")
                    right = words[6].decode() in self.passwords
                    wrong = b"-WRONGPASS invalid username-password pair\r\n"
                    connection.sendall(self.reply or (b"+OK\r\n" if right else wrong))
            except OSError:
                continue

    def close(self) -> None:
        self._listener.close()

    def modify_user(self, *, UserId: str, Passwords: list[str]) -> None:  # noqa: N803
        self.changes.append((UserId, list(Passwords)))
        self.passwords = list(Passwords)

    def modify_replication_group(self, **given: Any) -> None:
        self.changes.append((given["ReplicationGroupId"], given["AuthTokenUpdateStrategy"]))
        kept = self.passwords[-1:] if given["AuthTokenUpdateStrategy"] == "ROTATE" else []
        self.passwords = [*kept, given["AuthToken"]]

    def _status(self) -> str:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def describe_users(self, **_: Any) -> dict[str, Any]:
        return {"Users": [{"Status": self._status()}]}

    def describe_replication_groups(self, **_: Any) -> dict[str, Any]:
        return {"ReplicationGroups": [{"Status": self._status()}]}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["user", "token"])
def cache(
    request: pytest.FixtureRequest, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeCache]:
    fake = FakeCache(authority)
    trusted: Path = authority.trusted
    for name, value in {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "ISOMORPH_CACHE_USER": "test-node" if request.param == "user" else "",
        "ISOMORPH_CACHE_GROUP": "test-group",
        "ISOMORPH_CACHE_HOST": "localhost",
        "ISOMORPH_CACHE_PORT": str(fake.port),
        "SSL_CERT_FILE": str(trusted),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(index.time, "sleep", lambda _: None)
    with mock_aws():
        real = boto3.client
        monkeypatch.setattr(
            index.boto3, "client", lambda name: fake if name == "elasticache" else real(name)
        )
        yield fake
    fake.close()


@pytest.fixture
def secret(cache: FakeCache) -> str:
    secrets = index.boto3.client("secretsmanager")
    name = "node" if index.os.environ["ISOMORPH_CACHE_USER"] else "default"
    value = json.dumps({"username": name, "password": OLD})
    arn = secrets.create_secret(Name="login", SecretString=value)["ARN"]
    return str(arn)


def begin(secret: str, version: str = NEXT) -> None:
    """Do what RotateSecret does before it calls the function."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.secretsmanager.models import secretsmanager_backends

    record = secretsmanager_backends[DEFAULT_ACCOUNT_ID]["us-east-1"].secrets[secret]
    record.rotation_requested = record.rotation_enabled = True
    record.versions[version] = {"version_id": version, "version_stages": ["AWSPENDING"],
                                "createdate": 0}  # fmt: skip


def step(secret: str, name: str, version: str = NEXT) -> None:
    handler({"Step": name, "SecretId": secret, "ClientRequestToken": version})


def password(secret: str, stage: str) -> str:
    found = index.boto3.client("secretsmanager").get_secret_value(
        SecretId=secret, VersionStage=stage
    )
    return str(json.loads(found["SecretString"])["password"])


STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")


def test_a_rotation_gives_the_cache_a_new_password_and_ends_the_old(secret, cache):
    begin(secret)
    for name in STEPS:
        step(secret, name)
    new = password(secret, "AWSCURRENT")
    assert new != OLD
    assert len(new) == len(OLD)
    assert new.isalnum()
    assert cache.passwords == [new]
    assert password(secret, "AWSPREVIOUS") == OLD


def test_every_step_may_come_twice(secret, cache):
    begin(secret)
    for name in STEPS:
        step(secret, name)
        held = (password(secret, "AWSCURRENT"), list(cache.passwords))
        step(secret, name)
        assert (password(secret, "AWSCURRENT"), cache.passwords) == held


def test_the_old_password_holds_until_the_new_one_is_current(secret, cache):
    begin(secret)
    for name in STEPS[:3]:
        step(secret, name)
    assert cache.passwords == [OLD, password(secret, "AWSPENDING")]
    assert password(secret, "AWSCURRENT") == OLD


def test_a_finish_that_was_cut_off_is_finished(secret, cache, monkeypatch):
    begin(secret)
    for name in STEPS[:3]:
        step(secret, name)
    with monkeypatch.context() as cut:
        cut.setattr(index.Cache, "take", lambda *_, **__: (_ for _ in ()).throw(OSError("cut")))
        with pytest.raises(OSError, match="cut"):
            step(secret, "finishSecret")
    step(secret, "finishSecret")
    assert cache.passwords == [password(secret, "AWSCURRENT")]


def test_it_waits_until_the_cache_can_be_changed(secret, cache):
    cache.states = ["modifying", "modifying", "active"]
    begin(secret)
    for name in STEPS[:2]:
        step(secret, name)
    assert cache.states == ["active"]
    assert len(cache.passwords) == 2


def test_fails_when_the_cache_does_not_settle(secret, cache, monkeypatch):
    cache.states = ["modifying"]
    monkeypatch.setattr(index, "_WAIT_S", -1)
    begin(secret)
    step(secret, "createSecret")
    with pytest.raises(RotationError, match="the cache is still 'modifying' after"):
        step(secret, "setSecret")


def test_fails_when_the_cache_refuses_the_next_password(secret, cache, monkeypatch):
    monkeypatch.setattr(index, "_LOGIN_S", -1)
    begin(secret)
    step(secret, "createSecret")
    with pytest.raises(RotationError, match="the cache refuses the next password"):
        step(secret, "testSecret")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"password": "short"}, "the next password is not one that ElastiCache takes"),
        ({"password": "p@ssword" * 4}, "allowed: 16 to 128 letters"),
        ({"username": "other"}, "the next version names another user"),
    ],
)
def test_fails_when_someone_put_a_next_version_that_cannot_be(secret, cache, value, message):
    begin(secret)
    before = {"username": json.loads(_current(secret))["username"], "password": "b" * 32}
    index.boto3.client("secretsmanager").put_secret_value(
        SecretId=secret, ClientRequestToken=NEXT, VersionStages=["AWSPENDING"],
        SecretString=json.dumps({**before, **value}),
    )  # fmt: skip
    with pytest.raises(RotationError, match=message):
        step(secret, "setSecret")
    assert cache.changes == []


def _current(secret: str) -> str:
    return str(
        index.boto3.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"]
    )


def test_fails_when_the_answer_is_none_of_auths(secret, cache):
    begin(secret)
    step(secret, "createSecret")
    cache.reply = b"-LOADING the dataset is being loaded\r\n"
    with pytest.raises(RotationError, match="the cache answers AUTH with b'-LOADING"):
        step(secret, "setSecret")


def test_a_server_that_is_not_the_cache_gets_no_password(secret, cache, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    begin(secret)
    step(secret, "createSecret")
    with pytest.raises(ssl.SSLCertVerificationError):
        step(secret, "setSecret")


def test_fails_when_the_version_is_not_to_be_rotated(secret):
    begin(secret)
    with pytest.raises(RotationError, match=r"version 0000 of .* is not to be rotated"):
        step(secret, "createSecret", version="0000")


def test_fails_when_the_secret_does_not_rotate(secret):
    with pytest.raises(RotationError, match="is not set up for rotation"):
        step(secret, "createSecret")


def test_fails_when_the_step_is_unknown(secret):
    with pytest.raises(RotationError, match="the step is 'dropSecret'; allowed: createSecret, "):
        step(secret, "dropSecret")
