"""Settings of sliding-window attention, and the function that they make."""

from typing import Any

import pytest

from tests.cdk_app import literal, only, resources

from config import ConfigError  # isort: skip
from stacks.fleet_settings import LoadedFleetSettings  # isort: skip
from stacks.sliding_window_settings import (  # isort: skip
    SlidingWindowSettings,
    WindowFunctionSettings,
)
from tests.stacks.test_gqa import data, env_line  # isort: skip

FUNCTION, CLOUDFRONT = "AWS::Lambda::Function", "AWS::CloudFront::Distribution"
KEY_GROUP = "00000000-0000-0000-0000-000000000001"
ACL = "arn:aws:wafv2:us-east-1:111122223333:global/webacl/name/id"


def variable(name: str) -> Any:
    return lambda found: only(found, FUNCTION)["Environment"]["Variables"][name]


def alarm(name: str, key: str = "Threshold") -> Any:
    def read(template: dict) -> Any:
        alarms = resources(template, "AWS::CloudWatch::Alarm").items()
        [found] = [
            each for logical_id, each in alarms if f"WindowFunctionWatch{name}" in logical_id
        ]
        return found["Properties"][key]

    return read


def viewers(template: dict) -> Any:
    config = only(template, CLOUDFRONT)["DistributionConfig"]
    return config["DefaultCacheBehavior"]["TrustedKeyGroups"]


# Of a function with everything that goes together; what does not has a test of its own below.
TRACE = {
    "package": ("zip", lambda found: "S3Key" in only(found, FUNCTION)["Code"], True),
    "python": ("3.13", lambda found: only(found, FUNCTION)["Runtime"], "python3.13"),
    "processor": ("arm64", lambda found: only(found, FUNCTION)["Architectures"], ["arm64"]),
    "memory_mib": (3000, lambda found: only(found, FUNCTION)["MemorySize"], 3000),
    "ephemeral_mib": (900, lambda found: only(found, FUNCTION)["EphemeralStorage"]["Size"], 900),
    "timeout_seconds": (300, lambda found: only(found, FUNCTION)["Timeout"], 300),
    "context": (4000, variable("ISOMORPH_CONTEXT"), "4000"),
    "streaming": (True, lambda found: only(found, "AWS::Lambda::Url")["InvokeMode"],
                  "RESPONSE_STREAM"),
    "reserved_concurrency": (
        7, lambda found: only(found, FUNCTION)["ReservedConcurrentExecutions"], 7),
    "provisioned_concurrency": (
        3, lambda found: only(found, "AWS::Lambda::Alias")["ProvisionedConcurrencyConfig"],
        {"ProvisionedConcurrentExecutions": 3}),
    "cloudfront_key_group": (KEY_GROUP, viewers, [KEY_GROUP]),
    "cloudfront_web_acl_arn": (
        ACL,
        lambda found: only(found, CLOUDFRONT)["DistributionConfig"]["WebACLId"], ACL),
    "alarm_duration_share": (0.5, alarm("Duration"), 150_000),
    "alarm_errors": (4, alarm("Errors"), 4),
}  # fmt: skip
APART = {"snap_start", "managed_instance_types", "managed_max_vcpus"}


@pytest.fixture(scope="module")
def everything(synthesize_window):
    given = {name: value for name, (value, _, _) in TRACE.items()}
    return synthesize_window({"slots": 8}, given)["sliding_window"]


@pytest.fixture(scope="module")
def plain(synthesize_window):
    return synthesize_window({})["sliding_window"]


def test_every_setting_of_the_function_is_followed():
    assert {*TRACE, *APART} == set(WindowFunctionSettings.model_fields)


def test_the_fleets_settings_are_those_of_every_fleet_and_the_function():
    own = set(SlidingWindowSettings.model_fields) - set(LoadedFleetSettings.model_fields)
    assert own == {"function"}


@pytest.mark.parametrize("name", TRACE)
def test_setting_reaches_the_template(everything, name):
    _, read, expected = TRACE[name]
    assert read(everything) == expected


def test_every_setting_says_what_it_is():
    assert all(field.description for field in WindowFunctionSettings.model_fields.values())


