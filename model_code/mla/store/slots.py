"""Which node of a cluster has a key: the key's slot, and the map from slots to nodes.

Source: https://valkey.io/topics/cluster-spec/ (key distribution model, redirection).
"""

import binascii

from model_code.mla.store.errors import ProtocolError
from model_code.mla.store.resp import Address, Reply

SLOTS = 16384


def slot_of(key: bytes) -> int:
    """Return the key's slot: CRC16/XMODEM of what is between the first { and }, or of it all."""
    start = key.find(b"{")
    if start >= 0 and (end := key.find(b"}", start + 1)) > start + 1:
        key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


def read_slots(reply: Reply, asked: Address) -> list[Address | None]:
    """Return the primary of each slot from the reply to CLUSTER SLOTS.

    Args:
        reply: What came from outside: entries of first slot, last slot, primary, replicas.
        asked: The node that replied; one that does not know its own name means this one.
    """
    owners: list[Address | None] = [None] * SLOTS
    if not isinstance(reply, list):
        raise ProtocolError("CLUSTER SLOTS is answered with no list")
    for entry in reply:
        match entry:
            case [int(first), int(last), [bytes() | None as host, int(port), *_], *_]:
                if not 0 <= first <= last < SLOTS:
                    raise ProtocolError(f"CLUSTER SLOTS names slots {first} to {last}")
                owners[first : last + 1] = [_address(host or b"", port, asked)] * (last + 1 - first)
            case _:
                raise ProtocolError("CLUSTER SLOTS has an entry of another shape")
    return owners


def read_redirection(detail: str, asked: Address) -> tuple[int, Address]:
    """Return slot and address from what follows MOVED or ASK: `3999 10.0.0.2:6379`."""
    slot, _, address = detail.partition(" ")
    host, _, port = address.rpartition(":")
    if not (slot.isdigit() and int(slot[:6]) < SLOTS and port.isdigit()):
        raise ProtocolError(f"a redirection leads to {detail[:60]!r}")
    return int(slot), _address(host.encode(), int(port[:6]), asked)


def _address(host: bytes, port: int, asked: Address) -> Address:
    if not 0 < port < 65536 or len(host) > 255:
        raise ProtocolError(f"a node has the address {host[:60]!r}, port {port}")
    name = host.decode("ascii", "replace").strip("[]")
    return Address(asked.host if name in ("", "?") else name, port)
