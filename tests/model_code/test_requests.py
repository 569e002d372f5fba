"""What the server makes of a request's body, which is hostile."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_code.common.server.requests import (
    Ask,
    InvalidRequestError,
    parse_chat,
    parse_completion,
)


def completion(**fields: Any) -> Ask:
    return parse_completion(json.dumps({"prompt": "Hi", **fields}).encode())


def chat(*messages: Any, **fields: Any) -> Ask:
    return parse_chat(json.dumps({"messages": messages, **fields}).encode())


USER = {"role": "user", "content": "Hi"}


def test_a_completion_without_settings_takes_openai_s_defaults() -> None:
    ask = completion()
    assert (ask.prompt, ask.max_tokens, ask.temperature, ask.top_p) == ("Hi", 16, 1.0, 1.0)
    assert (ask.stops, ask.stream, ask.include_usage, ask.chat) == ((), False, False, False)


def test_ways_to_choose_that_openai_does_not_have_are_off_unless_given() -> None:
    ask = completion()
    assert (ask.top_k, ask.min_p, ask.repetition_penalty) == (0, 0.0, 1.0)
    ask = completion(top_k=5, min_p=0.1, repetition_penalty=1.2)
    assert (ask.top_k, ask.min_p, ask.repetition_penalty) == (5, 0.1, 1.2)


def test_a_chat_without_a_limit_may_fill_the_context() -> None:
    assert chat(USER).max_tokens is None
    assert chat(USER, max_completion_tokens=5).max_tokens == 5
    assert chat(USER, max_tokens=7).max_tokens == 7


def test_a_list_of_one_prompt_is_that_prompt() -> None:
    assert completion(prompt=["One"]).prompt == "One"


def test_a_developer_speaks_as_the_system_and_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask = chat({"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts})
    assert [(m.role, m.content) for m in ask.messages] == [("system", "Be brief"), ("user", "ab")]


def test_the_same_seed_is_the_same_and_no_seed_is_random() -> None:
    assert completion(seed=-1).seed == completion(seed=-1).seed
    assert completion().seed != completion().seed


def test_fields_that_ask_for_nothing_are_let_through() -> None:
    asked = completion(
        n=1, echo=False, frequency_penalty=0.0, logprobs=None, user="me", best_of=1, seed=1
    )
    assert asked == completion(seed=1)


def test_a_single_stop_may_be_a_string() -> None:
    assert completion(stop="\n").stops == ("\n",)
    assert completion(stop=["a", "b"]).stops == ("a", "b")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"promt": "x"}, "unknown field 'promt'; known: experts, max_tokens, min_p,"),
        ({"x\ud800\n": 1}, "unknown field"),
        ({"prompt": None}, "'prompt' is missing; it must be a string"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt": 5}, "'prompt' is 5; it must be a string"),
        ({"prompt": ["a", "b"]}, "'prompt' is list; it must be a string, or a list of one string"),
        ({"prompt": [[1, 2]]}, "'prompt' is list; it must be a string"),
        ({"prompt": "a\ud800b"}, "'prompt' holds half of a surrogate pair"),
        ({"max_tokens": 0}, "'max_tokens' is 0; it must be a whole number from 1 to 2147483647"),
        ({"max_tokens": 1.5}, "'max_tokens' is 1.5"),
        ({"max_tokens": True}, "'max_tokens' is True"),
        ({"max_tokens": 10**30}, "'max_tokens' is 1000000000000000000000000000000;"),
        ({"top_k": -1}, "'top_k' is -1; it must be a whole number from 0 to 2147483647"),
        ({"top_k": 1.5}, "'top_k' is 1.5; it must be a whole number"),
        ({"min_p": 1.1}, "'min_p' is 1.1; it must be a number from 0 to 1"),
        ({"min_p": "a"}, "'min_p' is 'a'; it must be a number from 0 to 1"),
        ({"repetition_penalty": 0}, "'repetition_penalty' is 0; it must be a number above 0, and"),
        ({"repetition_penalty": 11}, "'repetition_penalty' is 11; it must be a number above 0"),
        ({"temperature": 2.1}, "'temperature' is 2.1; it must be a number from 0 to 2"),
        ({"temperature": -1e-9}, "'temperature' is -1e-09"),
        ({"temperature": 10**400}, "'temperature' is 1000"),
        ({"temperature": "hot"}, "'temperature' is 'hot'"),
        ({"top_p": 0}, "'top_p' is 0; it must be a number above 0, and at most 1"),
        ({"top_p": 2}, "'top_p' is 2"),
        ({"seed": 2**63}, "'seed' is 9223372036854775808"),
        ({"stop": 5}, "'stop' is 5; it must be a string, or a list of at most 16"),
        ({"stop": ["x"] * 10_000}, "'stop' is a list of 10000; it must be"),
        ({"stop": [""]}, "'stop' is ''; it must be of strings of 1 to 256 characters"),
        ({"stop": ["\ud800"]}, "'stop' holds half of a surrogate pair"),
        ({"stream": 1}, "'stream' is 1; it must be true or false"),
        ({"stream_options": []}, "'stream_options' is list"),
        ({"stream_options": {"include_usage": "yes"}}, "'include_usage' is 'yes'"),
        ({"model": 3}, "'model' is 3; it must be a string"),
        ({"n": 2}, "'n' is not supported: leave it out or send 1"),
        ({"n": True}, "'n' is not supported"),
        ({"logprobs": 5}, "'logprobs' is not supported: leave it out or send False"),
        ({"logit_bias": {"5": 100}}, "'logit_bias' is not supported"),
    ],
)
def test_fails_when_a_field_is_wrong_and_says_what_is_allowed(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        completion(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "'messages' is list; it must be a list of 1 to 1024 messages"),
        ([USER] * 1025, "it must be a list of 1 to 1024 messages"),
        (["Hi"], "'messages[0]' is 'Hi'; it must be an object with role and content"),
        ([{"role": "robot", "content": ""}], "'messages[0].role' is 'robot'; it must be one of"),
        ([{"content": "Hi"}], "'messages[0].role' is missing"),
        ([USER, {"role": "user"}], "'messages[1].content' is missing"),
        ([{**USER, "tool_calls": []}], "unknown field 'tool_calls' in 'messages[0]'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'messages[0].content' is dict"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "content.text' is 1"),
        ([{"role": "user", "content": "\udfff"}], "holds half of a surrogate pair"),
    ],
)
def test_fails_when_a_message_is_wrong_and_says_which(messages: list[Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(*messages)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON"),
        (b"{", "the body is not valid JSON"),
        (b"\xff\xfe", "the body is not UTF-8: byte 0 is wrong"),
        (b"[" * 500_000, "the body is nested too deeply"),
        (b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}", "the body is not valid JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "NaN is no JSON number"),
        (b'{"prompt": "x", "temperature": -Infinity}', "-Infinity is no JSON number"),
        (b'{"prompt": "x", "temperature": 1e999}', "'temperature' is inf"),
        (b"[1, 2]", "the body must be a JSON object, got list"),
        (b'"x"', "the body must be a JSON object, got 'x'"),
    ],
)
def test_fails_when_the_body_is_no_json_object(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_completion(body)
    assert message in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["prompt", "messages", "max_tokens", "stop", "stream", "seed", "n", "top_p", "model", "tools"]
)


# Its first example builds the table of all characters, which takes seconds.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(FIELDS, JSON, max_size=5))
def test_any_object_is_taken_or_refused_in_one_line(value: dict[str, Any]) -> None:
    for parse in (parse_completion, parse_chat):
        try:
            outcome: Ask | str = parse(json.dumps(value).encode())
        except InvalidRequestError as refused:
            outcome = str(refused)
        assert isinstance(outcome, Ask) or outcome.encode().count(b"\n") == 0


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        parse_completion(body)
