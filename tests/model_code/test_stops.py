"""Stop strings, cut across pieces of text in every way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_code.common.server.stops import StopFilter


def through(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stop = StopFilter(stops)
    text = "".join(stop.feed(piece) for piece in pieces)
    return text + stop.flush(), stop.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "stopped"),
    [
        (["one two"], [], "one two", False),
        (["one STOP two"], ["STOP"], "one ", True),
        (["one S", "T", "OP two"], ["STOP"], "one ", True),
        (["one ST", "ART"], ["STOP"], "one START", False),
        (["aab"], ["ab", "b"], "a", True),
        (["x", "end"], ["endless"], "xend", False),
        (["a\n", "\nb"], ["\n\n"], "a", True),
    ],
)
def test_text_ends_before_the_first_stop_string(
    pieces: list[str], stops: list[str], text: str, stopped: bool
) -> None:
    assert through(pieces, stops) == (text, stopped)


def test_what_may_become_a_stop_string_is_held_back_and_nothing_else() -> None:
    stop = StopFilter(["</s>"])
    assert stop.feed("abc</") == "abc"
    assert stop.feed("b>") == "</b>"


@given(
    st.lists(st.text("ab", max_size=3), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
)
def test_how_the_text_is_cut_into_pieces_makes_no_difference(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    ends = [whole.find(stop) for stop in stops if stop in whole]
    expected = whole[: min(ends)] if ends else whole
    assert through(pieces, stops)[0] == expected or _stopped_earlier(pieces, stops, expected)


def _stopped_earlier(pieces: list[str], stops: list[str], expected: str) -> bool:
    """A stop string that ends first wins over one that begins first but is not complete yet."""
    text, stopped = through(pieces, stops)
    return stopped and text.startswith(expected)
