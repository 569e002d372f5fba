"""`isomorph bench`: its rows are shown as they come, and what is left at the end is whole."""

import json
from collections.abc import Iterator

import pytest

import bench as benches
from bench.row import Row
from isomorph.commands.bench import bench


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What standard error and output had between two rows of the measurement `made`."""
    found: list[str] = []

    def rows() -> Iterator[Row]:
        yield Row(name="first", ours="1 s", peer="[old]: 2 s", ratio=2.0, target=1.0)
        found.extend(capsys.readouterr()[::-1])
        yield Row(name="second", ours="3 s", peer="new: 2 s", ratio=0.67, target=1.0)

    monkeypatch.setitem(benches.BENCHES, "made", rows)
    return found


def test_a_row_is_shown_before_the_next_is_measured(shown: list[str]) -> None:
    bench.main(["made"], standalone_mode=False)
    assert shown == ["  first: 1 s; beside [old]: 2 s; ratio 2.00, 1.00 reached\n", ""]


def test_json_is_one_document_of_all_rows(
    shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(["made", "--json"], standalone_mode=False)
    out, err = capsys.readouterr()
    assert [(row["bench"], row["name"], row["reached"]) for row in json.loads(out)] == [
        ("made", "first", True), ("made", "second", False),
    ]  # fmt: skip
    assert shown[1] == ""
    assert err.startswith("  second: 3 s; beside new: 2 s; ratio 0.67, 1.00 NOT reached\n")


def test_the_table_at_the_end_has_all_rows(
    shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(["made"], standalone_mode=False)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["bench", "what", "ours"]
    assert [(row.split()[1], row.split()[-1]) for row in rows] == [
        ("first", "yes"),
        ("second", "NO"),
    ]
