"""A log over broken streams and restarts, against an API that says what it is told to say."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from isomorph.training import eks_log
from isomorph.training.eks_log import Follower
from isomorph.training.jobs import Part
from isomorph.training.kubernetes_api import ApiError

ONE, TWO, THREE = (f"2026-11-22T10:00:0{n}.5Z {word}\n".encode()
                   for n, word in enumerate(("one", "two", "three"), start=1))  # fmt: skip


class Api:
    """Gives a stream for each time that it is asked, and keeps what it was asked for."""

    def __init__(self, *streams: Any, restarts: int = 0, state: str = "running") -> None:
        self.streams, self.asked = list(streams), []  # type: ignore[var-annotated]
        self.restarts, self.state = restarts, state

    def get(self, *_: Any) -> dict[str, Any]:
        other = {"name": "other", "restartCount": 7, "state": {"running": {}}}
        own = {"name": "pytorch", "restartCount": self.restarts, "state": {self.state: {}}}
        return {"metadata": {"uid": "u"}, "status": {"containerStatuses": [other, own]}}

    def log(self, pod: str, namespace: str, query: Mapping[str, str]) -> Iterator[bytes]:
        assert (pod, namespace) == ("moe-worker-0", "n")
        self.asked.append(dict(query))
        for each in self.streams.pop(0):
            if isinstance(each, Exception):
                raise each
            yield each


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eks_log, "PAUSE_S", 0)


def read(api: Api, *states: str, follow: bool = True) -> list[Part]:
    left = iter(states)
    look = Follower(api, "n", "moe", lambda: {"state": next(left), "why": ""})  # type: ignore[arg-type]
    return list(look.parts(follow=follow))


def text(parts: list[Part]) -> str:
    return "".join(part["text"] for part in parts)


def test_a_stream_that_breaks_off_goes_on_with_the_line_after_the_last():
    api = Api([ONE, TWO[:25]], [ONE, TWO], [TWO, THREE])
    parts = read(api, "running", "running", "done")
    assert text(parts) == "one\ntwo\nthree\n"
    assert [each.get("sinceTime") for each in api.asked] == [
        None, "2026-11-22T10:00:01Z", "2026-11-22T10:00:02Z",
    ]  # fmt: skip
    assert [each.get("follow") for each in api.asked] == ["true", "true", None]
    assert (parts[-1]["state"], parts[-1]["next"]) == ("done", len("one\ntwo\nthree\n"))


def test_the_container_before_the_one_that_runs_is_read_first_and_once():
    api = Api([ONE], [TWO], [TWO, THREE], restarts=1)
    assert text(read(api, "running", "done")) == "one\ntwo\nthree\n"
    assert [each.get("previous") for each in api.asked] == ["true", None, None]


def test_a_container_that_restarts_while_it_is_followed_is_followed_on():
    api = Api([ONE], [TWO], [THREE])
    states = iter(["running", "running", "done"])

    def look() -> dict[str, str]:
        state = next(states)
        api.restarts = 0 if len(api.asked) < 1 else 1
        return {"state": state, "why": ""}

    parts = list(Follower(api, "n", "moe", look).parts(follow=True))  # type: ignore[arg-type]
    assert text(parts) == "one\ntwo\nthree\n"
    assert [each.get("previous") for each in api.asked] == [None, None, None]


def test_nanoseconds_are_compared_as_numbers():
    lines = [b"2026-11-22T10:00:01.09Z a\n", b"2026-11-22T10:00:01.1Z b\n",
             b"2026-11-22T10:00:01.100000001Z c\n", b"2026-11-22T10:00:02Z d\n"]  # fmt: skip
    assert text(read(Api(lines), "done", follow=False)) == "a\nb\nc\nd\n"


def test_what_has_no_time_no_end_or_no_letters_is_shown():
    long = b"x" * (eks_log._LONGEST_LINE + 1)
    said = text(read(Api([b"odd\n", ONE, TWO[:-1]]), "done", follow=False))
    assert said == "odd\none\ntwo\n"
    assert text(read(Api([long, b"\xff\n"]), "done", follow=False)) == f"{long.decode()}\n\ufffd\n"


def test_a_log_that_is_not_there_yet_is_no_error_and_another_refusal_is():
    parts = read(Api([ApiError(400, "waiting to start")]), "pending", follow=False)
    assert parts[-1]["why"] == "there is no log: its pods are gone, or have not begun"
    assert Api(state="waiting").asked == []
    read(Api(state="waiting"), "pending", follow=False)
    with pytest.raises(ApiError, match="not you"):
        read(Api([ApiError(403, "not you")]), "running", follow=False)
