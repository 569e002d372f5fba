"""Settings of grouped-query attention: each followed from YAML to the template."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.cdk_app import literal, resources

from config import ConfigError  # isort: skip
from planner import plan  # isort: skip
from stacks.fleet_size import SIZED  # isort: skip
from stacks.gqa_settings import GqaSettings  # isort: skip
from tests.stacks.fleet_reader import FLEET_TRACE, LOAD_TRACE, data, env_line, size  # isort: skip

ROOT = Path(__file__).parents[2]
TRACE = {
    **FLEET_TRACE,
    **LOAD_TRACE,
    "engine": ("native", env_line("ISOMORPH_ENGINE"), "native"),
    "instance_type": ("c7i.8xlarge", lambda found: data(found)["InstanceType"], "c7i.8xlarge"),
}


@pytest.fixture(scope="module")
def everything(synthesize):
    return synthesize({name: given for name, (given, _, _) in TRACE.items()})["gqa"]


def test_every_setting_is_followed():
    assert set(TRACE) == set(GqaSettings.model_fields)


@pytest.mark.parametrize("name", TRACE)
def test_setting_reaches_the_template(everything, name):
    _, read, expected = TRACE[name]
    found = read(everything)
    assert expected in found if read is size else found == expected


def test_the_default_engine_is_what_measured_best():
    default = {name: field.default for name, field in GqaSettings.model_fields.items()}
    engine, quantization = default["engine"], default["quantization"]
    document = (ROOT / "docs/engines.md").read_text()
    _, _, table = document.partition("<!-- engines:begin -->\n")  # the best of many requests first
    best = table.splitlines()[2]
    assert f"`engine: {engine}`" in best
    assert f"`quantization: {quantization}`" in best
    assert f"| `gqa` | `{engine}`, `quantization: {quantization}` |" in document


LOAD = {"architecture": "llama-3-8b", "load": {"concurrent": 4, "dtype": "int8"}}


def test_sizes_that_are_left_out_come_from_the_load(synthesize):
    """By the function that `isomorph plan --write` writes them with."""
    template = synthesize(LOAD)["gqa"]
    rows = plan("llama-3-8b", "concurrent=4,dtype=int8").placements
    [planned] = [row.settings for row in rows if row.slug == "gqa"]
    traced = {name: TRACE[name][1](template) for name in SIZED}
    assert traced == {name: type(traced[name])(planned[name]) for name in SIZED}


def test_a_minimum_that_is_given_above_the_plan_raises_the_maximum(synthesize):
    template = synthesize({**LOAD, "min_capacity": 7})["gqa"]
    assert TRACE["min_capacity"][1](template) == TRACE["max_capacity"][1](template) == "7"


def test_a_size_that_is_given_wins_and_the_output_says_what_it_lacks(synthesize):
    template = synthesize({**LOAD, "slots": 1, "requests_in_flight_target": 1, "max_capacity": 1})
    assert TRACE["slots"][1](template["gqa"]) == "1"
    assert "max_capacity 1 x slots 1 take 1 of 4 sequences" in size(template["gqa"])


@pytest.mark.parametrize(
    ("given", "remark"),
    [
        ({"instance_type": "c7i.large"}, "does not fit: one sequence needs"),
        ({"volume_gib": 20}, r"volume_gib 20: the system and the weights take \d+"),
        ({"context": 100, "load": {"context": 4096, "dtype": "int8"}},
         r"context 100: the load's sequences have 4,096 tokens"),
        ({"slots": 256, "context": 4096}, r"slots 256 of 4,096 tokens: \d+ fit the memory"),
    ],
)  # fmt: skip
def test_a_size_below_its_load_is_remarked(given, remark):
    settings = GqaSettings(**{"model": "m", "requests_in_flight_target": 1, **LOAD, **given})
    assert re.search(remark, "\n".join(settings.remarks("us-east-1")))


def test_without_a_load_there_is_nothing_to_remark():
    assert list(GqaSettings(model="m", instance_type="c7i.large").remarks("us-east-1")) == []


def test_every_setting_says_what_it_is():
    assert all(field.description for field in GqaSettings.model_fields.values())


def test_the_hosts_python_is_python3(synthesize):
    embedded = {"aws": "embedded", "account": "000000000000", "budget": {"monthly_usd": 1}}
    gqa = {"python": "host", "certificate_arn": None}
    template = synthesize(gqa, **embedded)["gqa"]
    assert env_line("ISOMORPH_PYTHON")(template) == "python3"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"instance_type": "c7i.tiny"}, "instance_type: got 'c7i.tiny'; allowed: c7i.12xlarge, "),
        ({"instance_type": "c7g.large"}, "instance_type: got 'c7g.large'; allowed: c7i.12xlarge,"),
        ({"instance_type": "c7i-flex.large"}, "instance_type: got 'c7i-flex.large'; allowed: c7i."),
        ({"load": {}}, "architecture: no model 'tiny': not a folder, not a file, and not one of"),
        ({"load": {"concurrent": 0}}, "load.concurrent: got 0; should be greater than or equal"),
        ({"architecture": "llama-3.1-405b", "load": {}},
         "load: c7i.48xlarge: one sequence needs"),
        ({"architecture": "llama-3-8b", "load": {"context": 9000}},
         "load: context is 9,000; llama-3-8b was made for 8,192 tokens"),
        ({"architecture": "smollm2-135m", "load": {"concurrent": 2},
          "requests_in_flight_target": 5},
         "requests_in_flight_target: got 5; must be at most slots, which is 2"),
        ({"engine": "vllm"}, "engine: got 'vllm'; allowed: 'llama.cpp', 'native'"),
        ({"python": 3.11}, "python: got 3.11; allowed: 'host', '3.11'"),
        ({"python": "host"}, "python: got 'host', which is only for aws: embedded; allowed here"),
        ({"min_capacity": 3, "max_capacity": 2},
         "max_capacity: got 2; must be at least min_capacity, which is 3"),
        ({"min_capacity": 3}, "max_capacity: got 1; must be at least min_capacity, which is 3"),
        ({"min_capacity": 0}, "min_capacity: got 0; should be greater than or equal to 1"),
        ({"slots": 4, "requests_in_flight_target": 5},
         "requests_in_flight_target: got 5; must be at most slots, which is 4"),
        ({"slots": 4}, "requests_in_flight_target: got 6; must be at most slots, which is 4"),
        ({"slots": "8"}, "slots: got '8'; should be a valid integer"),
        ({"boot_minutes": 61}, "boot_minutes: got 61; should be less than or equal to 60"),
        ({"certificate_arn": None},
         "certificate_arn: missing; add the ARN of an ACM certificate (only aws: embedded has "),
        ({"certificate_arn": "arn:aws:acm:eu-west-1:111122223333:certificate/" + "0" * 36},
         "must be arn:aws:acm:us-east-1:111122223333:certificate/UUID"),
        ({"certificate_arn": "arn:aws:acm:us-east-1:999999999999:certificate/" + "0" * 36},
         "must be arn:aws:acm:us-east-1:111122223333:certificate/UUID"),
        ({"certificate_arn": "certificate"},
         "certificate_arn: got 'certificate'; must be arn:aws:acm:us-east-1:111122223333:"),
    ],
)  # fmt: skip
def test_fails_when_a_setting_is_wrong(synthesize, settings, line):
    with pytest.raises(ConfigError) as caught:
        synthesize(settings)
    [found] = str(caught.value).splitlines()
    assert found.startswith("config/test.yaml: innovations.gqa.")
    assert line in found


def test_nothing_of_the_stack_hangs_on_the_foundations_generated_names(templates):
    imported = [
        value for value in _imports(templates["gqa"]) if not value.startswith("test-foundation-")
    ]
    assert imported == []


def test_what_it_imports_is_exported(templates):
    exported = {output["Export"]["Name"] for output in templates["foundation"]["Outputs"].values()}
    assert set(_imports(templates["gqa"])) <= exported


def _imports(value: Any) -> list[str]:
    if isinstance(value, dict):
        if "Fn::ImportValue" in value:
            return [value["Fn::ImportValue"]]
        return [name for child in value.values() for name in _imports(child)]
    if isinstance(value, list):
        return [name for child in value for name in _imports(child)]
    return []


def test_the_outputs_are_those_that_commands_read(templates):
    outputs = templates["gqa"]["Outputs"]
    assert set(outputs) == {"Endpoint", "Fleet", "Weights", "Engine"}
    assert literal(outputs["Endpoint"]["Value"]).startswith("https://")
    assert outputs["Engine"]["Value"] == "native"


def test_a_plain_deploy_says_how_to_get_weights(templates):
    [_, pushed, missing] = templates["gqa"]["Outputs"]["Weights"]["Value"]["Fn::If"]
    assert "Ref" in pushed
    assert missing == ("none yet: run `isomorph weights push test gqa FOLDER`, then deploy again")


def test_both_engines_ship_the_same_code(synthesize, templates):
    other = synthesize({"max_capacity": 2, "engine": "llama.cpp"})["gqa"]

    def code_line(template: dict) -> str:
        script = literal(data(template)["UserData"])
        [line] = [each for each in script.splitlines() if each.endswith(" code")]
        return line

    assert code_line(other) == code_line(templates["gqa"])


def test_nodes_reach_s3_through_the_prefix_list_of_the_environment(synthesize):
    template = synthesize({}, s3_prefix_list="pl-0123456789abcdef0")["gqa"]
    lists = {
        rule["Properties"].get("DestinationPrefixListId")
        for rule in resources(template, "AWS::EC2::SecurityGroupEgress").values()
    }
    assert lists == {None, "pl-0123456789abcdef0"}