def test_snap_start_is_for_buffered_answers_of_published_versions(synthesize_window):
    template = synthesize_window({}, {"snap_start": True, "streaming": False})["sliding_window"]
    assert only(template, FUNCTION)["SnapStart"] == {"ApplyOn": "PublishedVersions"}
    assert only(template, "AWS::Lambda::Url")["InvokeMode"] == "BUFFERED"
    assert "AWS_LAMBDA_EXEC_WRAPPER" not in only(template, FUNCTION)["Environment"]["Variables"]
    assert "FunctionName" in only(template, "AWS::Lambda::Alias")


def test_managed_instances_are_of_the_types_that_are_named_and_bounded(synthesize_window):
    function = {
        "managed_instance_types": ["r7i.large", "r7i.xlarge"],
        "managed_max_vcpus": 24,
        "reserved_concurrency": None,
        "memory_mib": 4096,
    }
    template = synthesize_window({}, function)["sliding_window"]
    provider = only(template, "AWS::Lambda::CapacityProvider")
    assert provider["InstanceRequirements"] == {
        "AllowedInstanceTypes": ["r7i.large", "r7i.xlarge"],
        "Architectures": ["x86_64"],
    }
    assert provider["CapacityProviderScalingConfig"]["MaxVCpuCount"] == 24
    assert "KmsKeyArn" in provider
    config = only(template, FUNCTION)["CapacityProviderConfig"]
    inner = config["LambdaManagedInstancesCapacityProviderConfig"]
    assert inner["PerExecutionEnvironmentMaxConcurrency"] == 1


def test_an_image_synthesizes_without_docker_and_starts_our_runtime(synthesize_window):
    template = synthesize_window({}, {"package": "image"})["sliding_window"]
    function = only(template, FUNCTION)
    assert function["PackageType"] == "Image"
    assert function["ImageConfig"] == {"EntryPoint": ["/var/task/bootstrap"]}
    assert "Runtime" not in function


def test_a_buffered_image_starts_the_runtimes_own_client(synthesize_window):
    function = {"package": "image", "streaming": False, "processor": "arm64"}
    template = synthesize_window({}, function)["sliding_window"]
    assert only(template, FUNCTION)["ImageConfig"] == {
        "Command": ["model_code.sliding_window.handler.function.handle"]
    }


def test_sizes_that_are_left_out_are_the_planners(plain):
    function = only(plain, FUNCTION)
    assert function["MemorySize"] == 10240  # with all six processors
    assert function["EphemeralStorage"] == {"Size": 512}
    assert data(plain)["InstanceType"] == "r7i.large"


def test_streaming_starts_our_runtime_in_place_of_the_managed_one(plain):
    assert variable("AWS_LAMBDA_EXEC_WRAPPER")(plain) == "/var/task/bootstrap"


def test_the_url_asks_for_a_signature(plain):
    assert only(plain, "AWS::Lambda::Url")["AuthType"] == "AWS_IAM"


