"""Alarms and dashboard of a training cluster against what its runs and scripts really send."""

import json
import math
import re
from typing import Any

import pytest

from model_code.moe.train import metrics as sent
from model_code.moe.train.records import Step
from tests.cdk_app import ROOT, literal, resources
from tests.stacks.test_moe_training import output
from tests.stacks.test_moe_training_scripts import Assembly

ON_CREATE = (ROOT / "model_code" / "moe" / "lifecycle" / "on_create.sh").read_text()
STEP = Step(
    step=1, loss=2.0, tokens_per_second=10.0, mfu=0.4, expert_load=1.5, dropped_tokens=0,
    grad_norm=3.0, checkpoint_age_s=60.0,
)  # fmt: skip
LIMITS = {"alarms": {"tokens_per_second": 1, "mfu_percent": 1}}


class Recorder:
    """In the place of CloudWatch's client."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def put_metric_data(self, **given: Any) -> None:
        self.calls.append(given)


@pytest.fixture(scope="module")
def assembly(wheels):
    return Assembly(wheels, LIMITS)


@pytest.fixture(scope="module")
def published(assembly):
    """What a run publishes whose node was told what this stack tells: namespace -> name -> row."""
    names = dict(re.findall(r'"(\w+)": "(ISOMORPH_\w+)"', ON_CREATE))
    told, recorder = assembly.told(), Recorder()
    variables = {names[key]: told[key] for key in ("metric_namespace", "cluster")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sent, "client", lambda *_, **__: recorder)
        run = sent.Metrics.from_environment(variables, run="r", parameters={})
        run.record(STEP)
        run.close()
    [call] = recorder.calls
    return call["Namespace"], {row["MetricName"]: row for row in call["MetricData"]}


@pytest.fixture(scope="module")
def shown(assembly):
    """What the dashboard shows of runs: (namespace, name, dimension, value)."""
    [found] = resources(assembly.template, "AWS::CloudWatch::Dashboard").values()
    widgets = json.loads(literal(found["Properties"]["DashboardBody"]))["widgets"]
    rows = [row for each in widgets for row in each["properties"]["metrics"]]
    return [tuple(each for each in row if isinstance(each, str)) for row in rows]


def alarms(template: dict[str, Any]) -> list[dict[str, Any]]:
    found = resources(template, "AWS::CloudWatch::Alarm").values()
    return [each["Properties"] for each in found]


def test_the_dashboard_shows_all_that_a_run_publishes_under_its_own_names(published, shown):
    namespace, rows = published
    of_runs = [row for row in shown if len(row) > 2]
    assert {row[0] for row in of_runs} == {namespace}
    assert {row[1] for row in of_runs} == set(rows)
    for _, name, *dimension in of_runs:
        [given] = rows[name]["Dimensions"]
        assert dimension == [given["Name"], given["Value"]]


def test_alarms_look_at_metrics_that_a_run_publishes(assembly, published):
    namespace, rows = published
    watched = {each["MetricName"]: each for each in alarms(assembly.template)
               if "Dimensions" in each}  # fmt: skip
    assert set(watched) == {
        "TokensPerSecond", "ModelFlopsUtilization", "ExpertLoadMaxOverMean", "GradientNorm",
        "NonFiniteSteps", "DroppedTokens", "CheckpointAge",
    }  # fmt: skip
    for name, each in watched.items():
        assert each["Namespace"] == namespace
        assert each["Dimensions"] == rows[name]["Dimensions"]
        assert each["AlarmActions"]


def test_a_threshold_is_in_the_unit_that_is_published(assembly, published):
    _, rows = published
    assert rows["ModelFlopsUtilization"]["Unit"] == "Percent"
    assert rows["ModelFlopsUtilization"]["Values"] == [pytest.approx(40)]
    assert rows["CheckpointAge"]["Unit"] == "Seconds"
    assert math.isclose(rows["ExpertLoadMaxOverMean"]["Values"][0], STEP.expert_load)
    thresholds = {each["MetricName"]: each["Threshold"] for each in alarms(assembly.template)}
    assert (thresholds["ModelFlopsUtilization"], thresholds["CheckpointAge"]) == (1, 3600)


def test_filters_count_what_the_scripts_write_into_the_group_that_they_are_told(assembly):
    template = assembly.template
    found = resources(template, "AWS::Logs::MetricFilter").values()
    [ours] = [
        each["Properties"] for each in found if "event" in each["Properties"]["FilterPattern"]
    ]
    wanted = re.findall(r'\$\.(\w+) = "(\w+)"', ours["FilterPattern"])
    assert dict(wanted) == {"event": "phase", "state": "failed"}
    assert '"event": "phase"' in ON_CREATE
    assert re.search(r'^  marker "\S+" failed ', ON_CREATE, re.MULTILINE)
    assert '"state": state' in ON_CREATE
    [told] = [each["Properties"] for each in resources(template, "AWS::SSM::Parameter").values()
              if each["Properties"]["Name"].endswith("/training")]  # fmt: skip
    [group] = [name for name in resources(template, "AWS::Logs::LogGroup") if name in str(
        ours["LogGroupName"])]  # fmt: skip
    assert group in literal(told["Value"])
    assert 'create-log-stream --log-group-name "$ISOMORPH_LOG_GROUP"' in ON_CREATE


def test_findings_about_nodes_are_counted_shown_and_raise_an_alarm(assembly, shown):
    name = output("ClusterName")(assembly.template)
    counted = {f"UnhealthyNodes-{name}", f"FailedPhases-{name}"}
    found = resources(assembly.template, "AWS::Logs::MetricFilter").values()
    transformations = [each["Properties"]["MetricTransformations"][0] for each in found]
    assert {each["MetricName"] for each in transformations} == counted
    assert {each["MetricNamespace"] for each in transformations} == {"Isomorph/moe-training"}
    assert {row[1] for row in shown if len(row) == 2} == counted
    raised = {each["MetricName"] for each in alarms(assembly.template) if "Dimensions" not in each}
    assert raised == counted
