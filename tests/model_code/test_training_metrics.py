"""What becomes of a step's record: a line, CloudWatch, MLflow; none may stop a training."""

import argparse
import builtins
import io
import json
import logging
import math
import threading
import time
from pathlib import Path
from typing import Any

import boto3
import pytest

from model_code.common.errors import SettingsError
from model_code.moe.train import metrics as module
from model_code.moe.train.metrics import METRICS, Metrics, utilization
from model_code.moe.train.recipe import load_recipe
from model_code.moe.train.records import Step
from model_code.moe.train.sinks import sinks

CLOUDWATCH = {"ISOMORPH_METRIC_NAMESPACE": "Isomorph/moe-training", "ISOMORPH_CLUSTER": "dev-moe"}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing botocore or mlflow takes long on a busy machine."""
    monkeypatch.setattr(module, "_CLOSING_S", 60.0)


def step(number: int, **changes: Any) -> Step:
    given: dict[str, Any] = {
        "step": number, "loss": 5.0 / number, "tokens_per_second": 800.0, "mfu": 0.25,
        "expert_load": 1.5, "dropped_tokens": 0, "grad_norm": 0.9, "checkpoint_age_s": 12.0,
    }  # fmt: skip
    return Step(**given | changes)


def made(env: dict[str, str], stream: Any = None) -> Metrics:
    return Metrics.from_environment(
        env, run="tiny", parameters={"steps": 3, "config": "tiny"}, stream=stream or io.StringIO()
    )


def statistics(name: str) -> dict[str, Any]:
    namespace, cluster = CLOUDWATCH.values()
    [found] = boto3.client("cloudwatch").get_metric_statistics(
        Namespace=namespace, MetricName=name, StartTime=0, EndTime=2**32, Period=86_400 * 365,
        Dimensions=[{"Name": "Cluster", "Value": cluster}],
        Statistics=["SampleCount", "Average", "Maximum", "Sum"],
    )["Datapoints"]  # fmt: skip
    return found


def test_each_step_is_a_line_of_json() -> None:
    stream = io.StringIO()
    metrics = made({}, stream)
    metrics.record(step(1))
    metrics.record(step(2, mfu=None, loss=math.nan))
    metrics.close()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("time") <= second.pop("time")
    assert first == {
        "event": "step", "step": 1, "loss": 5.0, "tokens_per_second": 800.0, "mfu_percent": 25.0,
        "expert_load": 1.5, "dropped_tokens": 0, "grad_norm": 0.9, "checkpoint_age_s": 12.0,
    }  # fmt: skip
    assert second["mfu_percent"] is None
    assert second["loss"] is None


def test_a_line_that_nobody_reads_does_not_stop_the_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream = io.StringIO()
    stream.close()
    made({}, stream).record(step(1))
    assert "a step cannot be written" in caplog.text


@pytest.mark.usefixtures("aws")
def test_cloudwatch_gets_every_metric_of_all_steps() -> None:
    metrics = made(CLOUDWATCH)
    for number in range(1, 201):  # more than one datum may hold
        metrics.record(step(number))
    metrics.close()
    listed = boto3.client("cloudwatch").list_metrics(Namespace="Isomorph/moe-training")["Metrics"]
    assert {each["MetricName"] for each in listed} == {name for name, _ in METRICS.values()}
    assert all(each["Dimensions"] == [{"Name": "Cluster", "Value": "dev-moe"}] for each in listed)
    loss = statistics("Loss")
    assert (loss["SampleCount"], loss["Maximum"]) == (200, 5.0)
    assert statistics("ModelFlopsUtilization")["Average"] == pytest.approx(25.0)
    assert statistics("DroppedTokens")["Sum"] == 0
    assert statistics("Step")["Maximum"] == 200


@pytest.mark.usefixtures("aws")
def test_a_loss_that_is_not_finite_is_counted_and_not_sent() -> None:
    metrics = made(CLOUDWATCH)
    metrics.record(step(1))
    metrics.record(step(2, loss=math.inf))
    metrics.record(step(3, grad_norm=math.nan))
    metrics.close()
    assert statistics("Loss")["SampleCount"] == 2
    assert statistics("GradientNorm")["SampleCount"] == 2
    assert statistics("NonFiniteSteps")["Sum"] == 2


def test_units_are_those_that_cloudwatch_knows() -> None:
    model = boto3.session.Session()._session.get_service_model("cloudwatch")
    known = set(model.shape_for("StandardUnit").enum)
    assert {unit for _, unit in METRICS.values()} <= known


class Away:
    """A service that does not answer."""

    name = "CloudWatch"

    def __init__(self) -> None:
        self.calls, self.working, self.sent = 0, False, 0

    def open(self) -> None:
        """Ready at once."""

    def send(self, records: Any) -> None:
        self.calls += 1
        if not self.working:
            raise ConnectionError("no route\nto host")
        self.sent += len(records)

    def finish(self) -> None:
        """Nothing to end."""


def test_what_fails_is_logged_once_until_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    service = Away()
    sink = module.Background(service, period_s=0.01)

    def until(calls: int) -> None:
        sink.record(step(1))
        deadline = time.monotonic() + 60
        while service.calls < calls and time.monotonic() < deadline:
            time.sleep(0.005)

    with caplog.at_level(logging.WARNING):
        until(1)
        until(2)
        service.working = True
        until(3)
        service.working = False
        until(4)
        sink.close()
    assert service.sent == 1
    assert caplog.messages == ["metrics cannot be sent to CloudWatch: no route to host"] * 2


def test_a_service_that_hangs_neither_blocks_a_step_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()

    class Hangs(Away):
        def send(self, records: Any) -> None:
            release.wait(30)

    monkeypatch.setattr(module, "_CLOSING_S", 0.05)
    sink = module.Background(Hangs(), period_s=0.01)
    since = time.monotonic()
    for number in range(1, 20_001):
        sink.record(step(number))
    sink.close()
    release.set()
    assert len(sink._waiting) <= 10_000
    assert time.monotonic() - since < 20


@pytest.fixture
def store(tmp_path: Path) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": (tmp_path / "mlflow").as_uri()}


def runs(env: dict[str, str], experiment: str = "tiny") -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client, list(client.search_runs([found.experiment_id]))


def test_mlflow_keeps_the_run_in_a_folder(store: dict[str, str]) -> None:
    metrics = made(store)
    for number in (1, 2, 3):
        metrics.record(step(number))
    metrics.close()
    client, [run] = runs(store)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny"
    assert run.data.params == {"steps": "3", "config": "tiny"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(1, 5.0), (2, 2.5), (3, 5.0 / 3)]
    assert set(run.data.metrics) == {*METRICS} - {"step"}


def test_a_restart_of_the_same_job_continues_its_run(store: dict[str, str]) -> None:
    for first in (1, 3):
        metrics = made({**store, "ISOMORPH_RUN": "job-7", "MLFLOW_EXPERIMENT_NAME": "week 47"})
        metrics.record(step(first))
        metrics.record(step(first + 1))
        metrics.close()
    made({**store, "ISOMORPH_RUN": "job-8", "MLFLOW_EXPERIMENT_NAME": "week 47"}).close()
    client, found = runs(store, "week 47")
    steps = {
        run.data.tags["isomorph.job"]: [
            each.step for each in client.get_metric_history(run.info.run_id, "loss")
        ]
        for run in found
    }
    assert steps == {"job-7": [1, 2, 3, 4], "job-8": []}
    assert {run.info.status for run in found} == {"FINISHED"}


def test_without_the_package_a_warning_says_what_to_install(
    store: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("mlflow"):
            raise ModuleNotFoundError("No module named 'mlflow'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    stream = io.StringIO()
    metrics = made(store, stream)
    metrics.record(step(1))
    metrics.close()
    assert len(stream.getvalue().splitlines()) == 1
    assert (
        "metrics cannot be sent to MLflow: MLFLOW_TRACKING_URI is set, and No module named "
        "'mlflow': install mlflow-skinny"
    ) in caplog.text


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"ISOMORPH_METRIC_NAMESPACE": "AWS/SageMaker", "ISOMORPH_CLUSTER": "c"},
         "ISOMORPH_METRIC_NAMESPACE is 'AWS/SageMaker'; CloudWatch keeps AWS/ for itself: take one "
         "such as Isomorph/moe-training"),
        ({"ISOMORPH_METRIC_NAMESPACE": "Isomorph/moe-training"},
         "ISOMORPH_CLUSTER is missing; with ISOMORPH_METRIC_NAMESPACE it must name the cluster, "
         "the dimension that the alarms look at"),
        ({"ISOMORPH_METRIC_PERIOD_S": "0"},
         "ISOMORPH_METRIC_PERIOD_S is '0'; allowed: whole numbers from 1 to 3600"),
        ({"ISOMORPH_METRIC_PERIOD_S": "9999999"},
         "ISOMORPH_METRIC_PERIOD_S is '9999999'; allowed: whole numbers from 1 to 3600"),
    ],
)  # fmt: skip
def test_settings_that_are_wrong_are_named(env: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        made(env)
    assert str(error.value) == message


def test_utilization_is_the_models_work_over_the_devices() -> None:
    # 37e9 active parameters, 6 FLOPs each and token; 1,000 tokens/s on 8 devices of 989 teraflops.
    assert utilization(6 * 37e9, 1_000, 8 * 989e12) == pytest.approx(0.0281, rel=1e-2)


def test_the_command_tells_mlflow_and_prints_lines(
    store: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    given = argparse.Namespace(steps=3, seed=5, step_log=None)
    [metrics] = sinks(given, load_recipe("tiny"))
    metrics.record(step(1))
    metrics.close()
    assert json.loads(capsys.readouterr().out)["event"] == "step"
    _, [run] = runs(store)
    assert run.data.params.items() >= {"config": "tiny", "steps": "3", "seed": "5"}.items()
    assert int(run.data.params["active_parameters"]) < int(run.data.params["parameters"])
