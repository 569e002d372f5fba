"""Where ranks find each other's addresses after a restart, in place of those of the dead.

torchrun keeps one store for all attempts, and torch 2.13 puts the addresses of a new attempt under
the keys of the one before (rendezvous.py: "no need to add prefix for each attempt"). A rank that
starts a little earlier than another connects to where that one was, and fails. Restart counts do
not tell attempts apart: each node's agent has its own. So the ranks agree on a prefix first.
"""

import hashlib
import os
import time
import uuid
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

_TIMEOUT = timedelta(minutes=10)
_PAUSE_S = 0.02


def torchrun_store() -> Store | None:
    """Return torchrun's store, for this attempt only; None if rank 0 makes a store of its own."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, count, is_master=False, timeout=_TIMEOUT)
    return PrefixStore(agreed(PrefixStore("meeting", store), rank, count), store)


def agreed(store: Store, rank: int, count: int) -> str:
    """Return a word that all ranks of this attempt get, and none of another.

    Each rank says a word of its own. The first rank hashes all of them; what it finds of a dead
    rank it replaces as soon as the living one has spoken. It is agreed once every rank has
    repeated that hash, which only the living can.
    """
    own = uuid.uuid4().hex
    store.set(f"own/{rank}", own)
    while True:
        if rank == 0:
            words = "".join(store.get(f"own/{each}").decode() for each in range(count))
            store.set("words", words)
        else:
            words = store.get("words").decode()
        found = hashlib.sha256(words.encode()).hexdigest()
        if words[rank * len(own) : (rank + 1) * len(own)] == own:
            store.set(f"heard/{rank}", found)
            if rank == 0 and all(_heard(store, each) == found for each in range(count)):
                store.set("agreed", found)
            if store.check(["agreed"]) and store.get("agreed").decode() == found:
                return found
        time.sleep(_PAUSE_S)


def _heard(store: Store, rank: int) -> str:
    key = f"heard/{rank}"
    return store.get(key).decode() if store.check([key]) else ""
