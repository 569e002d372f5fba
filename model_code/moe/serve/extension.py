"""What this target adds to the server: experts out of a cache, pools, and SageMaker's endpoints.

torch is imported when a model is loaded, so that a wrong setting is told at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.types import ASGIApp

from model_code.common.engine import Engine
from model_code.common.server.metrics import Metrics
from model_code.common.server.service import Service
from model_code.common.server.settings import Settings
from model_code.moe.experts.metrics import ExpertMetrics
from model_code.moe.serve.endpoints import Pools, add_sagemaker
from model_code.moe.serve.prometheus import ExpertCollector
from model_code.moe.serve.settings import ExpertSettings

if TYPE_CHECKING:
    from model_code.moe.experts.cache import ExpertCache


class ExpertServing:
    """An extension of the server (model_code/common/server/run.py)."""

    def __init__(self, settings: Settings, experts: ExpertSettings) -> None:
        self._settings, self._experts = settings, experts
        self._metrics: ExpertMetrics | None = None
        self._cache: ExpertCache | None = None

    @classmethod
    def from_environment(cls, env: Mapping[str, str], settings: Settings) -> "ExpertServing":
        """Read the settings of experts and pools."""
        experts = ExpertSettings.from_environment(env)
        experts.check(settings)
        return cls(settings, experts)

    def count(self, metrics: Metrics) -> None:
        """Add the metrics of experts."""
        metrics.more = self._metrics = ExpertMetrics()
        metrics.registry.register(ExpertCollector(self._metrics))

    def wrap(self, app: Starlette, service: Service) -> ASGIApp:
        """Add SageMaker's endpoints, and the header of pools."""
        add_sagemaker(app, service)
        assert self._metrics is not None  # noqa: S101  count() comes first
        return Pools(app, self._experts.pool, self._experts.pools, self._metrics)

    def load(self) -> Engine:
        """Load the engine; with a budget, its experts stay where they are."""
        from model_code.moe.serve.loading import load

        assert self._metrics is not None  # noqa: S101
        engine, self._cache = load(self._settings, self._experts, self._metrics)
        return engine

    def attach(self, engine: Engine, folder: Path) -> None:
        """Nothing is added to an engine that is loaded."""

    def close(self) -> None:
        """Stop the threads that load experts."""
        if self._cache:
            self._cache.close()