def test_what_fails_asynchronously_goes_to_an_encrypted_queue_over_tls(plain):
    assert only(plain, "AWS::SQS::Queue")["SqsManagedSseEnabled"] is True
    [statement] = only(plain, "AWS::SQS::QueuePolicy")["PolicyDocument"]["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert only(plain, FUNCTION)["DeadLetterConfig"]["TargetArn"]["Fn::GetAtt"][1] == "Arn"


def test_the_log_group_has_a_key_and_an_end(plain):
    groups = resources(plain, "AWS::Logs::LogGroup").values()
    assert all("KmsKeyId" in each["Properties"] for each in groups)
    assert all(each["Properties"]["RetentionInDays"] == 90 for each in groups)


def test_throttles_errors_duration_and_dead_letters_raise_alarms(plain):
    alarms = [name for name in resources(plain, "AWS::CloudWatch::Alarm") if "FunctionW" in name]
    assert len(alarms) == 4
    for name in ("Throttles", "Errors", "Duration", "DeadLetters"):
        assert alarm(name, "AlarmActions")(plain)


def test_the_dashboard_shows_what_a_window_makes_different(plain):
    [board] = [
        literal(each["Properties"]["DashboardBody"])
        for name, each in resources(plain, "AWS::CloudWatch::Dashboard").items()
        if "WindowFunction" in name
    ]
    for figure in ("WindowOccupancy", "ColdStart", "MemoryHeadroom", "TokensPerSecond"):
        assert figure in board


def test_the_fleets_dashboard_shows_its_windows_and_what_memory_is_left(plain):
    [board] = [
        literal(each["Properties"]["DashboardBody"])
        for name, each in resources(plain, "AWS::CloudWatch::Dashboard").items()
        if "DecodeFleet" in name
    ]
    for figure in ("WindowOccupancy", "MemoryHeadroom", "TokensPerSecond"):
        assert f'"Isomorph/sliding_window","{figure}","Fleet","test-sliding-window"' in board


def test_the_nodes_memory_is_set_up_for_bandwidth(plain):
    assert env_line("ISOMORPH_HUGE_PAGES")(plain) == "always"
    assert env_line("ISOMORPH_NUMA")(plain) == "interleave"


def test_commands_find_both_halves(plain, everything):
    assert {"Endpoint", "Fleet", "Weights", "Engine", "Function", "FunctionUrl"} == set(
        plain["Outputs"]
    )
    hint = everything["Outputs"]["CloudFront"]["Description"]
    assert "x-amz-content-sha256" in hint


@pytest.mark.parametrize(
    ("settings", "function", "line"),
    [
        ({"model": "llama-3-8b"}, {}, "model: llama-3-8b has no sliding window; what has one: gem"),
        ({"model": "none-7b"}, {}, "model: no model 'none-7b': not a folder, not a file, and not"),
        ({"model": "gemma-3-27b", "instance_type": "r7i.8xlarge"}, {},
         "what would fit: "),
        ({}, {"memory_mib": 300}, "what would fit: memory_mib="),
        ({"context": 512}, {}, "context: got 512; must be above the window of gemma-3-270m, 512"),
        ({}, {"context": 65536}, "function.context: got 65536; must be above the window of gemma"),
        ({"context": 65536}, {}, "and at most the 32768 that it was made for"),
        ({"instance_type": "c7i.large"}, {}, "instance_type: got 'c7i.large'; allowed: auto, r7i."),
        ({}, {"python": "3.9"}, "function.python: got '3.9'; allowed: 'host', '3.12'"),
        ({}, {"python": "host"}, "function.python: got 'host', which is only for aws: embedded"),
        ({}, {"snap_start": True},
         "function: snap_start: not with our own runtime, which takes part in no snapshot"),
        ({}, {"snap_start": True, "streaming": False, "ephemeral_mib": 1024},
         "function: snap_start: not with 1024 MiB of /tmp; at most 512"),
        ({}, {"snap_start": True, "streaming": False, "package": "image"},
         "function: snap_start: not for images; set package to zip"),
        ({}, {"snap_start": True, "streaming": False, "provisioned_concurrency": 1},
         "function: snap_start: not together with provisioned_concurrency; choose one"),
        ({}, {"provisioned_concurrency": 6},
         "function: provisioned_concurrency: got 6; at most reserved_concurrency, which is 5"),
        ({}, {"managed_instance_types": ["r7i.large"]},
         "function: managed_instances: they keep environments of their own; without snap_start"),
        ({}, {"managed_instance_types": ["r7i.large"], "reserved_concurrency": None,
              "memory_mib": 1024},
         "function: managed_instances: memory_mib is 1024; at least 2048"),
        ({}, {"managed_instance_types": ["c7i.large"]},
         "function.managed_instance_types: got 'c7i.large'; allowed: r7i.12xlarge"),
        ({}, {"timeout_seconds": 901}, "function.timeout_seconds: got 901; should be less than"),
        ({}, {"cloudfront_key_group": "mine"}, "function.cloudfront_key_group: got 'mine'; "),
    ],
)  # fmt: skip
def test_fails_when_a_setting_is_wrong(synthesize_window, settings, function, line):
    with pytest.raises(ConfigError) as caught:
        synthesize_window(settings, function)
    [found] = str(caught.value).splitlines()
    assert found.startswith("config/test.yaml: innovations.sliding_window.")
    assert line in found


def test_fails_when_tmp_is_too_small_for_the_weights(synthesize_window):
    settings, function = {"model": "gemma-3-1b"}, {"ephemeral_mib": 600}
    with pytest.raises(ConfigError, match=r"function.ephemeral_mib: got 600; the weights of gemma"):
        synthesize_window(settings, function)


def test_fails_when_the_libraries_are_not_built(synthesize_window, tmp_path):
    from stacks.wheelhouse import function_libraries

    with pytest.raises(
        ConfigError, match=r"python 3.14, arm64\) are not built: no sliding_window-f"
    ):
        function_libraries("sliding_window", "3.14", "arm64", tmp_path)
