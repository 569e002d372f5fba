"""What becomes of the records of a run: a line each on stdout, CloudWatch, MLflow.

Only the line is written by the caller's thread. The others are told by threads of their own, in
batches; what they cannot send is dropped, said once in the log, and training goes on.
"""

import json
import logging
import math
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

from model_code.common.aws import client
from model_code.common.errors import SettingsError
from model_code.moe.train.records import Sink, Step

_LOG = logging.getLogger(__name__)
_WAITING = 10_000  # records that wait while a service does not answer; the oldest go first
_CLOSING_S = 5.0
_VALUES = 150  # values that one PutMetricData datum may hold
# Key in a line and in MLflow -> CloudWatch's name and unit.
METRICS: Mapping[str, tuple[str, str]] = {
    "step": ("Step", "None"),
    "loss": ("Loss", "None"),
    "tokens_per_second": ("TokensPerSecond", "Count/Second"),
    "mfu_percent": ("ModelFlopsUtilization", "Percent"),
    "expert_load": ("ExpertLoadMaxOverMean", "None"),
    "dropped_tokens": ("DroppedTokens", "Count"),
    "grad_norm": ("GradientNorm", "None"),
    "checkpoint_age_s": ("CheckpointAge", "Seconds"),
    "non_finite": ("NonFiniteSteps", "Count"),
}


@dataclass(frozen=True)
class Record:
    """The figures of a step under their keys, and when it was done. Not finite ones are None."""

    time: datetime
    values: dict[str, float | None]

    @classmethod
    def of(cls, step: Step) -> "Record":
        """Return the record of a step that is done now."""
        given: dict[str, float | None] = {
            "step": step.step, "loss": step.loss, "tokens_per_second": step.tokens_per_second,
            "mfu_percent": None if step.mfu is None else 100 * step.mfu,
            "expert_load": step.expert_load, "dropped_tokens": step.dropped_tokens,
            "grad_norm": step.grad_norm, "checkpoint_age_s": step.checkpoint_age_s,
        }  # fmt: skip
        finite = {key: value if _is_finite(value) else None for key, value in given.items()}
        strange = not (math.isfinite(step.loss) and math.isfinite(step.grad_norm))
        return cls(datetime.now(UTC), finite | {"non_finite": float(strange)})

    @property
    def line(self) -> str:
        """JSON on one line."""
        shown = {key: value for key, value in self.values.items() if key != "non_finite"}
        return json.dumps(
            {"event": "step", **shown, "time": self.time.isoformat(timespec="milliseconds")}
        )


def utilization(flops_a_token: float, tokens_per_second: float, peak_flops: float) -> float:
    """Return the model's share of what the devices can do, 0 to 1 (PaLM, arXiv 2204.02311, app. B).

    Args:
        flops_a_token: Of the forward and the backward pass; what is computed twice counts once.
        tokens_per_second: Of the whole job.
        peak_flops: A second, of all devices of the job together, in the dtype of the products.
    """
    return flops_a_token * tokens_per_second / peak_flops


