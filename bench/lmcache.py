"""LMCache's own client of Redis, in C++, where pip has it: installed apart, without what it needs.

Its package brings CUDA, vLLM's connectors and more; the client is one extension that needs torch
alone, so that it is loaded by its file (lmcache/v1/storage_backend/native_clients/resp_client.py
wraps the same class).
"""

import importlib.machinery
import importlib.util
import select
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch  # noqa: F401  the extension is linked to it

from bench.apart import NotInstallableError, install
from model_code.mla.store.resp import Address

PACKAGE = "lmcache==0.5.6"
_MODULE = "lmcache_redis"
# Submits keys with the buffers to fill or to store, and waits until all are done.
Transfer = Callable[[Sequence[str], Sequence[memoryview]], None]


@contextmanager
def client(address: Address, *, connections: int) -> Iterator[tuple[Transfer, Transfer]]:
    """Yield what fetches and what stores many values at once.

    Args:
        address: Of the server.
        connections: Each has a thread; the values are divided among them.

    Raises:
        NotInstallableError: See there.
    """
    with TemporaryDirectory() as folder:
        made = _load(Path(folder)).LMCacheRedisClient(address.host, address.port, connections)

        def wait(number: int) -> None:
            select.select([made.event_fd()], [], [], 30)
            for done, succeeded, error, _ in made.drain_completions():
                if done == number and not succeeded:
                    raise RuntimeError(f"LMCache: {error}")

        try:
            yield (
                lambda keys, values: wait(made.submit_batch_get(list(keys), list(values))),
                lambda keys, values: wait(made.submit_batch_set(list(keys), list(values))),
            )
        finally:
            made.close()


def _load(folder: Path) -> Any:
    install(PACKAGE, folder, "--no-deps")
    path = next(folder.glob(f"lmcache/{_MODULE}*.so"), None)
    if path is None:
        raise NotInstallableError(f"{PACKAGE} for this machine has no {_MODULE}")
    loader = importlib.machinery.ExtensionFileLoader(_MODULE, str(path))
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    assert spec is not None  # noqa: S101
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise NotInstallableError(f"{PACKAGE} does not load: {error}") from error
    return module
