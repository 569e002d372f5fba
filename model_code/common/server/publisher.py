"""Puts the figures that scaling and alarms look at into CloudWatch."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from model_code.common.aws import client

_LOG = logging.getLogger(__name__)
PERIOD_S = 10.0


class Figures(Protocol):
    """What there is to publish."""

    @property
    def units(self) -> Mapping[str, str]:
        """CloudWatch's unit of each metric that `take` may return."""
        ...

    def take(self) -> dict[str, list[float]]:
        """Return each metric's values since the last call."""
        ...


class Publisher:
    """Publishes each period. Whatever goes wrong is logged once, and serving goes on.

    Args:
        namespace: CloudWatch namespace, such as Isomorph/gqa.
        fleet: Value of the dimension Fleet.
    """

    def __init__(self, metrics: Figures, *, namespace: str, fleet: str) -> None:
        self._metrics, self._namespace = metrics, namespace
        self._dimensions = [{"Name": "Fleet", "Value": fleet}]
        self._client: Any = None
        self._failed = False

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Publish until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            await self.publish()

    async def publish(self) -> None:
        """Put what happened since the last time, one datum per metric."""
        units = self._metrics.units
        data = [
            {"MetricName": name, "Dimensions": self._dimensions, "Unit": units[name],
             "Values": values}
            for name, values in self._metrics.take().items()
        ]  # fmt: skip
        try:
            await asyncio.to_thread(self._put, data)
            self._failed = False
        except Exception as error:
            if not self._failed:
                _LOG.warning("metrics cannot be published to CloudWatch: %s", error)
            self._failed = True

    def _put(self, data: list[dict[str, Any]]) -> None:
        if self._client is None:
            self._client = client("cloudwatch", attempts=2)
        self._client.put_metric_data(Namespace=self._namespace, MetricData=data)
