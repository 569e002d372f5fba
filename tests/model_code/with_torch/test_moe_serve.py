"""The server of a mixture of experts as a process: experts under a budget, pools, bad input, S3."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from model_code.common.weights import push
from model_code.moe.experts import layout
from tests.model_code.conftest import ROOT, events, free_port
from tests.model_code.with_torch.mixture import Servers, write_folder

pytestmark = pytest.mark.torch
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    layout.lay_out(write_folder(folder / "whole"), folder / "mixture")
    return folder / "mixture"


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Servers]:
    servers = Servers(model, tmp_path)
    yield servers
    servers.stop()


def test_one_server_takes_all_that_may_come(start: Servers) -> None:
    """One process for many facts: each start takes seconds."""
    server = start(EXPERT_MIB=1, POOL="code", POOLS="code,prose", SLOTS=4, QUEUE=100)
    server.wait_until_ready(180)
    ping = server.get("/ping")
    assert (ping.status_code, ping.headers["x-isomorph-pool"]) == (200, "code")

    whole = server.complete("import", temperature=0, max_tokens=6, experts=True)
    shown = whole["usage"]["experts"]
    tokens = whole["usage"]["prompt_tokens"] + 5  # the last one that is written is not read again
    assert shown["visits"] == tokens * 2 * 2
    assert set(shown["layers"]) == {"1", "2"}
    assert all(len(counts) <= 4 for counts in shown["layers"].values())
    plain = server.complete("import", temperature=0, max_tokens=6)
    assert plain["choices"] == whole["choices"]
    assert "experts" not in plain["usage"]

    invoked = server.post("/invocations", prompt="import", temperature=0, max_tokens=6)
    assert invoked.json()["choices"] == whole["choices"]
    streamed = server.post(
        "/invocations", prompt="import", temperature=0, max_tokens=6, stream=True, experts=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    found = events(streamed.text)
    text = "".join(each["choices"][0]["text"] for each in found if each["choices"])
    assert text == whole["choices"][0]["text"]
    assert found[-1]["usage"]["experts"] == shown
    chat = server.post("/invocations", messages=[{"role": "user", "content": "x"}], max_tokens=2)
    assert chat.json()["object"] == "chat.completion"

    url = f"{server.url}/invocations"
    for body, headers, code, says in (
        (b"{", JSON, 400, "the body is not valid JSON"),
        (b"[]", JSON, 400, "the body must be a JSON object"),
        (b'{"prompt": "x", "experts": 1}', JSON, 400, "'experts' is 1; it must be true or false"),
        (b"x", {"content-type": "text/csv"}, 415, "'text/csv'; allowed: application/json"),
        (b"{}", {"content-type": "application/json; charset=latin-1"}, 415, "in UTF-8"),
        (b"{}", {}, 415, "the content type is 'missing'"),
        (b'{"prompt": "' + b"x " * 400 + b'"}', JSON, 400, "this server takes at most 127"),
        (b'{"prompt": "x"}', JSON | {"x-isomorph-pool": "law"}, 404,
         "unknown pool 'law'; pools: code, prose"),
    ):  # fmt: skip
        answer = httpx.post(url, content=body, headers=headers)
        assert answer.status_code == code, answer.text
        assert says in answer.json()["error"]["message"]
        assert answer.headers["x-isomorph-pool"] == "code"
    assert server.metric("isomorph_expert_pool_strays_total") == 0
    httpx.post(url, json={"prompt": "x"}, headers={"x-isomorph-pool": "prose"}, timeout=30)
    assert server.metric("isomorph_expert_pool_strays_total") == 1

    answers = asyncio.run(_at_once(url, 100))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
    assert server.metric("isomorph_requests_in_flight") == 0
    assert server.metric("isomorph_expert_hits_total") > 0
    assert 0 < server.metric("isomorph_expert_budget_bytes") <= 1 << 20
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 0


async def _at_once(url: str, clients: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(limits=limits, timeout=120) as http:
        body = {"prompt": "def f(", "temperature": 0, "max_tokens": 4}
        return await asyncio.gather(*(http.post(url, json=body) for _ in range(clients)))


@pytest.fixture
def s3(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ThreadedMotoServer, str]]:
    """An S3 with the model in it, and the pointer to it."""
    for name, value in (("ID", "testing"), ("KEY", "testing")):
        monkeypatch.setenv(f"AWS_{'ACCESS_KEY' if name == 'ID' else 'SECRET_ACCESS'}_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port())
    server.start()
    client = boto3.client("s3", endpoint_url=_url(server), region_name="us-east-1")
    client.create_bucket(Bucket="models")
    yield server, push(model, client, "models", "moe")
    server.stop()


def _url(server: ThreadedMotoServer) -> str:
    return f"http://127.0.0.1:{server._port}"


def test_s3_that_goes_away_is_told_as_503_and_then_it_recovers(
    start: Servers, s3: tuple[ThreadedMotoServer, str], tmp_path: Path
) -> None:
    store, pointer = s3
    weights, _, sha256 = pointer.partition("#sha256=")
    server = start(
        EXPERT_MIB=1, EXPERT_SOURCE="s3", WEIGHTS=weights, WEIGHTS_SHA256=sha256,
        EXPERT_PREFETCH=0, AWS_ENDPOINT_URL=_url(store), AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing", AWS_REGION="us-east-1",
    )  # fmt: skip
    server.wait_until_ready(180)
    part = tmp_path / "state" / "weights" / f"{sha256[:16]}-part"
    assert (part / "dense.safetensors").is_file()
    assert not list(part.glob("experts-layer-*"))
    known = {"prompt": "x", "temperature": 0, "max_tokens": 1}
    first = server.post("/v1/completions", **known)
    assert first.status_code == 200, first.text
    store.stop()
    again = server.post("/v1/completions", **known)  # of what is there
    assert again.json()["choices"] == first.json()["choices"]
    unknown: dict[str, Any] = {
        "prompt": "The quick brown fox jumps over 13 lazy dogs; [def] {x} != 'y'",
        "max_tokens": 20,
    }
    refused = server.post("/v1/completions", temperature=0, **unknown)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "weights_unavailable"
    assert "127.0.0.1" not in refused.text
    assert server.get("/health").status_code == 200
    back = ThreadedMotoServer(ip_address="127.0.0.1", port=store._port)
    back.start()  # moto keeps its objects in this process
    try:
        assert _eventually_answered(server.url, unknown)
    finally:
        back.stop()
    assert server.metric("isomorph_expert_errors_total") > 0


def _eventually_answered(url: str, body: dict[str, Any]) -> bool:
    waited = threading.Event()
    for _ in range(40):
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        if answer.status_code == 200:
            return True
        waited.wait(0.25)
    return False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"EXPERT_SOURCE": "tape", "EXPERT_MIB": 1},
         "ISOMORPH_EXPERT_SOURCE is 'tape'; allowed: disk, s3"),
        ({"EXPERT_SOURCE": "s3"}, "is 's3' without ISOMORPH_EXPERT_MIB"),
        ({"EXPERT_SOURCE": "s3", "EXPERT_MIB": 1}, "it must be s3://bucket/prefix/ then"),
        ({"EXPERT_MIB": "1.5"},
         "ISOMORPH_EXPERT_MIB is '1.5'; allowed: whole numbers from 1 to 16777216"),
        ({"EXPERT_LOADS": 33}, "ISOMORPH_EXPERT_LOADS is '33'; allowed: whole"),
        ({"EXPERT_PREFETCH": "no"}, "ISOMORPH_EXPERT_PREFETCH is 'no'; allowed: 0, 1"),
        ({"POOL": "Code"}, "ISOMORPH_POOLS names 'Code'; allowed: up to 32 small letters"),
        ({"POOL": "law", "POOLS": "code,prose"}, "are those of ISOMORPH_POOLS: code, prose"),
        ({"ENGINE": "llama.cpp"}, "ISOMORPH_ENGINE is 'llama.cpp'; a mixture of experts is served"),
        ({"QUANTIZATION": "int8", "EXPERT_MIB": 1}, "experts out of a cache keep their dtype"),
        ({"DEVICE": "gpu"}, "ISOMORPH_DEVICE is 'gpu'; allowed: cpu, neuron"),
        ({"DEVICE": "neuron", "EXPERT_MIB": 1}, "whose graphs hold all experts"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_in_one_line(settings: dict[str, object], message: str) -> None:
    from model_code.common.errors import SettingsError
    from model_code.common.server.settings import Settings
    from model_code.moe.serve.extension import ExpertServing

    env = {
        "ISOMORPH_MODEL": "m", "ISOMORPH_ENGINE": "native", "ISOMORPH_WEIGHTS": "/w",
        "ISOMORPH_STATE": "/s", **{f"ISOMORPH_{name}": str(v) for name, v in settings.items()},
    }  # fmt: skip
    with pytest.raises(SettingsError) as error:
        ExpertServing.from_environment(env, Settings.from_environment(env))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_neuron_device_is_told_when_one_is_wanted(model: Path) -> None:
    from model_code.common.errors import SettingsError
    from model_code.common.server.settings import Settings
    from model_code.moe.experts.metrics import ExpertMetrics
    from model_code.moe.serve.loading import load
    from model_code.moe.serve.settings import ExpertSettings

    env = {"ISOMORPH_MODEL": "m", "ISOMORPH_ENGINE": "native", "ISOMORPH_WEIGHTS": str(model),
           "ISOMORPH_STATE": "/s"}  # fmt: skip
    wanted = ExpertSettings(device="neuron")
    with pytest.raises(SettingsError, match="there is no /dev/neuron0; allowed here: cpu"):
        load(Settings.from_environment(env), wanted, ExpertMetrics())


def test_weights_in_s3_that_are_not_divided_are_refused(model: Path, tmp_path: Path) -> None:
    from model_code.common.errors import SettingsError
    from model_code.common.server.settings import Settings
    from model_code.moe.serve.loading import _source
    from model_code.moe.serve.settings import ExpertSettings

    env = {"ISOMORPH_MODEL": "m", "ISOMORPH_ENGINE": "native", "ISOMORPH_WEIGHTS": "s3://b/p/",
           "ISOMORPH_STATE": str(tmp_path), "ISOMORPH_WEIGHTS_SHA256": "0" * 64}  # fmt: skip
    wanted = ExpertSettings(source="s3", budget_bytes=1 << 20)
    with pytest.raises(SettingsError, match=r"s3://b/p/ has no experts.json; divide the"):
        _source(Settings.from_environment(env), wanted, tmp_path, None)  # type: ignore[arg-type]


def test_torch_is_not_loaded_before_a_wrong_setting_is_told() -> None:
    code = (
        "import sys, model_code.moe.serve.__main__\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
