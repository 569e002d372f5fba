"""Settings of moe.serving: what each one changes, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.cdk_app import literal, only, resources

from config import EnvironmentConfig, load_environments  # isort: skip
from stacks.moe import MoeSettings  # isort: skip
from stacks.moe_serving_settings import (  # isort: skip
    CanarySettings, EndpointSettings, MoeServingSettings, NightSettings, PoolSettings,
)  # fmt: skip
from tests.stacks.conftest import CERTIFICATE, ENVIRONMENT  # isort: skip
from tests.stacks.moe_serving_reader import (  # isort: skip
    GROUP,
    LARGE,
    NIGHT,
    POINTER,
    R7I,
    TARGET,
    TWO,
    container,
    data,
    default_pool,
    endpoint,
    env,
    group,
    pool,
    schedules,
    session,
    threshold,
    timezone,
    tracking,
    traffic,
    variant,
    volume,
    weights_of,
)
from tests.stacks.together import Together  # isort: skip

# Setting -> (what is given, how to read it, what it is in the template).
TRACE: dict[str, tuple[Any, Any, Any]] = {
    "engine": ({**R7I, "engine": "native"}, env("ISOMORPH_ENGINE"), "native"),
    "dtype": ({**R7I, "dtype": "float32"}, env("ISOMORPH_DTYPE"), "float32"),
    "quantization": ({**R7I, "quantization": "int8"}, env("ISOMORPH_QUANTIZATION"), "int8"),
    "python": ({**R7I, "python": "3.11"}, env("ISOMORPH_PYTHON"), "python3.11"),
    "architecture": ({**endpoint(), "architecture": "mixtral-8x7b"}, variant("InstanceType"),
                     "ml.inf2.24xlarge"),
    "port": ({**R7I, "port": 9000}, env("ISOMORPH_PORT"), "9000"),
    "slots": ({**R7I, "slots": 16}, env("ISOMORPH_SLOTS"), "16"),
    "context": ({**R7I, "context": 1024}, env("ISOMORPH_CONTEXT"), "1024"),
    "queue": ({**R7I, "queue": 7}, env("ISOMORPH_QUEUE"), "7"),
    "deadline_seconds": ({**endpoint(), "deadline_seconds": 90}, container("ISOMORPH_DEADLINE_S"),
                         "90"),
    "boot_minutes": ({**R7I, "boot_minutes": 22}, lambda found: next(iter(resources(
        found, GROUP).values()))["CreationPolicy"]["ResourceSignal"]["Timeout"], "PT22M"),
    "expert_mib": ({**R7I, "expert_mib": 5}, env("ISOMORPH_EXPERT_MIB"), "5"),
    "expert_source": ({**R7I, "expert_source": "s3"}, env("ISOMORPH_EXPERT_SOURCE"), "s3"),
    "session_minutes": ({**R7I, "session_minutes": 5}, session, "300"),
    "pools": (TWO, env("ISOMORPH_POOLS"), "code,prose"),
    "default_pool": ({**TWO, "default_pool": "prose"},
                     lambda found: "prose" in default_pool(found), True),
    "endpoint": (endpoint(), container("ISOMORPH_FLEET"), "test-moe-serving-endpoint"),
    "certificate_arn": (R7I, lambda found: only(
        found, "AWS::ElasticLoadBalancingV2::Listener")["Certificates"][0]["CertificateArn"],
        CERTIFICATE),
    "alarm_latency_seconds": ({**R7I, "alarm_latency_seconds": 3}, threshold("WatchLatency"), 3),
    "alarm_error_percent": ({**R7I, "alarm_error_percent": 2}, threshold("WatchErrors"), 2),
    "alarm_hit_percent": ({**R7I, "alarm_hit_percent": 66}, threshold("ExpertWatchHitRate"), 66),
    "alarm_stall_percent": ({**R7I, "alarm_stall_percent": 44}, threshold("ExpertWatchStall"), 44),
    "pool.instance_type": (pool(instance_type="c7i.xlarge"),
                           lambda found: data(found)["InstanceType"], "c7i.xlarge"),
    "pool.volume_gib": (pool(volume_gib=77), volume, 77),
    "pool.min_capacity": (pool(min_capacity=2, max_capacity=4),
                          lambda found: group("MinSize")(found)["Fn::If"][1], "2"),
    "pool.max_capacity": (pool(max_capacity=9), group("MaxSize"), "9"),
    "pool.warm_pool": (pool(warm_pool=3, max_capacity=9), lambda found: only(
        found, "AWS::AutoScaling::WarmPool")["MinSize"], 3),
    "pool.requests_in_flight_target": (pool(requests_in_flight_target=5, max_capacity=2),
        lambda found: only(found, "AWS::AutoScaling::ScalingPolicy")[
            "TargetTrackingConfiguration"]["TargetValue"], 5),
    "pool.canary": (pool(canary={}), weights_of("code"), [90, 10]),
    "canary.percent": (pool(canary={"percent": 25}), weights_of("code"), [75, 25]),
    "canary.instance_type": (pool(canary={"instance_type": "c7i.2xlarge"}),
        lambda found: data(found, "code-canary")["InstanceType"], "c7i.2xlarge"),
    "canary.capacity": (pool(canary={"capacity": 3}), lambda found: sorted(
        each["Properties"]["MaxSize"] for each in resources(found, GROUP).values()), ["1", "3"]),
    "canary.weights": (pool(canary={"weights": POINTER}), lambda found: POINTER in literal(
        data(found, "code-canary")["UserData"]), True),
    "endpoint.instance_type": (endpoint(instance_type="ml.inf2.8xlarge"), variant("InstanceType"),
                               "ml.inf2.8xlarge"),
    "endpoint.instances": (endpoint(instances=2), variant("InitialInstanceCount"), 2),
    "endpoint.max_instances": (endpoint(max_instances=4),
                               lambda found: only(found, TARGET)["MaxCapacity"], 4),
    "endpoint.volume_gib": (endpoint(volume_gib=99), variant("VolumeSizeInGB"), 99),
    "endpoint.concurrent": ({**endpoint(concurrent=4, max_instances=2)},
                            tracking("Concurrency"), 3),
    "endpoint.invocations": (endpoint(invocations=55, max_instances=2), tracking("Invocations"),
                             55),
    "endpoint.scale_out_seconds": (endpoint(scale_out_seconds=30, max_instances=2),
                                   tracking("Invocations", "ScaleOutCooldown"), 30),
    "endpoint.scale_in_seconds": (endpoint(scale_in_seconds=1800, max_instances=2),
                                  tracking("Concurrency", "ScaleInCooldown"), 1800),
    "endpoint.canary_percent": (endpoint(canary_percent=25, **LARGE),
                                lambda found: traffic(found)["CanarySize"]["Value"], 25),
    "endpoint.canary_minutes": (endpoint(canary_minutes=3, **LARGE),
                                lambda found: traffic(found)["WaitIntervalInSeconds"], 180),
    "endpoint.night": (endpoint(night=NIGHT), schedules,
                       {"cron(0 20 * * ? *)", "cron(30 7 * * ? *)"}),
    "endpoint.alarm_latency_seconds": (endpoint(alarm_latency_seconds=3),
                                       threshold("EndpointAlarmsLatency"), 3e6),
    "endpoint.alarm_errors": (endpoint(alarm_errors=9), threshold("EndpointAlarmsErrors"), 9),
    "night.stop": (endpoint(night={**NIGHT, "stop": "22:15"}),
                   lambda found: "cron(15 22 * * ? *)" in schedules(found), True),
    "night.start": (endpoint(night={**NIGHT, "start": "06:00"}),
                    lambda found: "cron(0 6 * * ? *)" in schedules(found), True),
    "night.timezone": (endpoint(night={**NIGHT, "timezone": "Europe/Berlin"}), timezone,
                       "Europe/Berlin"),
    "night.days": (endpoint(night={**NIGHT, "days": "MON-FRI"}),
                   lambda found: "cron(30 7 ? * MON-FRI *)" in schedules(found), True),
}  # fmt: skip


def test_every_setting_has_a_row() -> None:
    named = {
        *MoeServingSettings.model_fields,
        *(f"pool.{name}" for name in PoolSettings.model_fields),
        *(f"canary.{name}" for name in CanarySettings.model_fields),
        *(f"endpoint.{name}" for name in EndpointSettings.model_fields),
        *(f"night.{name}" for name in NightSettings.model_fields),
    }
    assert set(TRACE) == named


@pytest.fixture(scope="module")
def template_of(synthesize_serving: Callable[..., Any]) -> Together:
    def kind(given: dict[str, Any]) -> tuple[object, ...]:
        pools = given["pools"]
        return (*pools, *("canary" in each for each in pools.values()))

    return Together(
        {name: given for name, (given, _, _) in TRACE.items()},
        lambda given: dict(synthesize_serving(given)["moe-serving"]),
        apart=("architecture", "pool.canary", "endpoint.night", "night.days"),
        kind=kind,
    )


@pytest.mark.parametrize("setting", TRACE)
def test_a_setting_reaches_the_template(template_of, setting: str) -> None:
    _, read, expected = TRACE[setting]
    assert read(template_of[setting]) == expected


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**TWO, "default_pool": "math"}, "default_pool: unknown pool 'math'; allowed: code, prose"),
    ({"pools": {"Code": {}}}, r"got the pool 'Code'; a name must match"),
    ({"pools": {}}, "serving.endpoint: missing, and there are no pools; add endpoint, pools, or"),
    (pool(instance_type="t3.micro"), "instance_type: got 't3.micro'; allowed: c7i."),
    (pool(instance_type="inf1.xlarge"), "instance_type: got 'inf1.xlarge'; allowed: "),
    (pool(min_capacity=3, max_capacity=2), "got 2; must be at least min_capacity, which is 3"),
    (pool(canary={"percent": 60}), "canary.percent: got 60; should be less than or equal to 50"),
    (pool(canary={"weights": "s3://x"}), "canary.weights: got 's3://x'; must match"),
    (pool(requests_in_flight_target=9), "got 9; must be at most slots, which is 8"),
    (pool(instance_type="inf2.xlarge", volume_gib=50), "got 50; the image of inf2.xlarge has 100"),
    ({**R7I, "expert_mib": 0}, "expert_mib: got 0; should be greater than or equal to 1"),
    ({**pool(), "dtype": "float32", "architecture": "mixtral-8x7b", "expert_mib": 100},
     "expert_mib: got 100 MiB; the 2 active experts of one layer of mixtral-8x7b take "
     "1,344.0 MiB in fp32: give at least 1344, or leave it out"),
    ({**R7I, "architecture": "mixtral-8x7b"},
     "pools.code.instance_type: got 'r7i.large'; mixtral-8x7b does not fit: one sequence needs"),
    ({**R7I, "architecture": "mixtral-8x7b", "expert_mib": 16384},
     "with expert_mib 16384 needs 19.2 GiB, it has 12.8 usable; what would: a larger type"),
    ({**R7I, "architecture": "llama-3-8b"}, "serving.architecture: llama-3-8b has no experts"),
    ({**R7I, "architecture": "nobody"}, "serving.architecture: no model 'nobody'"),
    ({**R7I, "context": 100000}, "serving.context: got 100000; tiny-moe was made for 32768"),
    ({**R7I, "python": "host"}, "python: got 'host', which is only for aws: embedded"),
    (endpoint(instance_type="ml.c7i.large"), "got 'ml.c7i.large'; allowed: ml.inf2.xlarge"),
    ({**endpoint(instance_type="ml.inf2.xlarge"), "architecture": "mixtral-8x7b"},
     "mixtral-8x7b on ml.inf2.xlarge: one sequence needs"),
    (endpoint(instance_type="ml.trn2.48xlarge"), "ml.trn2.48xlarge: not sold in us-east-1"),
    (endpoint(instances=3, max_instances=2), "got 2; must be at least instances, which is 3"),
    (endpoint(night={**NIGHT, "stop": "25:00"}), "got '25:00'; must be hours and minutes"),
    (endpoint(night={**NIGHT, "start": "20:00"}), "got '20:00', which is when it stops"),
    (endpoint(night={**NIGHT, "timezone": "Mars"}), "got 'Mars'; must be a time zone such as"),
    (endpoint(night={**NIGHT, "days": "MON-XYZ"}), "got 'MON-XYZ'; must be *, or days such as"),
    (endpoint(night={"stop": "20:00"}), "night.start: missing; add it (when it comes back"),
    ({**R7I, "pool": 1}, "serving.pool: unknown key; allowed: "),
    (pool(size=1), "pools.code.size: unknown key; allowed: canary, instance_type"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_fails_when(tmp_path, given: dict[str, Any], said: str) -> None:
    from ruamel.yaml import YAML

    from config import ConfigError

    section = {"model": "tiny-moe", "serving": {"certificate_arn": CERTIFICATE, **given}}
    raw = {key: value for key, value in ENVIRONMENT.items() if key != "name"}
    with (tmp_path / "test.yaml").open("w") as file:
        YAML().dump({**raw, "innovations": {"moe": section}}, file)
    with pytest.raises(ConfigError) as refused:
        load_environments(settings={"moe": MoeSettings}, folder=tmp_path)
    lines = str(refused.value).splitlines()
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_fails_when_the_certificate_is_missing() -> None:
    settings = MoeSettings(model="tiny-moe", serving=R7I)
    found = dict(settings.conflicts(EnvironmentConfig(**ENVIRONMENT)))
    assert "add the ARN of an ACM certificate" in found["serving.certificate_arn"]


def test_a_size_below_the_load_is_remarked() -> None:
    settings = MoeSettings(model="tiny-moe", serving=endpoint(instances=1, concurrent=10000))
    [remark] = settings.remarks("us-east-1")
    assert remark.startswith("serving: endpoint.instances 1: the load takes ")


def test_a_pool_fits_with_a_budget_for_experts() -> None:
    given = {**pool(instance_type="r7i.2xlarge"), "architecture": "mixtral-8x7b",
             "certificate_arn": CERTIFICATE}  # fmt: skip
    whole = MoeSettings(model="tiny-moe", serving=given)
    part = MoeSettings(model="tiny-moe", serving={**given, "expert_mib": 40000})
    here = EnvironmentConfig(**ENVIRONMENT)
    assert [key for key, _ in whole.conflicts(here)] == ["serving.pools.code.instance_type"]
    assert list(part.conflicts(here)) == []
