"""A run in MLflow: on a tracking server, in a managed MLflow app, or in a folder when offline.

The package mlflow-skinny is optional. A folder (a path, or file://...) is MLflow's file store,
which needs no server and no database; an app's ARN needs the package sagemaker-mlflow too.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_code.moe.train.metrics import Record

_METRICS, _PARAMETERS, _LONGEST = 1000, 100, 6000  # MLflow's limits of one call, and of a value
# MLflow reads these from the process. It would otherwise refuse folders, which it no longer
# develops; wait minutes for a server that is away; and report its use to its makers.
_DEFAULTS = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class MlflowRun:
    """Logs records to one run.

    Args:
        uri: As MLFLOW_TRACKING_URI.
        experiment: Made if it is not there.
        run: The run's name.
        job: What this start and its restarts have in common; the run that has it is continued.
            Empty begins a new run.
        parameters: Kept with the run.
    """

    name = "MLflow"

    def __init__(
        self, uri: str, *, experiment: str, run: str, job: str, parameters: Mapping[str, object]
    ) -> None:
        self._uri, self._experiment, self._name, self._job = uri, experiment, run, job
        self._parameters = parameters
        self._client: Any = None
        self._run_id = ""

    def open(self) -> None:
        """See `Service`."""
        if self._run_id:
            return
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise RuntimeError(
                f"MLFLOW_TRACKING_URI is set, and {error}: install mlflow-skinny"
            ) from error
        self._client = MlflowClient(self._uri)
        experiment = self._experiment_id()
        run_id = self._continued(experiment)
        if run_id is None:
            run_id = self._begun(experiment)
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id

    def send(self, records: "Sequence[Record]") -> None:
        """See `Service`."""
        self.open()
        from mlflow.entities import Metric

        metrics = (
            Metric(key, value, int(1000 * record.time.timestamp()), int(record.values["step"] or 0))
            for record in records
            for key, value in record.values.items()
            if value is not None and key != "step"
        )
        while some := list(islice(metrics, _METRICS)):
            self._client.log_batch(self._run_id, metrics=some)

    def finish(self) -> None:
        """See `Service`."""
        if self._run_id:
            self._client.set_terminated(self._run_id)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        return found.experiment_id if found else self._client.create_experiment(self._experiment)

    def _continued(self, experiment: str) -> str | None:
        if not self._job:
            return None
        job = self._job.replace("'", "")
        found = self._client.search_runs(
            [experiment], f"tags.`isomorph.job` = '{job}'", max_results=1
        )
        return found[0].info.run_id if found else None

    def _begun(self, experiment: str) -> str:
        from mlflow.entities import Param

        tags = {"isomorph.job": self._job.replace("'", "")} if self._job else {}
        run = self._client.create_run(experiment, run_name=self._name, tags=tags)
        params: Iterator[Param] = (
            Param(key, str(value)[:_LONGEST]) for key, value in self._parameters.items()
        )
        while some := list(islice(params, _PARAMETERS)):
            self._client.log_batch(run.info.run_id, params=some)
        run_id: str = run.info.run_id
        return run_id
