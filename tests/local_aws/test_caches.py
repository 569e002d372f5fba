"""A replication group is a real Valkey behind TLS, with the parameters and logins of its stack."""

import copy
import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import valkey
from valkey.cluster import ValkeyCluster
from valkey.exceptions import NoPermissionError, ValkeyClusterException

from local_aws.caches.runner import Caches, Wanted
from local_aws.caches.server import CacheError, Login, Server, kill_leftovers
from tests.local_aws.conftest import Emulator, alive, until
from tests.local_aws.samples_cache import CACHE
from tests.local_aws.templates import Template, assumed_by, attribute, ref, resource

ROOT = Path(__file__).parents[2]
FUNCTION = ROOT / "constructs_lib" / "functions" / "rotate_cache_password" / "index.py"
MAY = CACHE["Node"]["Properties"]["AccessString"] + " +cluster|slots +cluster|shards +cluster|nodes"
FIRST, SECOND = "a" * 32, "b" * 32
KEY = ("000000000000", "us-east-1", "group")


@pytest.fixture
def logins() -> list[Login]:
    return [Login("node", MAY, (FIRST,))]


@pytest.fixture
def caches(tmp_path: Path) -> Iterator[Caches]:
    played = Caches(tmp_path / "caches")
    yield played
    played.stop()


def play(caches: Caches, logins: list[Login], *, shards: int = 1, **parameters: str) -> list[int]:
    named = {name.replace("_", "-"): value for name, value in parameters.items()}
    return caches.play(KEY, Wanted(shards, named, shards > 1, lambda: logins))


def client(caches: Caches, port: int, password: str = FIRST) -> Any:
    return valkey.Valkey(
        host="localhost", port=port, username="node", password=password, ssl=True,
        ssl_ca_certs=str(caches.trusted), ssl_check_hostname=True,
    )  # fmt: skip


def refused(caches: Caches, port: int, password: str) -> bool:
    try:
        return not client(caches, port, password).ping()
    except valkey.AuthenticationError:
        return True


def test_a_user_logs_in_over_tls_and_may_do_no_more_than_nodes_do(caches, logins):
    [port] = play(caches, logins)
    node = client(caches, port)
    assert node.set("key", b"\x00" * 100_000, ex=60)
    assert node.get("key") == b"\x00" * 100_000
    for words in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("ACL", "LIST")):
        with pytest.raises(NoPermissionError):
            node.execute_command(*words)


def test_who_has_the_wrong_password_or_none_gets_nothing(caches, logins):
    [port] = play(caches, logins)
    assert refused(caches, port, SECOND)
    nobody = valkey.Valkey(
        host="localhost", port=port, ssl=True, ssl_ca_certs=str(caches.trusted)
    )  # fmt: skip
    with pytest.raises(valkey.AuthenticationError, match="Authentication required"):
        nobody.get("key")


def test_the_front_speaks_tls_alone_and_shows_a_certificate_that_is_checked(caches, logins):
    [port] = play(caches, logins)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        plain.sendall(b"PING\r\n")
        assert not plain.recv(100).startswith(b"+")
    stranger = ssl.create_default_context()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        stranger.wrap_socket(plain, server_hostname="localhost")


def test_its_certificate_is_good_enough_for_python_3_13(caches, logins):
    [port] = play(caches, logins)
    strict = ssl.create_default_context(cafile=str(caches.trusted))
    strict.verify_flags |= ssl.VERIFY_X509_STRICT  # what it does there without being told
    plain = socket.create_connection(("127.0.0.1", port), timeout=5)
    with plain, strict.wrap_socket(plain, server_hostname="localhost") as checked:
        assert checked.getpeercert()["subjectAltName"][0] == ("DNS", "localhost")


def test_parameters_are_those_of_the_group(caches, logins):
    [port] = play(caches, logins, maxmemory_policy="volatile-ttl", activedefrag="yes")
    memory = client(caches, port).info("memory")
    assert memory["maxmemory_policy"] == "volatile-ttl"
    assert memory["maxmemory"] == 256 * 2**20


def test_fails_when_the_server_does_not_know_a_parameter(caches, logins):
    with pytest.raises(CacheError, match=r"the cache server did not start: .*no-such-thing"):
        play(caches, logins, no_such_thing="yes")
    assert caches.servers() == []


def test_a_changed_password_counts_from_then_on(caches, logins):
    [port] = play(caches, logins)
    logins[:] = [Login("node", MAY, (FIRST, SECOND))]
    until(lambda: not refused(caches, port, SECOND), "taking the second password")
    assert not refused(caches, port, FIRST)
    logins[:] = [Login("node", MAY, (SECOND,))]
    until(lambda: refused(caches, port, FIRST), "refusing the first password")


