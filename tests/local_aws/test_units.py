"""What a machine's init understands of unit files, and what it refuses."""

import signal
from pathlib import Path

import pytest

from local_aws.machines.image.units import (
    UnitError,
    command_line,
    parse,
    read_environment_file,
    seconds,
)

UNIT = """
# A comment
[Unit]
Description=ExecStart=/not/this
[Service]
Type=exec
ExecStart=/bin/server --name "two words" \\
  --port ${PORT}
WorkingDirectory=/srv
Environment=A=1 "B=two words"
Environment=C=3
EnvironmentFile=/etc/one.env
EnvironmentFile=-/etc/two.env
StateDirectory=server
CacheDirectory=server/cache
Restart=always
RestartSec=1min 30s
TimeoutStopSec=5
KillSignal=SIGINT
DynamicUser=yes
ProtectSystem=strict
[Install]
WantedBy=multi-user.target
"""


def test_a_unit_file_is_read() -> None:
    unit = parse(UNIT)
    assert command_line(unit.command, {"PORT": "8080"}) == [
        *("/bin/server", "--name", "two words", "--port", "8080")
    ]
    assert unit.working_directory == "/srv"
    assert unit.environment == {"A": "1", "B": "two words", "C": "3"}
    assert unit.environment_files == ("/etc/one.env", "-/etc/two.env")
    assert unit.folders == (
        ("STATE_DIRECTORY", "var/lib/server"),
        ("CACHE_DIRECTORY", "var/cache/server/cache"),
    )
    assert (unit.restart, unit.restart_seconds, unit.stop_seconds) == ("always", 90, 5)
    assert unit.kill_signal == signal.SIGINT
    assert not unit.oneshot


def test_the_defaults_are_those_of_systemd() -> None:
    unit = parse("[Service]\nExecStart=/bin/true\n")
    assert (unit.restart, unit.restart_seconds, unit.stop_seconds) == ("no", 0.1, 90)
    assert unit.kill_signal == signal.SIGTERM


def test_an_empty_value_clears_what_came_before() -> None:
    unit = parse("[Service]\nExecStart=/bin/old\nExecStart=\nExecStart=/bin/new\n")
    assert unit.command == "/bin/new"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ExecStartPre=/bin/setup", "ExecStartPre= is not played here"),
        ("ExecStart=/bin/second", "ExecStart= must be given once"),
        ("Type=notify", "Type=notify is not played here, only simple, exec, oneshot"),
        ("Restart=on-abort", "Restart=on-abort is not played here, only no, always, on-failure"),
        ("KillSignal=SIGNOPE", "KillSignal=SIGNOPE is no signal"),
        ("RestartSec=soon", "'soon' is not a time span such as 90, 2s or 1min 30s"),
    ],
)
def test_fails_when_a_directive_cannot_be_played(line: str, said: str) -> None:
    with pytest.raises(UnitError) as error:
        parse(f"[Service]\nExecStart=/bin/true\n{line}\n")
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("span", "expected"), [("90", 90), ("2s", 2), ("250ms", 0.25), ("1h 2min", 3720)]
)
def test_spans_are_in_seconds(span: str, expected: float) -> None:
    assert seconds(span) == pytest.approx(expected)


def test_a_span_may_have_no_end() -> None:
    assert seconds("infinity") == float("inf")


def test_variables_fill_words_and_make_them() -> None:
    words = command_line("run $FLAGS a${X}b $MISSING 100%%", {"FLAGS": "-a -b", "X": "1 2"})
    assert words == ["run", "-a", "-b", "a1 2b", "100%"]


def test_an_environment_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "fleet.env"
    file.write_text("# a comment\nA=1\nB=\"two words\"\nC='='\n\nnot a variable\n")
    assert read_environment_file(str(file)) == {"A": "1", "B": "two words", "C": "="}


def test_an_environment_file_may_be_missing_if_it_says_so(tmp_path: Path) -> None:
    assert read_environment_file(f"-{tmp_path}/none") == {}
    with pytest.raises(UnitError, match=r"EnvironmentFile=.*/none does not exist"):
        read_environment_file(f"{tmp_path}/none")
