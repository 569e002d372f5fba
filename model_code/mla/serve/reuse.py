"""What this target adds to the server: beginnings of prompts from the store of latents.

torch is imported when a model is loaded, so that a wrong setting is told at once.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from model_code.common.engine import Engine
from model_code.common.errors import SettingsError
from model_code.common.manifest import build_manifest
from model_code.common.server.metrics import Metrics
from model_code.common.server.service import Service
from model_code.common.server.settings import Settings
from model_code.mla.store.client import Client
from model_code.mla.store.metrics import LatentMetrics
from model_code.mla.store.secret import SecretCredentials
from model_code.mla.store.settings import StoreSettings

if TYPE_CHECKING:
    from model_code.mla.prefixes import LatentPrefixes

_MOST_ARENA_BYTES = 1 << 30  # beyond the blocks of two prompts, which there is always room for


class Reuse:
    """An extension of the server (model_code/common/server/run.py)."""

    def __init__(self, store: StoreSettings, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._metrics: LatentMetrics | None = None
        self._prefixes: LatentPrefixes | None = None

    @classmethod
    def from_environment(cls, env: Mapping[str, str], settings: Settings) -> "Reuse | None":
        """Read the store's settings; None without a store."""
        store = StoreSettings.from_environment(env)
        if store and settings.engine != "native":
            raise SettingsError(
                f"ISOMORPH_ENGINE is {settings.engine!r}; the store of latents is for native alone"
            )
        return cls(store, settings) if store else None

    def count(self, metrics: Metrics) -> None:
        """Add the metrics of reuse."""
        metrics.more = self._metrics = LatentMetrics(metrics.registry)

    def load(self) -> None:
        """The server loads."""

    def wrap(self, app: ASGIApp, service: Service) -> ASGIApp:
        """Nothing is added to the endpoints."""
        return app

    def attach(self, engine: Engine, folder: Path) -> None:
        """Let the engine reuse what is in the store."""
        from model_code.common.engine.native import NativeEngine
        from model_code.mla.prefixes import LatentPrefixes, block_layout
        from model_code.mla.store.latents import LatentStore

        assert isinstance(engine, NativeEngine)  # noqa: S101  from_environment() checked
        assert self._metrics is not None  # noqa: S101
        store, settings = self._store, self._settings
        # Of weights from S3 it is known already; of a folder here, each byte is read once.
        digest = settings.weights_sha256 or build_manifest(folder, settings.model).sha256
        layout = block_layout(
            engine.architecture, engine.dtype, model=digest, block=store.block,
            tenant=store.tenant, stored=store.dtype,
        )  # fmt: skip
        prompt = -(-settings.context // store.block)
        all_slots = min((settings.slots + 1) * prompt, _MOST_ARENA_BYTES // layout.value_bytes)
        connect = partial(
            Client, store.address, cluster=store.cluster, tls=store.tls_context(),
            credentials=SecretCredentials(store.secret) if store.secret else lambda _: None,
        )  # fmt: skip
        latents = LatentStore(
            layout, connect, self._metrics, arena_blocks=max(2 * prompt, all_slots),
            ttl_s=store.ttl_s,
        )  # fmt: skip
        self._prefixes = LatentPrefixes(latents, engine.architecture, engine.dtype, self._metrics)
        engine.reuse(self._prefixes)

    def close(self) -> None:
        """Stop the store's threads."""
        if self._prefixes:
            self._prefixes.close()
