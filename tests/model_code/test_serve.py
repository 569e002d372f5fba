"""The server as the process that a node runs, and what befalls it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.model_code.conftest import ROOT, ServerProcess, events, free_port

Start = Callable[..., ServerProcess]
ENDLESS = {"prompt": "1, 2, 3, 4, 5, 6,", "temperature": 0}  # greedy, it counts on and on


def test_it_answers_with_paris_about_a_second_after_its_start(start_server: Start) -> None:
    since = time.monotonic()
    server = start_server()
    server.wait_until_ready()
    answer = server.complete("The capital of France is", temperature=0, max_tokens=8)
    assert "Paris" in answer["choices"][0]["text"]
    # About a second on an idle machine; the limit leaves room for one that is busy.
    assert time.monotonic() - since < 15


def test_torch_is_not_loaded_for_llama_cpp() -> None:
    code = (
        "import sys, model_code.gqa.serve.__main__, model_code.common.engine.llama_cpp\n"
        "assert not {'torch', 'numpy', 'gguf', 'tokenizers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_chat_streams_whole_characters(llama_server: ServerProcess) -> None:
    answer = llama_server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "Write three emoji: 🙂🙃😀"}],
        temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    found = events(answer.text)
    text = "".join(
        event["choices"][0]["delta"].get("content", "") for event in found if event["choices"]
    )
    assert text
    assert "\ufffd" not in text
    assert found[-1]["usage"]["completion_tokens"] <= 24


def test_a_stop_string_is_not_part_of_the_answer(llama_server: ServerProcess) -> None:
    answer = llama_server.complete(
        "The capital of France is", temperature=0, max_tokens=16, stop=["."]
    )
    assert answer["choices"][0]["text"] == " Paris"
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_prompt_longer_than_the_context_gets_400_with_both_numbers(
    llama_server: ServerProcess,
) -> None:
    for stream in (False, True):
        answer = llama_server.post("/v1/completions", prompt="hello " * 2000, stream=stream)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert "has 2001 tokens; this server takes at most 511" in answer.json()["error"]["message"]


def test_200_requests_at_once_on_8_slots_get_200_or_429_and_none_is_lost(
    start_server: Start,
) -> None:
    server = start_server(SLOTS=8, QUEUE=32, DEADLINE_S=120)
    server.wait_until_ready()

    async def work() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(limits=limits, timeout=120) as http:
            body = {"prompt": "Count: 1 2 3", "temperature": 0, "max_tokens": 2}
            url = f"{server.url}/v1/completions"
            return await asyncio.gather(*(http.post(url, json=body) for _ in range(200)))

    answers = asyncio.run(work())
    codes = {code: [a for a in answers if a.status_code == code] for code in (200, 429)}
    assert len(codes[200]) + len(codes[429]) == 200
    assert len(codes[200]) >= 40
    assert len(codes[429]) > 0
    assert all(answer.json()["usage"]["completion_tokens"] > 0 for answer in codes[200])
    assert all(answer.headers["retry-after"] for answer in codes[429])
    assert server.metric("isomorph_requests_in_flight") == 0
    assert server.metric('isomorph_requests_total{code="200"}') == len(codes[200])
    assert server.metric('isomorph_requests_total{code="429"}') == len(codes[429])


def test_a_client_that_leaves_frees_its_slot(start_server: Start) -> None:
    server = start_server(SLOTS=1, QUEUE=4, CONTEXT=2048)
    server.wait_until_ready()
    body = {**ENDLESS, "max_tokens": 1900}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}) as left:
        next(left.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.3)
    since = time.monotonic()
    server.complete("The capital of France is", max_tokens=2)
    assert time.monotonic() - since < 3, "the slot was still taken"
    assert server.metric('isomorph_requests_total{code="499"}') == 2
    assert server.metric("isomorph_requests_in_flight") == 0


def stream_in_thread(server: ServerProcess, tokens: int, out: list[str]) -> threading.Thread:
    began = threading.Event()

    def work() -> None:
        body = {**ENDLESS, "max_tokens": tokens, "stream": True}
        with (
            suppress(httpx.RemoteProtocolError),  # the server was told to stop, and did
            httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer,
        ):
            for line in answer.iter_lines():
                out.append(line)
                began.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(30)
    return thread


def test_sigterm_finishes_what_runs_refuses_what_comes_and_exits_with_0(
    start_server: Start,
) -> None:
    server = start_server(SLOTS=2, METRIC_NAMESPACE="", LOG_GROUP="")
    server.wait_until_ready()
    lines: list[list[str]] = [[], []]
    threads = [stream_in_thread(server, 50, out) for out in lines]
    server.process.send_signal(signal.SIGTERM)
    while (health := server.get("/health")).status_code == 200:
        time.sleep(0.01)
    assert (health.status_code, health.json()) == (503, {"status": "draining"})
    refused = server.post("/v1/completions", prompt="x")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    for thread in threads:
        thread.join()
    for found in lines:
        texts = [json.loads(line[6:]) for line in found if line.startswith("data: {")]
        assert texts[-1]["choices"][0]["finish_reason"] in ("length", "stop")
        assert "data: [DONE]" in found
    assert server.process.wait(timeout=10) == 0
    assert "draining: 2 requests in flight" in server.log


def test_a_drain_that_takes_too_long_cuts_what_runs_says_so_and_exits_with_0(
    start_server: Start,
) -> None:
    server = start_server(SLOTS=1, DRAIN_S=1, CONTEXT=2048)
    server.wait_until_ready()
    lines: list[str] = []
    thread = stream_in_thread(server, 1900, lines)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 0
    thread.join()
    assert [line for line in lines if line][-2:] == [
        'data: {"error":{"message":"this server is shutting down","type":"server_error",'
        '"param":null,"code":null}}',
        "data: [DONE]",
    ]
    assert "1 requests were cut after 1 s" in server.log


def test_sigkill_loses_the_process_and_a_new_one_on_the_same_port_serves(
    start_server: Start,
) -> None:
    port = free_port()
    server = start_server(PORT_OVERRIDE=port)
    server.wait_until_ready()
    server.process.kill()
    assert server.process.wait(timeout=5) == -signal.SIGKILL
    again = start_server(PORT_OVERRIDE=port)
    again.wait_until_ready()
    assert again.complete("Hi", max_tokens=1)["usage"]["completion_tokens"] == 1


def last_line(server: ServerProcess) -> str:
    """Wait for the end, and return the one line that says why."""
    assert server.process.wait(timeout=30) == 1
    lines = server.log.strip().splitlines()
    assert len([line for line in lines if line.startswith("isomorph: ")]) == 1
    assert "Traceback" not in server.log
    return lines[-1]


def test_fails_with_one_line_that_names_a_truncated_model_file(
    start_server: Start, weights: Path, tmp_path: Path
) -> None:
    [whole] = weights.glob("*.gguf")
    shutil.copy(whole, tmp_path / "cut.gguf")
    os.truncate(tmp_path / "cut.gguf", 10_000_000)
    line = last_line(start_server(WEIGHTS=tmp_path))
    assert line.startswith(f"isomorph: {tmp_path}/cut.gguf: truncated: ")


def test_fails_with_one_line_when_a_digest_differs(
    start_server: Start, weights: Path, tmp_path: Path
) -> None:
    from model_code.common.manifest import build_manifest

    (tmp_path / "a.gguf").write_bytes(b"right")
    manifest = build_manifest(tmp_path, "m")
    (tmp_path / "manifest.json").write_bytes(manifest.encode())
    (tmp_path / "a.gguf").write_bytes(b"wrong")
    line = last_line(start_server(WEIGHTS=tmp_path, WEIGHTS_SHA256=manifest.sha256))
    assert line.startswith(f"isomorph: {tmp_path}/a.gguf: sha256 is ")


def test_fails_with_one_line_when_the_port_is_taken(
    start_server: Start, llama_server: ServerProcess
) -> None:
    port = int(llama_server.url.rsplit(":", 1)[1])
    line = last_line(start_server(PORT_OVERRIDE=port))
    assert line == (
        f"isomorph: port {port} cannot be had: Address already in use; set ISOMORPH_PORT to another"
    )


def test_fails_with_one_line_when_a_setting_is_wrong(start_server: Start) -> None:
    line = last_line(start_server(SLOTS="many"))
    assert line == "isomorph: ISOMORPH_SLOTS is 'many'; allowed: whole numbers from 1 to 256"


def test_sigterm_while_weights_load_ends_at_once(start_server: Start) -> None:
    server = start_server(
        WEIGHTS="s3://models/gqa/m/0/", WEIGHTS_SHA256="0" * 64,
        AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_REGION="us-east-1",
        AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x",
    )  # fmt: skip
    for _ in range(200):
        try:
            assert server.get("/health").json() == {"status": "loading"}
            break
        except httpx.TransportError:
            time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=10) in (0, 1)  # 1: the fetch had failed by then


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\xff\xfe\x00", 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "x", "max_tokens": 1e400}', 400),
        (b'{"prompt": "a\\u0000b", "max_tokens": 1}', 200),
        (b'{"prompt": "<|im_end|><|im_start|>", "max_tokens": 1}', 200),
    ],
)
def test_hostile_bodies_get_an_answer_and_the_server_lives(
    llama_server: ServerProcess, raw: bytes, code: int
) -> None:
    answer = httpx.post(f"{llama_server.url}/v1/completions", content=raw, timeout=30)
    assert answer.status_code == code
    body: dict[str, Any] = answer.json()
    assert ("error" in body) == (code != 200)
    assert llama_server.get("/health").status_code == 200