class Lines:
    """Writes each record to a stream as one line of JSON."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def record(self, step: Step) -> None:
        """See `Sink`."""
        try:
            print(Record.of(step).line, file=self._stream, flush=True)
        except (OSError, ValueError) as error:  # the reader of a pipe has gone
            _LOG.warning("a step cannot be written: %s", error)

    def close(self) -> None:
        """See `Sink`."""


class Service(Protocol):
    """Where batches go. What it raises is logged once, until it works again."""

    name: str

    def open(self) -> None:
        """Get ready, when the run begins."""
        ...

    def send(self, records: Sequence[Record]) -> None:
        """Send some records."""
        ...

    def finish(self) -> None:
        """Say that the run has ended."""
        ...


class Background:
    """A sink that sends what came together in a period, on a thread of its own."""

    def __init__(self, service: Service, *, period_s: float) -> None:
        self._service, self._period_s = service, period_s
        self._waiting: deque[Record] = deque(maxlen=_WAITING)
        self._closed = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=service.name, daemon=True)
        self._thread.start()

    def record(self, step: Step) -> None:
        """See `Sink`."""
        self._waiting.append(Record.of(step))

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        self._closed.set()
        self._thread.join(_CLOSING_S)

    def _run(self) -> None:
        self._guarded(self._service.open)
        while not self._closed.wait(self._period_s):
            self._send()
        self._send()
        self._guarded(self._service.finish)

    def _send(self) -> None:
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if batch:
            self._guarded(lambda: self._service.send(batch))

    def _guarded(self, work: Any) -> None:
        try:
            work()
            self._failed = False
        except Exception as error:
            if not self._failed:
                words = " ".join(str(error).split())
                _LOG.warning("metrics cannot be sent to %s: %s", self._service.name, words)
            self._failed = True


class CloudWatch:
    """Puts records into CloudWatch, with one dimension: the cluster."""

    name = "CloudWatch"

    def __init__(self, *, namespace: str, cluster: str) -> None:
        self._namespace = namespace
        self._dimensions = [{"Name": "Cluster", "Value": cluster}]
        self._client: Any = None

    def open(self) -> None:
        """See `Service`."""
        self._client = client("cloudwatch", attempts=2)

    def send(self, records: Sequence[Record]) -> None:
        """See `Service`."""
        if self._client is None:
            self.open()
        for first in range(0, len(records), _VALUES):
            some = records[first : first + _VALUES]
            self._client.put_metric_data(Namespace=self._namespace, MetricData=self._data(some))

    def finish(self) -> None:
        """See `Service`."""

    def _data(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        found = {
            key: [value for record in records if (value := record.values[key]) is not None]
            for key in METRICS
        }
        return [
            {"MetricName": name, "Unit": unit, "Dimensions": self._dimensions, "Values": values,
             "Timestamp": records[-1].time}
            for (name, unit), values in zip(METRICS.values(), found.values(), strict=True)
            if values
        ]  # fmt: skip


class Metrics:
    """All sinks of a run."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    @classmethod
    def from_environment(
        cls, env: Mapping[str, str], *, run: str, parameters: Mapping[str, object],
        stream: TextIO | None = None,
    ) -> "Metrics":  # fmt: skip
        """Return the lines, and the services that the environment names.

        Args:
            env: ISOMORPH_METRIC_NAMESPACE and ISOMORPH_CLUSTER for CloudWatch,
                MLFLOW_TRACKING_URI for MLflow; ISOMORPH_METRIC_PERIOD_S.
            run: What MLflow shows, unless ISOMORPH_RUN says otherwise.
            parameters: What MLflow keeps of how the run was started.
            stream: Where the lines go; stdout if left out.

        Raises:
            SettingsError: A variable is missing or wrong.
        """
        period_s = _period(env)
        sinks: list[Sink] = [Lines(stream or sys.stdout)]
        services: list[Service] = []
        if namespace := env.get("ISOMORPH_METRIC_NAMESPACE", ""):
            services.append(_cloudwatch(namespace, env.get("ISOMORPH_CLUSTER", "")))
        if uri := env.get("MLFLOW_TRACKING_URI", ""):
            from model_code.moe.train.mlflow_run import MlflowRun

            services.append(
                MlflowRun(uri, experiment=env.get("MLFLOW_EXPERIMENT_NAME", "") or run, run=run,
                          job=env.get("ISOMORPH_RUN", ""), parameters=parameters)
            )  # fmt: skip
        sinks += [Background(service, period_s=period_s) for service in services]
        return cls(sinks)

    def record(self, step: Step) -> None:
        """See `Sink`."""
        for sink in self._sinks:
            sink.record(step)

    def close(self) -> None:
        """See `Sink`."""
        for sink in self._sinks:
            sink.close()


def _cloudwatch(namespace: str, cluster: str) -> CloudWatch:
    if namespace.startswith("AWS/"):
        raise SettingsError(
            f"ISOMORPH_METRIC_NAMESPACE is {namespace!r}; CloudWatch keeps AWS/ for itself: take "
            f"one such as Isomorph/moe-training"
        )
    if not cluster:
        raise SettingsError(
            "ISOMORPH_CLUSTER is missing; with ISOMORPH_METRIC_NAMESPACE it must name the cluster, "
            "the dimension that the alarms look at"
        )
    return CloudWatch(namespace=namespace, cluster=cluster)


def _period(env: Mapping[str, str]) -> int:
    given = env.get("ISOMORPH_METRIC_PERIOD_S", "") or "10"
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:6]) <= 3600):
        raise SettingsError(
            f"ISOMORPH_METRIC_PERIOD_S is {given[:40]!r}; allowed: whole numbers from 1 to 3600"
        )
    return int(given[:6])


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
