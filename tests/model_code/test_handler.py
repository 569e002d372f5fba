"""Answers of the function: whole, in events, cut by its time, refused."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from model_code.common.engine import PromptTooLongError
from model_code.common.errors import SettingsError
from model_code.sliding_window.handler.answering import joined, respond
from model_code.sliding_window.handler.model import Model, NotReadyError, Settings
from tests.model_code.conftest import events
from tests.model_code.handler import Scripted, model
from tests.model_code.test_handler_events import v2

WORDS = ["one ", "two ", "three"]


def ask(made: Model, event: object, *, seconds: float = 60) -> Any:
    async def timed() -> Any:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        return await joined(await respond(made, event, lambda: end - loop.time()))

    return asyncio.run(timed())


def test_a_direct_call_gets_the_answer_itself() -> None:
    said = ask(model(Scripted(WORDS)), {"prompt": "hi"})
    assert said["choices"][0]["text"] == "one two three"
    assert said["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert "incomplete_details" not in said


def test_a_call_through_http_gets_a_status_headers_and_a_body() -> None:
    said = ask(model(Scripted(WORDS)), v2())
    assert said["statusCode"] == 200
    assert said["headers"]["content-type"] == "application/json"
    assert json.loads(said["body"])["choices"][0]["text"] == "one two three"


def test_a_stream_comes_as_events() -> None:
    body = json.dumps({"prompt": "hi", "stream": True})
    said = ask(model(Scripted(WORDS)), v2(body=body))
    assert said["headers"]["content-type"] == "text/event-stream"
    assert [each["choices"][0]["text"] for each in events(said["body"])] == WORDS


def test_a_stop_string_ends_the_answer_and_the_work() -> None:
    engine = Scripted(WORDS)
    said = ask(model(engine), {"prompt": "hi", "stop": "two"})
    assert (said["choices"][0]["text"], said["choices"][0]["finish_reason"]) == ("one ", "stop")
    assert engine.closed
    assert engine.written == 2


def test_what_the_time_cuts_off_says_so() -> None:
    engine = Scripted(["word "] * 50, pause=0.05)
    said = ask(model(engine), {"prompt": "hi"}, seconds=0.8)
    assert said["incomplete_details"] == {"reason": "timeout"}
    assert said["choices"][0]["finish_reason"] == "length"
    assert 1 <= said["usage"]["completion_tokens"] < 50
    assert said["choices"][0]["text"] == "word " * said["usage"]["completion_tokens"]
    assert engine.closed


def test_a_stream_that_the_time_cuts_off_says_so_in_its_last_event() -> None:
    body = json.dumps({"prompt": "hi", "stream": True})
    said = ask(model(Scripted(["word "] * 50, pause=0.05)), v2(body=body), seconds=0.8)
    last = events(said["body"])[-1]
    assert last["incomplete_details"] == {"reason": "timeout"}
    assert last["choices"][0]["finish_reason"] == "length"


def test_no_token_in_time_is_an_error_that_says_what_to_change() -> None:
    said = ask(model(Scripted(WORDS, pause=5)), v2(), seconds=0.6)
    assert said["statusCode"] == 504
    assert "sliding_window.function.timeout_seconds" in said["body"]


def test_fails_when_the_prompt_is_too_long() -> None:
    said = ask(model(Scripted([], error=PromptTooLongError(100, 64))), v2())
    assert said["statusCode"] == 400
    assert "the prompt has 100 tokens; this server takes at most 63" in said["body"]


def test_fails_when_another_model_is_asked_for() -> None:
    said = ask(model(Scripted(WORDS)), {"prompt": "hi", "model": "gpt-9"})
    assert said["statusCode"] == 404
    message = said["error"]["message"]
    assert message == "the model 'gpt-9' is not here; this function has 'tiny'"


def test_fails_when_experts_are_asked_for_that_are_not_there() -> None:
    said = ask(model(Scripted(WORDS)), {"prompt": "hi", "experts": True})
    assert said["statusCode"] == 400
    message = said["error"]["message"]
    assert message == "'experts' is true, and 'tiny' has no routed experts here; leave it out"


def test_a_malformed_event_through_http_is_refused_in_http() -> None:
    said = ask(model(Scripted(WORDS)), v2(body="{"))
    assert said["statusCode"] == 400
    assert json.loads(said["body"])["error"]["type"] == "invalid_request_error"


def test_without_weights_it_says_how_to_push_them() -> None:
    said = ask(model(), v2())
    assert said["statusCode"] == 503
    assert "no weights have been pushed yet: run `isomorph weights push`" in said["body"]


def test_corrupt_weights_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    made = model(weights=str(tmp_path))
    assert not made.warm()
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["level"] == "ERROR"
    assert "GGUF version 0 is unknown" in line
    with pytest.raises(NotReadyError, match="GGUF version 0 is unknown"):
        made.engine()


def test_a_load_that_failed_is_tried_again(weights: Path, tmp_path: Path) -> None:
    made = model(weights=str(tmp_path))
    assert not made.warm()
    (tmp_path / "model.gguf").symlink_to(next(weights.glob("*.gguf")))
    said = ask(made, {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0})
    assert "Paris" in said["choices"][0]["text"]


def test_every_answer_leaves_its_figures_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    made = model(Scripted(WORDS))
    for _ in range(2):
        ask(made, {"prompt": "hi"})
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["ColdStart"], second["ColdStart"]) == (1, 0)
    assert first["WindowOccupancy"] == 75.0  # 6 tokens of a window of 8
    [directive] = first["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "N"
    named = {metric["Name"] for metric in directive["Metrics"]}
    assert named >= {"ColdStart", "MemoryHeadroom", "TokensPerSecond", "WindowOccupancy"}
    assert named <= set(first)
    assert "one" not in json.dumps(first)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "ISOMORPH_MODEL is not set; WindowFunction sets it"),
        (
            {"ISOMORPH_MODEL": "m", "ISOMORPH_WEIGHTS": "none", "ISOMORPH_CONTEXT": "many"},
            "ISOMORPH_CONTEXT or the memory is no number: .*'many'",
        ),
    ],
)
def test_fails_on_wrong_settings(environment: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.read(environment)
