"""The streaming runtime against a runtime API: chunks, prelude, trailers, callers that leave."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from local_aws.functions.invocation import Failure, Head, Invocation
from local_aws.functions.runtime_api import RuntimeApi as Served
from model_code.sliding_window.handler import runtime
from model_code.sliding_window.handler.runtime import RuntimeApi, answer
from tests.model_code.handler import Scripted, model
from tests.model_code.test_handler_events import v2

STREAM = json.dumps({"prompt": "hi", "stream": True})


@pytest.fixture
def served() -> Iterator[Served]:
    api = Served()
    yield api
    api.close()


def answered(served: Served, engine: Scripted | None, event: object) -> list[object]:
    invocation = Invocation(json.dumps(event).encode(), "arn:aws:lambda:::function:f", 30)
    served.give(invocation)
    api = RuntimeApi(served.address)
    answer(model(engine), api, api.next())
    invocation.finish()
    return list(invocation.read())


def test_a_stream_is_a_prelude_and_a_chunk_for_each_event(served: Served) -> None:
    head, prelude, *rest = answered(served, Scripted(["a", "b"]), v2(body=STREAM))
    assert head == Head(
        streamed=True, content_type="application/vnd.awslambda.http-integration-response"
    )
    assert isinstance(prelude, bytes)
    said, separator, after = prelude.partition(bytes(8))
    assert (len(separator), after) == (8, b"")
    assert json.loads(said)["statusCode"] == 200
    assert json.loads(said)["headers"]["content-type"] == "text/event-stream"
    assert len(rest) == 3  # two pieces and [DONE], each as it was written


def test_a_direct_call_gets_json_without_a_prelude(served: Served) -> None:
    head, body = answered(served, Scripted(["a"]), {"prompt": "hi"})
    assert isinstance(head, Head)
    assert head.content_type == "application/json"
    assert isinstance(body, bytes)
    assert json.loads(body)["choices"][0]["text"] == "a"


def test_what_is_no_json_is_refused_as_an_event(served: Served) -> None:
    invocation = Invocation(b"{", "arn", 30)
    served.give(invocation)
    api = RuntimeApi(served.address)
    answer(model(Scripted([])), api, api.next())
    invocation.finish()
    _, body = invocation.read()
    assert isinstance(body, bytes)
    assert json.loads(body)["statusCode"] == 400


def test_a_direct_call_that_cannot_be_served_fails_so_that_it_is_repeated(served: Served) -> None:
    [failure] = answered(served, None, {"prompt": "hi"})
    assert isinstance(failure, Failure)
    assert failure.kind == "ServerError"
    assert failure.message.startswith("no weights have been pushed yet")


def test_what_breaks_in_mid_answer_is_reported_in_the_trailers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(Scripted):
        async def generate(self, request):  # type: ignore[no-untyped-def,override]
            async for piece in super().generate(request):
                yield piece
                raise RuntimeError("the engine\nbroke")

    *_, failure = answered(served, Breaks(["a", "b"]), v2(body=STREAM))
    assert failure == Failure("RuntimeError", "the engine broke")


def test_a_caller_that_goes_away_ends_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def leave() -> None:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()  # at once, with a reset

    thread = threading.Thread(target=leave)
    thread.start()
    engine = Scripted(["word "] * 500, pause=0.005)
    api = RuntimeApi(f"127.0.0.1:{listener.getsockname()[1]}")
    event = json.dumps(v2(body=STREAM)).encode()
    answer(model(engine), api, runtime.Invocation("id", event, 2**42))
    thread.join()
    listener.close()
    assert engine.closed
    assert engine.written < 500
    assert "the caller went away" in capsys.readouterr().out


def test_fails_when_the_runtime_api_does_not_answer_as_it_should(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_API", "/wrong")
    with pytest.raises(RuntimeError, match="the runtime API answered 404"):
        RuntimeApi(served.address).next()
