"""A machine alone, without the embedded AWS: its init, and its `systemctl`."""

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local_aws.machines.machine import Machine, Unit
from tests.local_aws.conftest import alive, until

Boot = Callable[[str], Machine]

SERVICE = """
mkdir -p $ISOMORPH_ROOT/etc/systemd/system
cat > $ISOMORPH_ROOT/etc/systemd/system/{name}.service <<'END'
[Service]
{lines}
END
"""


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    made: list[Machine] = []

    def make(user_data: str) -> Machine:
        folder = tmp_path / f"i-{len(made)}"
        machine = Machine(folder.name, folder, 1, user_data, {})
        machine.boot()
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.cut_power()


def systemctl(machine: Machine, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [machine.folder / "bin" / "systemctl", *words],
        env={"ISOMORPH_ROOT": str(machine.folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    return done.returncode, done.stdout + done.stderr


def with_service(*lines: str, name: str = "web") -> str:
    return "#!/bin/bash\nset -e" + SERVICE.format(name=name, lines="\n".join(lines))


def booted(machine: Machine) -> int:
    until(lambda: machine.boot_code is not None, "the end of the user data")
    return machine.boot_code or 0


def console(machine: Machine) -> str:
    return (machine.folder / "console.log").read_text()


def unit(machine: Machine) -> Unit | None:
    return machine.units.get("web.service")


def test_the_exit_code_of_the_user_data_is_told(boot: Boot) -> None:
    assert booted(boot("#!/bin/sh\nexit 7\n")) == 7


def test_the_interpreter_of_the_first_line_runs_it(boot: Boot) -> None:
    machine = boot("#!/usr/bin/env python3\nprint('isomorph: in Python')\n")
    assert booted(machine) == 0
    assert machine.reason() == "isomorph: in Python"


def test_user_data_without_an_interpreter_fail(boot: Boot) -> None:
    machine = boot("echo hello")
    assert booted(machine) == 126
    assert machine.reason() == "isomorph: user data does not begin with #!, nothing was run"


def test_the_reason_is_the_last_line_of_ours(boot: Boot) -> None:
    machine = boot("#!/bin/sh\necho isomorph: first\necho isomorph: last\necho other\n")
    booted(machine)
    assert machine.reason() == "isomorph: last"


def test_start_stop_and_restart(boot: Boot) -> None:
    machine = boot(with_service("ExecStart=/bin/sleep 60"))
    booted(machine)
    assert systemctl(machine, "is-active", "web") == (3, "inactive\n")
    assert systemctl(machine, "start", "web") == (0, "")
    assert systemctl(machine, "is-active", "web.service") == (0, "active\n")
    assert systemctl(machine, "is-active", "--quiet", "web") == (0, "")
    first = until(lambda: unit(machine), "its event").pid
    assert systemctl(machine, "restart", "web") == (0, "")
    until(lambda: (found := unit(machine)) and found.pid not in (None, first), "the restart")
    assert systemctl(machine, "stop", "web") == (0, "")
    assert systemctl(machine, "is-active", "web") == (3, "inactive\n")


def test_enable_starts_only_if_it_is_told_to(boot: Boot) -> None:
    machine = boot(with_service("ExecStart=/bin/sleep 60"))
    booted(machine)
    assert systemctl(machine, "daemon-reload")[0] == 0
    assert systemctl(machine, "enable", "web") == (0, "")
    assert systemctl(machine, "is-active", "web")[0] == 3
    assert systemctl(machine, "enable", "--now", "web") == (0, "")
    assert systemctl(machine, "is-active", "web")[0] == 0


def test_a_oneshot_is_waited_for(boot: Boot) -> None:
    lines = ("Type=oneshot", "ExecStart=/bin/sh -c 'sleep 0.3; echo done; exit ${CODE}'")
    machine = boot(with_service("Environment=CODE=0", *lines))
    booted(machine)
    assert systemctl(machine, "start", "web") == (0, "")
    assert "done" in console(machine)
    other = boot(with_service("Environment=CODE=4", *lines))
    booted(other)
    assert systemctl(other, "start", "web")[0] == 1
    assert systemctl(other, "is-active", "web") == (3, "failed\n")


def test_a_crash_is_restarted_with_longer_and_longer_pauses(boot: Boot) -> None:
    crash = ("ExecStart=/bin/sh -c 'date +%%s%%N; exit 1'", "Restart=always", "RestartSec=100ms")
    machine = boot(with_service(*crash))
    booted(machine)
    systemctl(machine, "start", "web")

    def times() -> list[float]:
        return [int(line) / 1e9 for line in console(machine).splitlines() if line.isdigit()]

    until(lambda: len(times()) >= 4, "the fourth start")
    pauses = [after - before for before, after in itertools.pairwise(times())]
    assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=False))
    until(lambda: systemctl(machine, "is-active", "web") == (3, "activating\n"), "a longer pause")
    until(lambda: (found := unit(machine)) and found.restarts >= 3, "three restarts")


def test_on_failure_leaves_what_ended_well(boot: Boot) -> None:
    machine = boot(with_service("ExecStart=/bin/true", "Restart=on-failure", "RestartSec=0"))
    booted(machine)
    systemctl(machine, "start", "web")
    until(lambda: (found := unit(machine)) and found.state == "inactive", "its end")
    assert machine.units["web.service"].restarts == 0


def test_what_does_not_stop_is_killed(boot: Boot) -> None:
    stubborn = "ExecStart=/bin/sh -c 'trap : TERM; echo armed; while :; do sleep 0.1; done'"
    machine = boot(with_service(stubborn, "TimeoutStopSec=500ms"))
    booted(machine)
    systemctl(machine, "start", "web")
    until(lambda: "armed" in console(machine), "the service's trap")
    assert systemctl(machine, "stop", "web")[0] == 0
    assert "ended with -9" in console(machine)


def test_power_off_lets_services_end(boot: Boot) -> None:
    polite = (
        'ExecStart=/bin/sh -c \'trap "echo goodbye; exit 0" TERM; echo armed; '
        "while :; do sleep 0.1; done'"
    )
    machine = boot(with_service(polite))
    booted(machine)
    systemctl(machine, "start", "web")
    until(lambda: "armed" in console(machine), "the service's trap")
    machine.power_off()
    until(lambda: not machine.running, "the end of init")
    assert "goodbye" in console(machine)


def test_cutting_the_power_kills_whatever_runs(boot: Boot) -> None:
    deep = "ExecStart=/bin/sh -c 'trap : TERM; sleep 60 & echo child $!; wait'"
    machine = boot(with_service(deep) + "systemctl start web\nsleep 60\n")
    child = until(
        lambda: [line for line in console(machine).splitlines() if line.startswith("child")],
        "the child of the service",
    )[0].split()[1]
    machine.cut_power()
    assert not machine.running

    until(lambda: not alive(int(child)), "the end of the child")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mask", "web"), "systemctl: 'mask' is not played here, only start, stop,"),
        (("start", "--user", "web"), "systemctl: '--user' is not played here"),
        (("start", "nothing"), "Unit nothing.service not found in /etc/systemd/system"),
        (("start", "web"), "web.service: Type=dbus is not played here"),
    ],
)
def test_fails_when_systemctl_is_asked_for_more(
    boot: Boot, words: tuple[str, ...], said: str
) -> None:
    machine = boot(with_service("Type=dbus", "ExecStart=/bin/true"))
    booted(machine)
    code, told = systemctl(machine, *words)
    assert code == 1
    assert said in told
    assert "Traceback" not in told


def test_a_program_that_is_missing_fails_the_unit(boot: Boot) -> None:
    machine = boot(with_service("ExecStart=/no/such/program"))
    booted(machine)
    assert systemctl(machine, "start", "web")[0] == 1
    assert "/no/such/program" in console(machine)
    assert systemctl(machine, "is-active", "web") == (3, "failed\n")


def test_a_machine_goes_while_one_that_had_its_folder_before_still_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deletions: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    class Later:
        def __init__(self, target: Callable[..., None], args: tuple[object, ...], **_: bool):
            deletions.append((target, args))

        def start(self) -> None:
            """Not before the next machine has gone, too."""

    monkeypatch.setattr("local_aws.machines.machine.threading.Thread", Later)
    machine = Machine("ip-127-1-0-2", tmp_path / "ip-127-1-0-2", 1, "", {})
    for _ in range(2):
        (machine.folder / "opt/venv").mkdir(parents=True)
        machine.remove(keep_console=False)
        assert not machine.folder.exists()
    for delete, arguments in deletions:
        delete(*arguments)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        machine.remove(keep_console=False)
    assert list(tmp_path.iterdir()) == []