def test_no_password_is_in_a_file_or_on_a_command_line(caches, logins, tmp_path):
    play(caches, logins)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert FIRST.encode() not in written
    [(_, server)] = caches.servers()
    assert FIRST not in Path(f"/proc/{server.pid}/cmdline").read_text()
    assert (server.folder / "users.acl").stat().st_mode & 0o777 == 0o600


def test_a_killed_server_comes_back_where_it_was_and_empty(caches, logins):
    [port] = play(caches, logins)
    client(caches, port).set("key", "value")
    [(_, server)] = caches.servers()
    os.kill(server.pid or 0, signal.SIGKILL)
    until(lambda: server.restarts == 1 and server.running, "the restart")
    assert client(caches, port).get("key") is None


def test_three_shards_are_one_cluster_that_names_its_fronts(caches, logins):
    ports = play(caches, logins, shards=3)

    def connect() -> Any:
        try:
            found = ValkeyCluster(
                host="localhost", port=ports[0], username="node", password=FIRST, ssl=True,
                ssl_ca_certs=str(caches.trusted),
            )  # fmt: skip
            return found if len(found.get_primaries()) == 3 else None
        except ValkeyClusterException:
            return None

    cluster = until(connect, "the cluster")
    for number in range(60):
        cluster.set(f"key-{number}", str(number))
    assert all(cluster.get(f"key-{number}") == str(number).encode() for number in range(60))
    assert {node.port for node in cluster.get_primaries()} == set(ports)


def test_what_is_ended_leaves_no_process_and_no_file(caches, logins, tmp_path):
    [port] = play(caches, logins)
    [(_, server)] = caches.servers()
    caches.end(KEY)
    assert not alive(server.pid or 0)
    assert not server.folder.exists()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_the_servers_of_an_embedded_aws_that_was_killed_are_killed(tmp_path):
    server = Server(tmp_path / "group" / "0001", front=0, parameters={}, cluster=False)
    server.start()
    kill_leftovers(tmp_path)
    until(lambda: not server.running, "the end of the server")
    assert not server.running


def stack() -> Template:
    """A cache with the rotation function that the project deploys."""
    made = copy.deepcopy({k: v for k, v in CACHE.items() if k != "CacheSubnets"})
    del made["Cache"]["Properties"]["CacheSubnetGroupName"]
    for name in ("Cache", "Login"):
        made[name]["Properties"].pop("KmsKeyId", None)
    made["Node"]["Properties"]["UserId"] = "rotating-node"
    made["Nodes"]["Properties"]["UserGroupId"] = "rotating-nodes"
    made["RotationRole"] = resource("IAM::Role", AssumeRolePolicyDocument=assumed_by("lambda"))
    of: dict[str, Any] = made["RotationCode"]["Properties"]
    of["Code"] = {"ZipFile": FUNCTION.read_text()}
    of["Timeout"] = 60
    of["Environment"] = {
        "Variables": {
            "ISOMORPH_CACHE_USER": ref("Node"),
            "ISOMORPH_CACHE_GROUP": ref("Cache"),
            "ISOMORPH_CACHE_HOST": attribute("Cache", "ConfigurationEndPoint.Address"),
            "ISOMORPH_CACHE_PORT": attribute("Cache", "ConfigurationEndPoint.Port"),
        }
    }
    return {"Resources": made}


@pytest.mark.slow
def test_a_deployed_cache_takes_the_secrets_password_also_after_a_rotation(emulator: Emulator):
    assert emulator.create("rotating", stack()) == "CREATE_COMPLETE", emulator.failure("rotating")
    made = emulator.resources("rotating")
    secrets, cache = emulator.client("secretsmanager"), emulator.client("elasticache")
    trusted = emulator.running.state_dir / "caches" / "trusted.pem"

    def login() -> dict[str, str]:
        value = secrets.get_secret_value(SecretId=made["Login"].physical_id)["SecretString"]
        return dict(json.loads(value))

    def node(password: str) -> Any:
        [group] = cache.describe_replication_groups(ReplicationGroupId=made["Cache"].physical_id)[
            "ReplicationGroups"
        ]
        where = group["ConfigurationEndpoint"]
        return valkey.Valkey(
            host=where["Address"], port=where["Port"], username="node", password=password,
            ssl=True, ssl_ca_certs=str(trusted),
        )  # fmt: skip

    before = login()["password"]
    assert node(before).ping()
    secrets.rotate_secret(SecretId=made["Login"].physical_id)
    after = until(lambda: login()["password"] if login()["password"] != before else None,
                  "the rotation", 60)  # fmt: skip
    assert node(after).ping()

    def old_is_refused() -> bool:
        try:
            node(before).ping()
        except valkey.AuthenticationError:
            return True
        return False

    until(old_is_refused, "refusing the old password")
    assert emulator.delete("rotating") == "DELETE_COMPLETE"
