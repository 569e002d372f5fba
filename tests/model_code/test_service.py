"""The endpoints over an engine that does what the test says, without a process or a model."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from model_code.common.engine import Generation, Piece, PromptTooLongError
from model_code.common.server.app import build_app
from model_code.common.server.service import Service
from tests.model_code.conftest import events


class ScriptedEngine:
    """Says its words one after the other; notes what it was asked and what became of it."""

    name, context, slots, kv_bytes_per_token = "scripted", 100, 2, 10
    window: int | None = None
    chat_template: str | None = None

    def __init__(self, words: list[str], pause_s: float = 0.0) -> None:
        self.words, self.pause_s = words, pause_s
        self.asked: list[Generation] = []
        self.running = self.most = self.cancelled = 0

    async def generate(self, request: Generation) -> AsyncGenerator[Piece, None]:
        self.asked.append(request)
        if len(request.prompt) >= self.context:
            raise PromptTooLongError(len(request.prompt), self.context)
        if request.prompt == "break":
            raise RuntimeError("secret prompt text")
        self.running += 1
        self.most = max(self.most, self.running)
        finished = False
        try:
            for index, word in enumerate(self.words, 1):
                await asyncio.sleep(self.pause_s)
                yield Piece(text=word, prompt_tokens=5, completion_tokens=index)
            finished = True
            yield Piece(
                text="", prompt_tokens=5, completion_tokens=len(self.words), finish="length"
            )
        finally:
            self.running -= 1
            self.cancelled += not finished

    def close(self) -> None:
        pass


def make(words: list[str], pause_s: float = 0.0, **settings: Any) -> tuple[Service, ScriptedEngine]:
    given = {"model": "m", "slots": 2, "queue": 2, "deadline_s": 5.0, **settings}
    service = Service(**given)
    engine = ScriptedEngine(words, pause_s)
    service.serve(engine)
    return service, engine


def client(service: Service) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_app(service))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def ask(service: Service, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    async with client(service) as http:
        return await http.post(path, json=body)


def test_a_completion_has_openai_s_shape() -> None:
    service, engine = make(["Hel", "lo"])
    answer = asyncio.run(ask(service, prompt="Hi", max_tokens=9, temperature=0.5, top_p=0.9))
    body = answer.json()
    assert body["object"] == "text_completion"
    assert body["model"] == "m"
    assert body["choices"] == [
        {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "length"}
    ]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    [asked] = engine.asked
    assert (asked.prompt, asked.max_tokens, asked.temperature, asked.top_p) == ("Hi", 9, 0.5, 0.9)


def test_a_chat_is_rendered_with_the_model_s_template() -> None:
    service, engine = make(["Hi"])
    messages = [{"role": "user", "content": "Hello"}]
    body = asyncio.run(ask(service, "/v1/chat/completions", messages=messages)).json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hi"}
    assert engine.asked[0].prompt == ("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_a_stream_has_one_event_a_piece_then_usage_then_done() -> None:
    service, _ = make(["a", "b"])
    options = {"include_usage": True}
    answer = asyncio.run(ask(service, prompt="x", stream=True, stream_options=options))
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.text)
    assert [event["choices"][0]["text"] for event in found[:-1]] == ["a", "b", ""]
    assert [event["choices"][0]["finish_reason"] for event in found[:-1]] == [None, None, "length"]
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 2


def test_a_chat_s_stream_names_the_role_once() -> None:
    service, _ = make(["a", "b"])
    messages = [{"role": "user", "content": "x"}]
    answer = asyncio.run(ask(service, "/v1/chat/completions", messages=messages, stream=True))
    deltas = [event["choices"][0]["delta"] for event in events(answer.text)]
    assert deltas == [{"role": "assistant", "content": "a"}, {"content": "b"}, {}]


def test_a_stop_string_ends_the_answer_and_the_engine_s_work() -> None:
    service, engine = make(["one ", "ST", "OP", " two"])
    body = asyncio.run(ask(service, prompt="x", stop="STOP")).json()
    assert body["choices"][0]["text"] == "one "
    assert body["choices"][0]["finish_reason"] == "stop"
    assert engine.cancelled == 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": "x", "foo": 1}, 400, "unknown field 'foo'"),
        ({"prompt": "x", "model": "gpt"}, 404, "the model 'gpt' is not here; this server has 'm'"),
        ({"prompt": "x" * 120}, 400,
         "the prompt has 120 tokens; this server takes at most 99, one less than its context"),
        ({"prompt": "break"}, 500, "internal error; the server's log has it"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_has_its_status_and_one_sentence_streamed_or_not(
    body: dict[str, Any], status: int, message: str, stream: bool
) -> None:
    service, _ = make(["a"])
    answer = asyncio.run(ask(service, **body, stream=stream))
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert service.admission.in_flight == 0


def test_fails_with_413_when_the_body_is_too_large() -> None:
    service, _ = make(["a"])
    answer = asyncio.run(ask(service, prompt="x" * (1 << 20)))
    assert answer.status_code == 413
    assert "the body is larger than 1,048,576 bytes" in answer.json()["error"]["message"]


def test_fails_with_openai_s_error_on_a_wrong_path_or_method() -> None:
    async def work() -> None:
        service, _ = make(["a"])
        async with client(service) as http:
            missing, wrong = await http.get("/v1/nothing"), await http.get("/v1/completions")
        assert (missing.status_code, wrong.status_code) == (404, 405)
        assert missing.json()["error"]["message"] == "GET /v1/nothing: Not Found"

    asyncio.run(work())


def test_only_slots_run_the_queue_waits_and_the_rest_get_429() -> None:
    async def work() -> None:
        service, engine = make(["a"] * 3, pause_s=0.01)
        answers = await asyncio.gather(*(ask(service, prompt="x") for _ in range(10)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [200] * 4 + [429] * 6
        assert engine.most == 2
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["message"] == "2 requests run and 2 wait; try again later"

    asyncio.run(work())


def test_fails_with_504_when_the_deadline_passes_and_the_slot_is_free_again() -> None:
    service, engine = make(["a"] * 100, pause_s=0.02, deadline_s=0.1)
    answer = asyncio.run(ask(service, prompt="x"))
    assert answer.status_code == 504
    assert "the deadline of 0.1 s passed after" in answer.json()["error"]["message"]
    assert (engine.running, engine.cancelled, service.admission.in_flight) == (0, 1, 0)


def test_a_stream_that_meets_its_deadline_says_so_before_done() -> None:
    service, _ = make(["a"] * 100, pause_s=0.02, deadline_s=0.1)
    answer = asyncio.run(ask(service, prompt="x", stream=True))
    assert answer.status_code == 200
    assert events(answer.text)[-1]["error"]["code"] == "deadline_exceeded"


def test_waiting_for_a_slot_counts_against_the_deadline() -> None:
    async def work() -> None:
        service, _ = make(["a"] * 100, pause_s=0.02, slots=1, deadline_s=0.15)
        answers = await asyncio.gather(*(ask(service, prompt="x") for _ in range(2)))
        assert [answer.status_code for answer in answers] == [504, 504]
        assert service.admission.in_flight == 0

    asyncio.run(work())


def test_while_loading_and_while_draining_requests_get_503() -> None:
    async def work() -> None:
        service = Service(model="m", slots=1, queue=1, deadline_s=5)
        async with client(service) as http:
            health = await http.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "loading"})
            refused = await http.post("/v1/completions", json={"prompt": "x"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            service.serve(ScriptedEngine(["a"]))
            assert (await http.get("/health")).json() == {"status": "ok"}
            assert await service.drain(1) == 0
            health = await http.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "draining"})
            refused = await http.post("/v1/completions", json={"prompt": "x"})
            assert refused.status_code == 503
            assert refused.json()["error"]["message"] == "this server is shutting down"

    asyncio.run(work())


def test_draining_waits_for_what_runs_and_waits_but_not_for_ever() -> None:
    async def work() -> None:
        service, _ = make(["a"] * 5, pause_s=0.02, slots=1)
        requests = [asyncio.create_task(ask(service, prompt="x")) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert await service.drain(5) == 0
        assert [(await request).status_code for request in requests] == [200, 200]

        service, _ = make(["a"] * 500, pause_s=0.02, slots=1)
        request = asyncio.create_task(ask(service, prompt="x"))
        await asyncio.sleep(0.05)
        assert await service.drain(0.1) == 1
        assert service.admission.in_flight == 0
        assert (await request).status_code == 503

    asyncio.run(work())


def test_metrics_count_requests_tokens_waits_and_bytes() -> None:
    async def work() -> None:
        service, _ = make(["a"] * 3)
        assert (await ask(service, prompt="x")).status_code == 200
        assert (await ask(service, prompt="x", foo=1)).status_code == 400
        async with client(service) as http:
            lines = (await http.get("/metrics")).text.splitlines()
        for line in [
            'isomorph_requests_total{code="200"} 1.0',
            'isomorph_requests_total{code="400"} 1.0',
            'isomorph_tokens_total{direction="in"} 5.0',
            'isomorph_tokens_total{direction="out"} 3.0',
            "isomorph_requests_in_flight 0.0",
            "isomorph_queue_depth 0.0",
            "isomorph_queue_wait_seconds_count 1.0",
            "isomorph_time_to_first_token_seconds_count 1.0",
            "isomorph_kv_bytes_used 0.0",
            "isomorph_kv_bytes_capacity 2000.0",
            'isomorph_engine_info{engine="scripted",model="m"} 1.0',
        ]:
            assert line in lines

    asyncio.run(work())


def test_bytes_of_keys_and_values_are_those_of_the_tokens_in_the_cache() -> None:
    async def work() -> None:
        service, _ = make(["a"] * 50, pause_s=0.01)
        request = asyncio.create_task(ask(service, prompt="x"))
        while service.metrics.kv_used._value.get() < 80:
            await asyncio.sleep(0.005)
        assert service.metrics.kv_used._value.get() % 10 == 0  # bytes a token
        assert (await request).status_code == 200
        assert service.metrics.kv_used._value.get() == 0

    asyncio.run(work())


def test_the_windows_of_running_requests_fill_up_to_their_size_and_empty_again() -> None:
    async def work() -> None:
        service, engine = make(["a"] * 20)
        engine.window = 20
        service.serve(engine)
        filled: list[float] = []
        service.metrics.window.fill = filled.append  # type: ignore[method-assign]
        answer = await ask(service, prompt="x")
        assert answer.status_code == 200
        # 5 tokens of the prompt and one more with each piece, of 2 slots with 20 places each
        assert filled[0] == 6 / 40
        assert max(filled) == 20 / 40  # 25 tokens, but no more than the window keeps
        assert filled[-1] == 0

    asyncio.run(work())


def test_the_log_says_how_a_request_went_but_never_what_was_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    service, _ = make(["answer"])
    asyncio.run(ask(service, prompt="question"))
    assert "/v1/completions 200" in caplog.text
    assert "tokens_in=5 tokens_out=1" in caplog.text
    assert "question" not in caplog.text
    assert "answer" not in caplog.text


def test_models_lists_the_one_that_is_served() -> None:
    async def work() -> None:
        service, _ = make([])
        async with client(service) as http:
            [card] = (await http.get("/v1/models")).json()["data"]
        assert (card["id"], card["object"]) == ("m", "model")

    asyncio.run(work())


def test_events_are_json_with_letters_as_they_are() -> None:
    service, _ = make(["é🙂"])
    answer = asyncio.run(ask(service, prompt="x", stream=True))
    assert "é🙂" in answer.content.decode()
    assert json.loads(answer.text.split("\n\n")[0].removeprefix("data: "))
