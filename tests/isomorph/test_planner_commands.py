"""`isomorph plan`, `doctor`, `diff` and `prices`, as a person at the terminal meets them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner
from moto import mock_aws

from config import ConfigError, loader
from isomorph.commands.diff import diff
from isomorph.commands.doctor import doctor
from isomorph.commands.plan import plan
from isomorph.commands.prices import prices
from isomorph.errors import UserError

OLD = {
    "Resources": {
        "Models": {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": "before-models"}},
        "Note": {"Type": "AWS::SNS::Topic", "Properties": {"DisplayName": "before"}},
    }
}


def run(command: Any, *arguments: str) -> Any:
    return CliRunner().invoke(command, arguments)


def refused(command: Any, *arguments: str) -> str:
    done = run(command, *arguments)
    assert isinstance(done.exception, UserError | ConfigError), done.output
    return str(done.exception)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copied = Path(shutil.copytree(loader.FOLDER, tmp_path / "config"))
    monkeypatch.setattr(loader, "FOLDER", copied)
    return copied


def test_plan_prints_text_with_the_numbers() -> None:
    done = run(plan, "deepseek-v3", "--load", "concurrent=4", "--load", "dtype=fp8,kv_dtype=fp8")
    assert done.exit_code == 0
    assert "671,026,404,352 in all" in done.output
    assert "Load in us-east-1: 4 sequences in flight" in done.output


def test_plan_prints_json_and_nothing_else() -> None:
    done = run(plan, "llama-3-8b", "--region", "us-east-2", "--context", "5000", "--json")
    shape = json.loads(done.stdout)
    assert shape["region"] == "us-east-2"
    assert shape["kv_cache"]["bytes_at"]["5000"] == 5000 * 131_072


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no model 'nothing': not a folder"),
        (["llama-3-8b", "--load", "concurrent=0"], "load: concurrent is 0; allowed is above 0"),
        (["llama-3-8b", "--region", "mars-1"], "region 'mars-1' is not known"),
        (["llama-3-8b", "--write", "dev", "--region", "eu-west-1"], "dev is in us-east-1; leave"),
        (["llama-3-8b", "--write", "nowhere"], "nowhere"),
    ],
)
def test_plan_refuses_in_one_line(arguments: list[str], message: str) -> None:
    said = refused(plan, *arguments)
    assert message in said
    assert "\n" not in said


def test_plan_writes_sizes_that_the_environment_accepts(folder: Path) -> None:
    done = run(plan, "smollm2-135m", "--load", "concurrent=16", "--write", "dev")
    assert done.exit_code == 0, done.exception
    text = (folder / "dev.yaml").read_text()
    assert "slots: 16" in text
    assert "model: smollm2-135m-instruct" in text
    assert text.startswith("# The smallest that is real on AWS.")
    again = run(plan, "smollm2-135m", "--load", "concurrent=16", "--write", "dev")
    assert "dev.yaml: nothing to change" in again.stderr


def test_plan_leaves_the_file_when_the_environment_would_refuse_it(folder: Path) -> None:
    file = folder / "dev.yaml"
    text = file.read_text().replace("max_capacity: 2", "max_capacity: 2\n    mistake: 1")
    file.write_text(text)
    assert "mistake" in refused(plan, "smollm2-135m", "--write", "dev")
    assert file.read_text() == text


def test_doctor_finds_no_problem_in_what_we_ship() -> None:
    for name in ("dev", "prod"):
        done = run(doctor, name)
        assert done.exit_code == 0, done.output
        assert "Running On-Demand Standard" in done.output


def test_doctor_ends_with_1_when_a_plan_has_a_problem() -> None:
    done = run(doctor, "dev", "--model", "deepseek-v3", "--load", "dtype=fp8", "--json")
    findings = json.loads(done.stdout)
    assert {"what", "why", "fix", "incident", "level"} <= set(findings[0])
    assert done.exit_code == int(any(f["level"] == "problem" for f in findings))


def test_doctor_refuses_a_load_that_cannot_be() -> None:
    assert "load: 'x' is not name=value" in refused(
        doctor, "dev", "--model", "llama-3-8b", "--load", "x"
    )


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A stack dev-gqa that is deployed as OLD, and what the checkout synthesizes in its place."""
    new: dict[str, Any] = json.loads(json.dumps(OLD))

    def synth(arguments: list[str], **_: Any) -> str:
        out = Path(arguments[arguments.index("--output") + 1]) / "assembly-dev"
        out.mkdir()
        (out / "dev-gqa.template.json").write_text(json.dumps(new))
        (out / "dev-foundation.template.json").write_text('{"Resources": {}}')
        return ""

    monkeypatch.setattr("isomorph.cdk.run", synth)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        client = boto3.client("cloudformation", region_name="us-east-1")
        client.create_stack(StackName="dev-gqa", TemplateBody=json.dumps(OLD))
        yield new


def test_diff_names_replacements_and_refuses_what_loses_data(deployed: dict[str, Any]) -> None:
    deployed["Resources"]["Models"]["Properties"]["BucketName"] = "after-models"
    deployed["Resources"]["Note"]["Properties"]["DisplayName"] = "after"
    done = run(diff, "dev")
    assert "dev-foundation: not deployed, everything in it is new" in done.stderr
    assert 'replace Models (AWS::S3::Bucket): BucketName: "before-models"' in done.stdout
    assert 'update Note (AWS::SNS::Topic): DisplayName: "before" -> "after"' in done.stdout
    assert "add --allow-replace if that is meant" in str(done.exception)
    allowed = run(diff, "dev", "--allow-replace", "--json")
    assert allowed.exit_code == 0
    assert [row["loses_data"] for row in json.loads(allowed.stdout)] == [True, False]


def test_diff_of_nothing_changed_says_so(deployed: dict[str, Any]) -> None:
    done = run(diff, "dev")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "0 changes" in done.stderr


def test_prices_are_shown_with_source_and_age() -> None:
    rows = json.loads(run(prices, "show", "--json").stdout)
    [row] = [row for row in rows if row["item"] == "ml.inf2.xlarge"]
    assert row["old"] is True
    assert row["source"]
    assert "c7i.large" in run(prices, "show").output


def test_prices_refresh_refuses_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    assert "region 'mars-1' is not known" in refused(prices, "refresh", "--region", "mars-1")
