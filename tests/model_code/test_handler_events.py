"""Every event that Lambda may hand over, and what is refused of it."""

import base64
import json
from typing import Any

import pytest

from model_code.common.server.requests import MAX_BODY_BYTES, InvalidRequestError
from model_code.sliding_window.handler.events import is_http, parse_event

BODY = json.dumps({"prompt": "hi", "max_tokens": 2})


def v2(**changes: Any) -> dict[str, Any]:
    event = {
        "version": "2.0",
        "rawPath": "/v1/completions",
        "requestContext": {"http": {"method": "POST"}, "stage": "$default"},
        "body": BODY,
        "isBase64Encoded": False,
    }
    return {**event, **changes}


def v1(**changes: Any) -> dict[str, Any]:
    event = {"httpMethod": "POST", "path": "/v1/completions", "body": BODY}
    return {**event, **changes}


STAGED = v2(
    rawPath="/prod/v1/completions",
    requestContext={"http": {"method": "POST"}, "stage": "prod"},
)
ENCODED = v2(body=base64.b64encode(BODY.encode()).decode(), isBase64Encoded=True)


@pytest.mark.parametrize(
    ("event", "http"),
    [
        (v2(), True),
        (ENCODED, True),
        (STAGED, True),
        (v1(), True),
        ({"prompt": "hi", "max_tokens": 2}, False),
    ],
)
def test_the_request_is_found_in_every_kind_of_event(event: dict[str, Any], http: bool) -> None:
    call = parse_event(event)
    assert (call.ask.prompt, call.ask.max_tokens, call.http) == ("hi", 2, http)


def test_messages_of_a_direct_call_are_a_chat() -> None:
    call = parse_event({"messages": [{"role": "user", "content": "hi"}]})
    assert [message.content for message in call.ask.messages] == ["hi"]


@pytest.mark.parametrize(
    ("event", "status", "said"),
    [
        (None, 400, "the event is NoneType; allowed: a function URL's"),
        ([1], 400, "the event is list; allowed"),
        ({}, 400, "the event has nothing; allowed"),
        ({"Records": []}, 400, "the event has 'Records'; allowed"),
        (v2(rawPath="/admin"), 404, "no such path '/admin'; allowed: /v1/completions, /v1/chat"),
        (v2(requestContext={"http": {"method": "GET"}}), 405, "'GET' is not allowed; use POST"),
        (v2(requestContext=None), 400, "the event has no method or no path"),
        (v2(rawPath=7), 400, "the event has no method or no path"),
        (v1(path=None), 400, "the event has no method or no path"),
        (v2(body=None), 400, "the request has no body"),
        (v2(body={"prompt": "hi"}), 400, "the event's body is dict; it must be a string"),
        (v2(body="*", isBase64Encoded=True), 400, "the event's body is not the base64 that it"),
        (v2(body="\udc80"), 400, "the body is not UTF-8"),
        (v2(body="{"), 400, "the body is not valid JSON"),
        (v2(body='{"prompt": 1}'), 400, "'prompt' is 1; it must be a string"),
        ({"prompt": "hi", "temperature": 9}, 400, "'temperature' is 9; it must be a number"),
        (v2(body="x" * (MAX_BODY_BYTES + 1)), 413, "at most 1,048,576 are taken"),
        ({"prompt": "x" * (MAX_BODY_BYTES + 1)}, 413, "at most 1,048,576 are taken"),
    ],
)
def test_fails_on_an_event_that_is_none_of_ours(event: object, status: int, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_event(event)
    assert refused.value.status == status
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_event_through_http_is_known_as_such_even_when_it_is_wrong() -> None:
    assert is_http({"requestContext": None})
    assert not is_http({"prompt": "hi"})
    assert not is_http("requestContext")
