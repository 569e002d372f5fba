"""Endpoints: the container contract is started from the deployed archive, kept up, and updated."""

import copy
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local_aws.endpoints.container import Container
from local_aws.endpoints.endpoint import Endpoint, Rollout, Variant
from local_aws.endpoints.image import Image
from tests.local_aws import samples_endpoints as samples
from tests.local_aws.conftest import Emulator, alive, until

STACK = "served"


def template(**environment: str) -> dict[str, Any]:
    """Return the stack with the container's variables, as a new model and configuration."""
    made = copy.deepcopy(samples.ENDPOINTS)
    made["Model"] = samples.model(**environment)
    return {"Resources": made}


@pytest.fixture(scope="module")
def served(emulator: Emulator) -> Iterator[Emulator]:
    s3 = emulator.client("s3")
    s3.create_bucket(Bucket=samples.BUCKET)
    s3.put_object(Bucket=samples.BUCKET, Key="model.gz", Body=samples.archive())
    assert emulator.create(STACK, template()) == "CREATE_COMPLETE", emulator.failure(STACK)
    yield emulator
    emulator.delete(STACK)


def name(emulator: Emulator) -> str:
    return emulator.resources(STACK)["Endpoint"].physical_id.rpartition("/")[2]


def ask(emulator: Emulator, **body: Any) -> dict[str, Any]:
    answer = emulator.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=name(emulator), ContentType="application/json", Body=json.dumps(body)
    )
    found: dict[str, Any] = json.load(answer["Body"])
    return found


def described(emulator: Emulator) -> dict[str, Any]:
    found: dict[str, Any] = emulator.client("sagemaker").describe_endpoint(
        EndpointName=name(emulator)
    )
    return found


def test_an_endpoint_answers_from_the_deployed_archive(served: Emulator) -> None:
    said = ask(served, prompt="x")
    assert said["got"] == {"prompt": "x"}
    assert said["given"] == "this"
    [variant] = described(served)["ProductionVariants"]
    assert variant["CurrentInstanceCount"] == 1


def test_a_container_knows_nothing_of_the_repository(served: Emulator) -> None:
    said = ask(served)
    [container] = served.running.containers()
    root = str(Path(container["log"]).parent)
    assert said["model"] == f"{root}/opt/ml/model" == said["cwd"]
    assert str(Path(__file__).parents[2]) not in json.dumps(said["path"]).replace(".venv", "")
    assert said["environment"]["TMPDIR"] == f"{root}/tmp"  # noqa: S108


def test_a_stream_comes_in_events(served: Emulator) -> None:
    answer = served.client("sagemaker-runtime").invoke_endpoint_with_response_stream(
        EndpointName=name(served), ContentType="application/json", Body=b'{"prompt": "y"}'
    )
    parts = [event["PayloadPart"]["Bytes"] for event in answer["Body"]]
    assert json.loads(b"".join(parts))["got"] == {"prompt": "y"}
    assert answer["InvokedProductionVariant"] == "contract-variant"


def test_what_the_container_refuses_is_a_model_error(served: Emulator) -> None:
    with pytest.raises(ClientError) as refused:
        ask(served, fail="on purpose")
    assert refused.value.response["Error"]["Code"] == "ModelError"
    assert refused.value.response["OriginalStatusCode"] == 500


def test_fails_when_there_is_no_such_endpoint(served: Emulator) -> None:
    with pytest.raises(ClientError, match="Endpoint nobody of account not found"):
        served.client("sagemaker-runtime").invoke_endpoint(EndpointName="nobody", Body=b"{}")


def test_a_container_that_is_killed_is_started_again(served: Emulator) -> None:
    before = ask(served)["pid"]
    os.kill(before, signal.SIGKILL)

    def again() -> int | None:
        try:
            return int(ask(served)["pid"])
        except ClientError:
            return None

    after = until(again, "an answer of another process")
    assert after != before
    [container] = served.running.containers()
    assert container["restarts"] == 1


def test_a_count_that_is_changed_is_followed(served: Emulator) -> None:
    def scale(count: int) -> None:
        served.client("sagemaker").update_endpoint_weights_and_capacities(
            EndpointName=name(served),
            DesiredWeightsAndCapacities=[
                {"VariantName": "contract-variant", "DesiredInstanceCount": count}
            ],
        )
        until(lambda: len(served.running.containers()) == count, f"{count} containers")

    scale(2)
    assert len({ask_patiently(served) for _ in range(8)}) == 2
    scale(1)


def ask_patiently(emulator: Emulator) -> int:
    def look() -> int | None:
        try:
            return int(ask(emulator)["pid"])
        except ClientError:  # it loads its model
            return None

    return until(look, "an answer")


def test_an_update_takes_over_and_the_old_container_ends(served: Emulator) -> None:
    before = ask(served)["pid"]
    assert served.update(STACK, template(GIVEN="that")) == "UPDATE_COMPLETE"
    said = ask(served)
    assert said["given"] == "that"
    assert said["pid"] != before
    until(lambda: not alive(before), "the end of the old container")


