import dataclasses

import pytest

from planner import Load, PlanError, parse_load
from tests.planner.common import model


def test_what_is_left_out_gets_a_default_of_the_model() -> None:
    load = Load().of(model("llama-3-8b"))
    assert (load.context, load.output, load.sequence) == (4096, 256, 4096)
    assert load.requests_per_s == 8 * 5 / 256


def test_a_model_of_a_short_context_gets_a_short_load() -> None:
    short = dataclasses.replace(model("llama-3-8b"), context=100)
    load = Load().of(short)
    assert (load.context, load.output, load.prompt) == (100, 50, 50)


def test_text_a_list_and_a_mapping_say_the_same() -> None:
    expected = Load(concurrent=64, context=8192, dtype="fp8")
    assert parse_load("concurrent=64, context=8_192,dtype=fp8") == expected
    assert parse_load(["concurrent=64", "context=8192", "dtype=fp8"]) == expected
    assert parse_load({"concurrent": 64, "context": 8192, "dtype": "fp8"}) == expected
    assert parse_load(expected) is expected
    assert parse_load(None) == parse_load("") == Load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("concurent=8", "load: 'concurent' is not known; allowed is concurrent, context"),
        ("concurrent", "load: 'concurrent' is not name=value, such as concurrent=64"),
        ("concurrent=8,concurrent=9", "load: concurrent is given twice"),
        ("concurrent=many", "load: concurrent is 'many'; allowed is a whole number"),
        ("concurrent=1.5", "load: concurrent is '1.5'; allowed is a whole number"),
        ("concurrent=0", "load: concurrent is 0; allowed is above 0"),
        ("concurrent=-1", "load: concurrent is -1; allowed is above 0"),
        ("concurrent=10000000000000000", "load: concurrent is 10000000000000000; allowed is"),
        ("tokens_per_s=nan", "load: tokens_per_s is nan; allowed is above 0"),
        ("tokens_per_s=inf", "load: tokens_per_s is inf; allowed is above 0"),
        ("tokens_per_s=fast", "load: tokens_per_s is 'fast'; allowed is a number"),
        ("dtype=fp2", "load: dtype is 'fp2'; allowed is fp32, bf16"),
        ("hours=800", "load: hours is 800; a month has at most 744"),
    ],
)
def test_fails_when_the_load_cannot_be(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        parse_load(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"concurrent": True}, "concurrent is True; allowed is a whole number"),
        ({"context": "4096"}, "context is '4096'; allowed is a whole number"),
        ({"dtype": None}, "dtype is None; allowed is fp32"),
        ({"ttl_s": 1e30}, "ttl_s is 1e\\+30; allowed is above 0"),
    ],
)
def test_fails_when_a_field_has_the_wrong_type(fields: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_load(fields)


def test_fails_when_the_context_exceeds_the_models() -> None:
    with pytest.raises(PlanError, match="context is 9,000; llama-3-8b was made for 8,192 tokens"):
        Load(context=9000).of(model("llama-3-8b"))


def test_fails_when_the_answer_leaves_no_prompt() -> None:
    with pytest.raises(PlanError, match="output is 100; it must leave a prompt in 100"):
        Load(context=100, output=100).of(model("llama-3-8b"))
