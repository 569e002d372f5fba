"""Blocks from and to a server or a cluster, pipelined: all commands are sent before any reply."""

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model_code.mla.store.errors import AuthError, ReplyError, StoreError, UnavailableError
from model_code.mla.store.resp import (
    Address,
    Buffer,
    Connection,
    Credentials,
    command,
    set_command,
)
from model_code.mla.store.slots import read_redirection, read_slots, slot_of

_CONNECT_S = 1.0  # a node that takes longer than this to say hello is gone
_SEEDS = 8
_ASKING = command(b"ASKING")
_REDIRECTIONS = ("MOVED", "ASK")

# Returns the credentials; True asks for newer ones than those that were refused.
CredentialsSource = Callable[[bool], Credentials | None]


@dataclass(frozen=True)
class Get:
    """One block to fetch, and where to: `into` has exactly the size that is expected."""

    key: bytes
    into: memoryview


@dataclass(frozen=True)
class Put:
    """One block to store, in parts that are sent one after the other."""

    key: bytes
    value: Sequence[Buffer]


class Client:
    """Connections to the nodes that hold our keys. One thread at a time may use it.

    Each method has a deadline in seconds of time.monotonic(), and raises StoreError. A call that
    raises leaves no connection open, so no later call reads what was meant for an earlier one.
    """

    def __init__(
        self, address: Address, *, cluster: bool, tls: ssl.SSLContext | None,
        credentials: CredentialsSource = lambda _: None,
    ) -> None:  # fmt: skip
        self._seed, self._cluster, self._tls = address, cluster, tls
        self._credentials = credentials
        self._connections: dict[Address, Connection] = {}
        self._owners: list[Address | None] = []
        self._seeds = [address]  # any node can tell where the slots are

    def close(self) -> None:
        """Close every connection, and forget which node has what."""
        for connection in self._connections.values():
            connection.close()
        self._connections, self._owners = {}, []

    def get(
        self, wanted: Sequence[Get], deadline: float, received: Callable[[Get, bool], None]
    ) -> None:
        """Fetch blocks; `received` is called for each as it comes, with whether it was there."""
        try:
            self._get(wanted, deadline, received)
        except BaseException as error:
            self.close()
            raise _as_store_error(error) from error

    def put(self, puts: Sequence[Put], ttl_s: int, deadline: float) -> None:
        """Store blocks; raises ReplyError if the server refuses one of them, as when it is full."""
        try:
            self._put(puts, ttl_s, deadline)
        except BaseException as error:
            self.close()
            raise _as_store_error(error) from error

    def _get(
        self, wanted: Sequence[Get], deadline: float, received: Callable[[Get, bool], None]
    ) -> None:
        nodes = self._by_node([get.key for get in wanted], deadline)
        for address, indices in nodes.items():
            commands = b"".join(command(b"GET", wanted[index].key) for index in indices)
            self._connection(address, deadline).send([commands], deadline)
        redirected: list[tuple[Get, Address, ReplyError]] = []
        for address, indices in nodes.items():
            connection = self._connection(address, deadline)
            for get in (wanted[index] for index in indices):
                try:
                    received(get, connection.block(get.into, deadline))
                except ReplyError as error:
                    redirected.append((get, address, error))
        for get, asked, reason in redirected:
            connection = self._follow(asked, reason, deadline)
            connection.send([command(b"GET", get.key)], deadline)
            received(get, connection.block(get.into, deadline))

    def _put(self, puts: Sequence[Put], ttl_s: int, deadline: float) -> None:
        nodes = self._by_node([put.key for put in puts], deadline)
        redirected: list[tuple[Put, Address, ReplyError]] = []
        for address, indices in nodes.items():
            connection = self._connection(address, deadline)
            for put in (puts[index] for index in indices):
                connection.send(set_command(put.key, put.value, ttl_s), deadline)
            for put in (puts[index] for index in indices):
                try:
                    connection.reply(deadline)
                except ReplyError as error:
                    redirected.append((put, address, error))
        for put, asked, reason in redirected:
            connection = self._follow(asked, reason, deadline)
            connection.send(set_command(put.key, put.value, ttl_s), deadline)
            connection.reply(deadline)

    def _follow(self, asked: Address, error: ReplyError, deadline: float) -> Connection:
        """Return a connection to where MOVED or ASK leads; any other error is raised as it is."""
        if not self._cluster or error.code not in _REDIRECTIONS:
            raise error
        slot, address = read_redirection(error.detail, asked)
        connection = self._connection(address, deadline)
        if error.code == "MOVED":
            self._owners[slot] = address
        else:
            connection.send([_ASKING], deadline)
            connection.reply(deadline)
        return connection

    def _by_node(self, keys: Sequence[bytes], deadline: float) -> dict[Address, list[int]]:
        """Return the indices of the keys by the node that has them."""
        if self._cluster and not self._owners:
            self._owners = self._read_owners(deadline)
        nodes: dict[Address, list[int]] = {}
        for index, key in enumerate(keys):
            owner = self._owners[slot_of(key)] if self._cluster else self._seed
            nodes.setdefault(owner or self._seed, []).append(index)
        return nodes

    def _read_owners(self, deadline: float) -> list[Address | None]:
        """Ask the node that we were given, or else those that it named before."""
        for seed in self._seeds:
            try:
                connection = self._connection(seed, deadline)
                reply = connection.call(b"CLUSTER", b"SLOTS", deadline=deadline)
            except UnavailableError as error:
                self._connections.pop(seed, None)
                problem = error
                continue
            owners = read_slots(reply, seed)
            known = dict.fromkeys(owner for owner in owners if owner and owner != self._seed)
            self._seeds = [self._seed, *known][:_SEEDS]
            return owners
        raise problem

    def _connection(self, address: Address, deadline: float) -> Connection:
        if address not in self._connections:
            until = min(deadline, time.monotonic() + _CONNECT_S)
            try:
                connection = self._connect(address, until, refused=False)
            except AuthError:  # the password was rotated, perhaps
                connection = self._connect(address, until, refused=True)
            self._connections[address] = connection
        return self._connections[address]

    def _connect(self, address: Address, deadline: float, *, refused: bool) -> Connection:
        return Connection(
            address, tls=self._tls, credentials=self._credentials(refused), deadline=deadline
        )


def _as_store_error(error: BaseException) -> BaseException:
    """Wrap what a credentials source may raise; interruptions stay what they are."""
    if isinstance(error, StoreError) or not isinstance(error, Exception):
        return error
    return UnavailableError(f"{type(error).__name__}: {error}")
