"""Two nodes share what they computed of a prompt through a cache with TLS and a login."""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isomorph.environments import Environment
from local_aws.daemon import Running
from local_aws.describe import DESCRIBE, NOTHING_TO_SEE, resources
from tests.e2e.conftest import Command, bring_up, eventually, published

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
# Real text, longer than several blocks of 64 tokens.
PROMPT = " ".join((Path(__file__).parents[2] / "LICENSE").read_text().split())[:2400]


@pytest.fixture(scope="module")
def up(isomorph: Command) -> Iterator[dict[str, Any]]:
    # The first time it trains the model, which takes minutes on a busy machine.
    yield from bring_up(isomorph, "mla", seconds=900)


@pytest.fixture(scope="module")
def mla(local: Environment) -> Environment:
    return local


@pytest.fixture(scope="module")
def nodes(running: Running) -> list[int]:
    """The ports of the two nodes' servers."""
    found = [row["port"] for row in running.machines() if row["state"] == "InService"]
    assert len(found) == 2
    return found


def ask(port: int, prompt: str = PROMPT) -> str:
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        return str(json.load(answer)["choices"][0]["text"])


def counted(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    [line] = [line for line in lines if line.startswith(f"isomorph_latent_{name}_total ")]
    return float(line.split()[1])


def test_every_resource_of_the_template_is_really_there(mla: Environment) -> None:
    found = resources("local-mla", mla.client)
    assert {resource.kind for resource in found} <= {*DESCRIBE, *NOTHING_TO_SEE}
    assert [resource for resource in found if not resource.visible(mla.client)] == []


def test_a_prompt_computed_on_one_node_is_a_hit_on_the_other(nodes: list[int]) -> None:
    first, second = nodes
    computed = ask(first)
    eventually(lambda: counted(first, "stored_bytes"))
    hits = counted(second, "hits")
    assert ask(second) == computed
    assert counted(second, "hits") > hits
    # The first may still have been storing while the second asked.
    fetched = counted(second, "fetched_bytes")
    assert fetched > 0
    eventually(lambda: fetched <= counted(first, "stored_bytes"))
    assert counted(second, "store_errors") == 0


def test_what_the_nodes_reused_is_in_cloudwatch(mla: Environment, nodes: list[int]) -> None:
    """Every metric of the dashboard and of the alarms, from the requests so far."""
    for name in (
        "LatentHits", "LatentMisses", "LatentBytesFetched", "LatentBytesStored",
        "LatentTokensReused", "TimeToFirstTokenHitMs", "TimeToFirstTokenMissMs",
    ):  # fmt: skip
        assert eventually(lambda name=name: sum(published(mla, "mla", name))) > 0, name
    assert eventually(lambda: published(mla, "mla", "LatentStoreErrors"))
    hits = sum(counted(port, "hits") for port in nodes)
    assert eventually(lambda: sum(published(mla, "mla", "LatentHits")) == hits)


def server_of(mla: Environment, variables: dict[str, str]) -> int:
    [file] = Path(variables["ISOMORPH_STATE"]).glob("caches/*/*/pid")
    return int(json.loads(file.read_text())[0])


def test_the_answers_stay_the_same_while_the_cache_is_killed_and_back(
    mla: Environment, nodes: list[int], variables: dict[str, str]
) -> None:
    prompt = PROMPT[::-1]
    expected = ask(nodes[0], prompt)
    killed = server_of(mla, variables)
    os.kill(killed, signal.SIGKILL)
    assert [ask(port, prompt) for port in nodes] == [expected, expected]
    eventually(lambda: server_of(mla, variables) != killed)
    before = [counted(port, "stored_bytes") for port in nodes]

    def stored_again() -> bool:
        answers = [ask(port, f"{time.monotonic()} {prompt}") for port in nodes]
        after = [counted(port, "stored_bytes") for port in nodes]
        return all(answers) and all(new > old for new, old in zip(after, before, strict=True))

    assert eventually(stored_again)


def test_a_rotated_password_keeps_the_nodes_at_work(mla: Environment, nodes: list[int]) -> None:
    secrets, secret = mla.client("secretsmanager"), mla.outputs("mla")["LatentSecret"]

    def password() -> str:
        value = secrets.get_secret_value(SecretId=secret)["SecretString"]
        return str(json.loads(value)["password"])

    before = password()
    secrets.rotate_secret(SecretId=secret)
    eventually(lambda: password() != before)
    for turn in range(4):
        assert ask(nodes[turn % 2], f"{turn} {PROMPT}")


def test_nothing_of_the_cache_is_left(
    mla: Environment, isomorph: Command, variables: dict[str, str]
) -> None:
    server = server_of(mla, variables)
    assert isomorph("down").returncode == 0
    assert not Path(f"/proc/{server}").exists()
    assert not Path(variables["ISOMORPH_STATE"]).exists()
