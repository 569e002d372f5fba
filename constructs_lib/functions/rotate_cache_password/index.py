"""Rotates the password of a latent cache, in the four steps that Secrets Manager calls.

Each step may be called again after it was done or half done, and then does only what is missing.
While both passwords are valid no node is locked out: one that was told the old password goes on,
and one that is refused asks Secrets Manager and gets the new one.

https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html
https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/auth.html (ROTATE, then SET)
"""

import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import boto3
from botocore.exceptions import ClientError

# What ElastiCache takes: 16 to 128 printable characters, of the specials only these.
PASSWORD = re.compile(r"[A-Za-z0-9!&#$^<>-]{16,128}")
_CONNECT_S = 5
_WAIT_S = 240  # for a change of the cache to end
_LOGIN_S = 30  # for its nodes to take a new password
_LIMIT = 65536


class RotationError(Exception):
    """What keeps a password from being rotated; Secrets Manager tries the step again."""


def handler(event: dict[str, str], _context: object = None) -> None:
    """Do one step of a rotation.

    Args:
        event: `Step`, `SecretId` and `ClientRequestToken`, as Secrets Manager sends them.
    """
    steps: dict[str, Callable[[Rotation], None]] = {
        "createSecret": Rotation.create,
        "setSecret": Rotation.set,
        "testSecret": Rotation.test,
        "finishSecret": Rotation.finish,
    }
    step = event["Step"]
    if step not in steps:
        raise RotationError(f"the step is {step!r}; allowed: {', '.join(steps)}")
    rotation = Rotation(event["SecretId"], event["ClientRequestToken"])
    rotation.check()
    steps[step](rotation)


class Rotation:
    """One rotation of one secret, whose value is JSON with `username` and `password`."""

    def __init__(self, secret: str, version: str) -> None:
        self._secret, self._version = secret, version
        self._secrets: Any = boto3.client("secretsmanager")
        self._cache = Cache()

    def check(self) -> None:
        """Refuse a version that Secrets Manager did not ask to rotate."""
        found = self._secrets.describe_secret(SecretId=self._secret)
        stages = found["VersionIdsToStages"].get(self._version)
        if not found.get("RotationEnabled"):
            raise RotationError(f"{self._secret} is not set up for rotation")
        if stages is None or not {"AWSPENDING", "AWSCURRENT"} & set(stages):
            raise RotationError(f"version {self._version} of {self._secret} is not to be rotated")

    def create(self) -> None:
        """Make the next password, unless this version has one already."""
        current = self._value("AWSCURRENT")
        try:
            self._value("AWSPENDING", self._version)
            return
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceNotFoundException":
                raise
        password = self._secrets.get_random_password(
            # Letters and digits alone: they need no escape in a URL, which other clients want.
            PasswordLength=len(current["password"]),
            ExcludePunctuation=True,
        )["RandomPassword"]
        self._secrets.put_secret_value(
            SecretId=self._secret,
            ClientRequestToken=self._version,
            SecretString=json.dumps({**current, "password": password}),
            VersionStages=["AWSPENDING"],
        )

    def set(self) -> None:
        """Let the cache take the next password beside the current one."""
        pending = self._value("AWSPENDING", self._version)
        if self._cache.accepts(pending):
            return
        current = self._value("AWSCURRENT")
        if not PASSWORD.fullmatch(pending["password"]):
            raise RotationError(
                "the next password is not one that ElastiCache takes; allowed: 16 to 128 letters, "
                "digits and !&#$^<>- (someone put this version by hand: put another)"
            )
        if current["username"] != pending["username"]:
            raise RotationError("the next version names another user; a rotation keeps the user")
        self._cache.take(pending["password"], beside=current["password"])

    def test(self) -> None:
        """Log in with the next password; a user is active before every node knows its password."""
        pending, deadline = self._value("AWSPENDING", self._version), time.monotonic() + _LOGIN_S
        while not self._cache.accepts(pending):
            if time.monotonic() > deadline:
                raise RotationError(f"the cache refuses the next password for {_LOGIN_S} s")
            time.sleep(1)

    def finish(self) -> None:
        """Make the next password the current one, then the only one."""
        before = self._secrets.describe_secret(SecretId=self._secret)["VersionIdsToStages"]
        [current] = [name for name, stages in before.items() if "AWSCURRENT" in stages]
        if current != self._version:
            self._secrets.update_secret_version_stage(
                SecretId=self._secret,
                VersionStage="AWSCURRENT",
                MoveToVersionId=self._version,
                RemoveFromVersionId=current,
            )
        self._cache.take(self._value("AWSCURRENT")["password"], beside=None)

    def _value(self, stage: str, version: str | None = None) -> dict[str, str]:
        named = {"VersionId": version} if version else {}
        found = self._secrets.get_secret_value(SecretId=self._secret, VersionStage=stage, **named)
        value: dict[str, str] = json.loads(found["SecretString"])
        return value


class Cache:
    """The cache, as the function's environment names it: a user of it, or its AUTH token."""

    def __init__(self) -> None:
        self._user = os.environ.get("ISOMORPH_CACHE_USER", "")
        self._group = os.environ.get("ISOMORPH_CACHE_GROUP", "")
        self._host = os.environ["ISOMORPH_CACHE_HOST"]
        self._port = int(os.environ["ISOMORPH_CACHE_PORT"])
        self._elasticache: Any = boto3.client("elasticache")

    def take(self, password: str, *, beside: str | None) -> None:
        """Make `password` valid, beside the old one or alone, and wait until it is."""
        self._wait()
        if self._user:
            passwords = [password] if beside is None else [beside, password]
            self._elasticache.modify_user(UserId=self._user, Passwords=passwords)
        else:
            self._elasticache.modify_replication_group(
                ReplicationGroupId=self._group,
                AuthToken=password,
                AuthTokenUpdateStrategy="SET" if beside is None else "ROTATE",
                ApplyImmediately=True,
            )
        self._wait()

    def _status(self) -> str:
        if self._user:
            [user] = self._elasticache.describe_users(UserId=self._user)["Users"]
            return str(user["Status"])
        [group] = self._elasticache.describe_replication_groups(ReplicationGroupId=self._group)[
            "ReplicationGroups"
        ]
        return str(group["Status"])

    def _wait(self) -> None:
        deadline = time.monotonic() + _WAIT_S
        while (status := self._status()) not in ("active", "available"):
            if time.monotonic() > deadline:
                raise RotationError(f"the cache is still {status!r} after {_WAIT_S} s")
            time.sleep(2)

    def accepts(self, login: dict[str, str]) -> bool:
        """Return whether the cache takes a login; one that cannot be reached is an OSError."""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection((self._host, self._port), timeout=_CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=self._host) as connection,
        ):
            words = ["AUTH", login["username"], login["password"]]
            connection.sendall(b"".join(_bulk(words)))
            answer = b""
            while not answer.endswith(b"\r\n") and len(answer) < _LIMIT:
                part = connection.recv(4096)
                if not part:
                    raise RotationError("the cache closed the connection")
                answer += part
        if answer == b"+OK\r\n":
            return True
        if answer.startswith(b"-WRONGPASS"):
            return False
        raise RotationError(f"the cache answers AUTH with {answer[:80]!a}")


def _bulk(words: list[str]) -> list[bytes]:
    """Return a command in the server's protocol (https://valkey.io/topics/protocol/)."""
    encoded = [word.encode() for word in words]
    sizes = [b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded]
    return [b"*%d\r\n" % len(encoded), *sizes]
