import json
import os
import subprocess
import sys

import pytest

from tests.cdk_app import FLAGS, ROOT

from app import build, read_context  # isort: skip
from config import ConfigError, Override  # isort: skip

CLI_ADDS = {"aws:cdk:enable-path-metadata": True, "availability-zones:account=1:region=x": []}


@pytest.fixture(scope="module")
def local(wheels):
    """What is in one environment alone; no test changes it."""
    return build({**FLAGS, "env": "local"}, wheels)


def test_env_narrows_to_one_environment(local):
    paths = {node.node.path for node in local.node.find_all()}
    assert {"local/foundation", "local/gqa"} <= paths
    assert not [path for path in paths if path.startswith(("dev", "prod"))]


def test_an_override_reaches_the_stack(wheels):
    app = build({**FLAGS, "env": "local", "gqa.engine": "native"}, wheels)
    assembly = app.synth().get_nested_assembly("assembly-local")
    [stack] = [each for each in assembly.stacks if each.stack_name == "local-gqa"]
    assert stack.template["Outputs"]["Engine"]["Value"] == "native"


def test_a_stack_deploys_after_the_foundation_and_needs_no_other(local):
    stacks = local.synth().get_nested_assembly("assembly-local").stacks
    ids = {stack.id: stack.stack_name for stack in stacks}
    needs = {
        stack.stack_name: {ids[each.id] for each in stack.dependencies if each.id in ids}
        for stack in stacks
    }
    assert needs == {
        "local-foundation": set(),
        "local-gqa": {"local-foundation"},
        "local-mla": {"local-foundation"},
        "local-moe-serving": {"local-foundation"},
        "local-moe-training": {"local-foundation"},
        "local-sliding-window": {"local-foundation"},
    }


def test_slugs_leave_out_the_other_innovations_and_their_wheels(wheels, tmp_path):
    for path in wheels.glob("gqa-*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    app = build({**FLAGS, "env": "local", "slugs": "gqa"}, tmp_path)
    stage = app.node.find_child("local")
    assert {"foundation", "gqa"} <= {child.node.id for child in stage.node.children}
    assert stage.node.try_find_child("mla") is None


def test_no_slugs_leave_the_foundation(tmp_path):
    stage = build({**FLAGS, "env": "local", "slugs": ""}, tmp_path).node.find_child("local")
    assert {child.node.id for child in stage.node.children} == {"foundation"}


def test_fails_when_slugs_names_what_is_not_on(wheels):
    with pytest.raises(ConfigError) as caught:
        build({**FLAGS, "env": "local", "slugs": "gqa,rag"}, wheels)
    assert str(caught.value).startswith(
        "-c slugs=gqa,rag: config/local.yaml turns on no 'rag'; allowed: "
    )


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({}, (None, ())),
        (FLAGS, (None, ())),
        (CLI_ADDS, (None, ())),
        ({"env": "dev"}, ("dev", ())),
        (
            {"gqa.engine": "native", "gqa.slots": 4},
            (None, (Override("gqa", "engine", "native"), Override("gqa", "slots", "4"))),
        ),
    ],
)
def test_context_is_read(context, expected):
    assert read_context(context) == expected


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (
            {"engine": "native"},
            "-c engine=native: unknown; allowed: env=NAME, slugs=SLUG,SLUG, or "
            "SLUG.KEY=VALUE such as "
            "gqa.engine=native",
        ),
        ({"gpa.engine": "native"}, "-c gpa.engine=native: no innovation 'gpa'; allowed: moe, mla,"),
    ],
)
def test_fails_when_context_would_be_ignored(context, message):
    with pytest.raises(ConfigError) as caught:
        read_context(context)
    assert str(caught.value).startswith(message)


def run_app(**context: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CDK_CONTEXT_JSON": json.dumps({**FLAGS, **context})}
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_users_mistakes_are_one_line_each_without_a_traceback():
    done = run_app(env="local", **{"gqa.slots": "many", "gqa.queue": "0"})
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "!!" not in line]
    assert [line for line in said if line.startswith("error: ")] == [
        "error: -c gqa.slots=many: innovations.gqa.slots: got 'many'; should be a valid integer",
        "error: -c gqa.queue=0: innovations.gqa.queue: got 0; should be greater than or equal to 1",
    ]
    assert "Traceback" not in done.stderr
