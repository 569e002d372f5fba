"""Keys to nodes: one server, a cluster whose slots move, and nodes that are not what they say."""

import os
from collections.abc import Iterator

import pytest

from model_code.mla.store.client import Client, Get, Put
from model_code.mla.store.errors import AuthError, ProtocolError, ReplyError, UnavailableError
from model_code.mla.store.resp import Address, Credentials, Reply
from model_code.mla.store.slots import read_redirection, read_slots, slot_of
from tests.model_code.mla.valkey import (
    Valkey,
    credentials,
    make_cluster,
    scripted_server,
    soon,
    wait_until,
)

HERE = Address("10.0.0.1", 6379)
PUTS = [Put(b"isomorph:latent:%d" % n, [os.urandom(64), os.urandom(5000)]) for n in range(40)]


def read_back(client: Client, puts: list[Put] = PUTS) -> list[bool]:
    gets = {put.key: Get(put.key, memoryview(bytearray(5064))) for put in puts}
    found: dict[bytes, bool] = {}
    client.get(list(gets.values()), soon(), lambda get, there: found.__setitem__(get.key, there))
    for put in puts:
        assert not found[put.key] or gets[put.key].into == b"".join(put.value)
    return [found[put.key] for put in puts]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Valkey]]:
    """Two primaries, and a replica of the first."""
    nodes = make_cluster([tmp_path_factory.mktemp(name) for name in "abc"])
    yield nodes
    for node in nodes:
        node.kill()


def client_of(node: Valkey, *, cluster: bool) -> Client:
    return Client(node.address, cluster=cluster, tls=None, credentials=credentials)


def test_blocks_come_back_and_what_was_never_stored_is_not_found(valkey: Valkey) -> None:
    client = client_of(valkey, cluster=False)
    client.put(PUTS, 60, soon())
    assert all(read_back(client))
    assert read_back(client, [Put(b"isomorph:latent:never", [b"x" * 5064]), PUTS[0]]) == [
        False,
        True,
    ]
    assert 0 < valkey.admin("TTL", "isomorph:latent:0") <= 60


def test_a_full_server_refuses_and_the_client_goes_on(valkey: Valkey) -> None:
    client = client_of(valkey, cluster=False)
    valkey.admin("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(ReplyError, match="OOM"):
        client.put(PUTS[:2], 60, soon())
    valkey.admin("CONFIG", "SET", "maxmemory", "0")
    client.put(PUTS[:2], 60, soon())
    assert read_back(client, PUTS[:2]) == [True, True]


def test_new_credentials_are_asked_for_once_when_the_old_are_refused(valkey: Valkey) -> None:
    asked = []

    def source(refused: bool) -> Credentials:
        asked.append(refused)
        return credentials() if refused else Credentials("isomorph", "old")

    client = Client(valkey.address, cluster=False, tls=None, credentials=source)
    client.put(PUTS[:1], 60, soon())
    assert asked == [False, True]
    wrong = Client(valkey.address, cluster=False, tls=None,
                   credentials=lambda _: Credentials("isomorph", "wrong"))  # fmt: skip
    with pytest.raises(AuthError, match="WRONGPASS"):
        wrong.put(PUTS[:1], 60, soon())


def test_a_source_of_credentials_that_fails_makes_the_store_unavailable(valkey: Valkey) -> None:
    def source(_: bool) -> Credentials:
        raise RuntimeError("no route to Secrets Manager")

    client = Client(valkey.address, cluster=False, tls=None, credentials=source)
    with pytest.raises(UnavailableError, match="RuntimeError: no route to Secrets Manager"):
        client.put(PUTS[:1], 60, soon())


def test_keys_go_to_the_node_that_has_their_slot(cluster: list[Valkey]) -> None:
    client = client_of(cluster[0], cluster=True)
    client.put(PUTS, 60, soon())
    assert all(read_back(client))
    sizes = [node.admin("DBSIZE") for node in cluster[:2]]
    assert sum(sizes) == len(PUTS)
    assert min(sizes) > 0


def test_moved_and_ask_are_followed(cluster: list[Valkey]) -> None:
    first, second, _ = cluster
    client = client_of(first, cluster=True)
    client.put(PUTS, 60, soon())
    put = next(put for put in PUTS if slot_of(put.key) < 8192)
    slot, key = str(slot_of(put.key)), put.key.decode()
    ids = [node.admin("CLUSTER", "MYID").decode() for node in (first, second)]
    second.admin("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    first.admin("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    first.admin("MIGRATE", "127.0.0.1", str(second.address.port), key, "0", "5000")
    assert read_back(client, [put]) == [True], "ASK"
    client.put([put], 60, soon())
    for node in (second, first):
        node.admin("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    assert read_back(client, [put]) == [True], "MOVED"
    client.put([put], 60, soon())
    assert read_back(client, [put]) == [True]


def test_a_failover_is_followed_when_the_node_that_was_asked_is_gone(
    cluster: list[Valkey],
) -> None:
    first, _, replica = cluster
    client = client_of(first, cluster=True)
    client.put(PUTS, 60, soon())
    wait_until(lambda: replica.admin("DBSIZE") == first.admin("DBSIZE"))
    first.kill()
    with pytest.raises(UnavailableError):
        read_back(client)
    replica.admin("CLUSTER", "FAILOVER", "TAKEOVER")

    def recovered() -> bool:
        return all(read_back(client))

    wait_until(recovered)
    client.put(PUTS, 60, soon())


def test_a_slot_is_the_crc16_of_the_key_or_of_its_hash_tag() -> None:
    assert slot_of(b"123456789") == 0x31C3  # the specification's example
    assert slot_of(b"{user1000}.following") == slot_of(b"user1000")
    assert slot_of(b"foo{}{bar}") == slot_of(b"foo{}{bar}".replace(b"x", b""))
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")


def test_a_node_without_a_name_is_the_one_that_was_asked() -> None:
    owners = read_slots([[0, 5, [None, 7000]], [6, 7, [b"::1", 7001, b"id"]]], HERE)
    assert owners[:7] == [Address("10.0.0.1", 7000)] * 6 + [Address("::1", 7001)]
    assert owners[8] is None
    assert read_redirection("5 :7002", HERE) == (5, Address("10.0.0.1", 7002))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"?", "is answered with no list"),
        ([[0, 16384, [b"a", 1]]], "names slots 0 to 16384"),
        ([[5, 4, [b"a", 1]]], "names slots 5 to 4"),
        ([[0, 1]], "an entry of another shape"),
        ([[0, 1, [b"a", 70000]]], "has the address b'a', port 70000"),
    ],
)
def test_a_map_of_slots_that_makes_no_sense_is_refused(reply: Reply, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        read_slots(reply, HERE)


@pytest.mark.parametrize("detail", ["", "5", "5 host", "99999 a:1", "x a:1", "5 a:0"])
def test_a_redirection_to_nowhere_is_refused(detail: str) -> None:
    with pytest.raises(ProtocolError, match=r"a redirection leads to|has the address"):
        read_redirection(detail, HERE)


def test_without_a_cluster_no_redirection_is_followed() -> None:
    with scripted_server(b"-MOVED 5 10.9.9.9:6379\r\n") as address:
        client = Client(address, cluster=False, tls=None)
        with pytest.raises(ReplyError, match="MOVED"):
            read_back(client, PUTS[:1])