def test_an_update_that_does_not_come_up_goes_back(served: Emulator) -> None:
    before = ask(served)["pid"]
    assert served.update(STACK, template(BREAK="1")) == "UPDATE_ROLLBACK_COMPLETE"
    assert "isomorph: told to break" in served.failure(STACK)
    assert ask(served)["pid"] == before
    assert described(served)["EndpointStatus"] == "InService"


def test_an_endpoint_that_does_not_come_up_rolls_the_stack_back(served: Emulator) -> None:
    assert served.create("broken", template(BREAK="1")) == "ROLLBACK_COMPLETE"
    assert "ended 3 times before it was healthy: isomorph: told to break" in served.failure(
        "broken"
    )
    names = [one["endpoint"] for one in served.running.containers()]
    assert not [one for one in names if one.startswith("broken")]


def test_fails_when_the_model_cannot_be_loaded(served: Emulator) -> None:
    assert served.create("failing", template(FAIL="1")) == "ROLLBACK_COMPLETE"
    assert "answers /ping with 500: toolkit: model_fn failed" in served.failure("failing")


def test_fails_when_there_are_no_model_data(served: Emulator) -> None:
    made = template()
    source = made["Resources"]["Model"]["Properties"]["PrimaryContainer"]["ModelDataSource"]
    source["S3DataSource"]["S3Uri"] = f"s3://{samples.BUCKET}/nothing.gz"
    assert served.create("empty", made) == "ROLLBACK_COMPLETE"
    assert "nothing.gz cannot be fetched" in served.failure("empty")


@pytest.mark.parametrize(
    ("where", "given", "said"),
    [
        ("Model", {"Containers": []}, "SageMaker::Model: Containers is not played here"),
        ("Config", {"AsyncInferenceConfig": {}}, "AsyncInferenceConfig is not played here"),
    ],
)
def test_fails_when_a_property_would_be_dropped(
    served: Emulator, where: str, given: dict[str, Any], said: str
) -> None:
    made = template()
    made["Resources"][where]["Properties"] |= given
    stack = f"dropping-{where.lower()}"
    assert served.create(stack, made) == "ROLLBACK_COMPLETE"
    assert said in served.failure(stack)


def test_scaling_is_recorded(served: Emulator) -> None:
    scaling = served.client("application-autoscaling")
    [target] = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert target["ResourceId"] == f"endpoint/{name(served)}/variant/contract-variant"
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)
    [policy] = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    tracking = policy["TargetTrackingScalingPolicyConfiguration"]
    assert tracking["ScaleInCooldown"] == 900


class _Given:
    """S3 with one archive."""

    def get_object(self, **_: str) -> dict[str, Any]:
        import io

        return {"Body": io.BytesIO(samples.archive())}


def test_a_container_that_never_answers_fails_within_its_time(tmp_path: Path) -> None:
    model = {
        "ModelName": "hanging",
        "PrimaryContainer": {
            "Image": "x",
            "ModelDataUrl": "s3://b/k",
            "Environment": {"HANG": "1"},
        },
    }
    image = Image(tmp_path / "image")
    config = {"VariantName": "v", "ModelName": "hanging",
              "ContainerStartupHealthCheckTimeoutInSeconds": 1}  # fmt: skip

    def make(_: str) -> Container:
        return Container(tmp_path / "container", image, model, _Given(), {})

    endpoint = Endpoint("e", "arn", make, Rollout("config", [Variant(config, 1)]))

    def failed() -> bool:
        endpoint.step()
        return endpoint.status == "Failed"

    until(failed, "the endpoint's failure", 10)
    assert "did not pass the ping health check in 1 s" in endpoint.reason
    assert endpoint.containers() == []
    assert not (tmp_path / "container").exists()


@pytest.mark.parametrize(
    ("name", "kind", "filtered"),
    [
        ("../../../../escaped", b"0", True),
        ("../../../../escaped", b"0", False),  # by a Python before 3.11.4
        ("/absolute", b"0", False),
        ("link", b"2", False),
        ("pipe", b"6", False),
    ],
)
def test_an_archive_that_leads_out_of_its_folder_is_refused(
    tmp_path: Path, name: str, kind: bytes, filtered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import tarfile

    if not filtered:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd" if kind == b"2" else ""
        tar.addfile(entry)

    class Hostile:
        def get_object(self, **_: str) -> dict[str, Any]:
            return {"Body": io.BytesIO(out.getvalue())}

    from local_aws.errors import EmulatorError

    model = {"ModelName": "m", "PrimaryContainer": {"ModelDataUrl": "s3://b/k"}}
    container = Container(tmp_path / "c", Image(tmp_path / "image"), model, Hostile(), {})
    reason = f"s3://b/k cannot be unpacked: '{name}' is no file or folder, or leads out of"
    with pytest.raises(EmulatorError, match=reason):
        container.fetch()
    assert not (tmp_path / "escaped").exists()
    assert list((tmp_path / "c/opt/ml/model").iterdir()) == []
