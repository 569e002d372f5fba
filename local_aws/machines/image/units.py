"""Reads the unit files of systemd, as far as a machine here plays them."""

import os
import re
import shlex
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

# Directives that start or stop something. One that is not played must not pass unnoticed.
_NOT_PLAYED = ("ExecStartPre", "ExecStartPost", "ExecStop", "ExecStopPost", "ExecReload", "Sockets")
_TYPES = ("simple", "exec", "oneshot")
_RESTARTS = ("no", "always", "on-failure")
_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 0.001, "min": 60.0, "m": 60.0, "h": 3600.0}
# Directive -> folder of the machine, and the variable that tells the service its path.
_FOLDERS = {
    "StateDirectory": ("var/lib", "STATE_DIRECTORY"),
    "CacheDirectory": ("var/cache", "CACHE_DIRECTORY"),
    "LogsDirectory": ("var/log", "LOGS_DIRECTORY"),
    "RuntimeDirectory": ("run", "RUNTIME_DIRECTORY"),
}


class UnitError(Exception):
    """A unit file says something that cannot be played."""


@dataclass(frozen=True)
class UnitFile:
    """A service as its unit file describes it."""

    command: str
    working_directory: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    environment_files: tuple[str, ...] = ()
    folders: tuple[tuple[str, str], ...] = ()
    oneshot: bool = False
    restart: str = "no"
    restart_seconds: float = 0.1
    stop_seconds: float = 90.0
    kill_signal: int = signal.SIGTERM


def seconds(text: str) -> float:
    """Return a span of systemd, such as `90`, `2s` or `1min 30s`, in seconds."""
    if text == "infinity":
        return float("inf")
    parts = re.findall(r"([0-9.]+)\s*([a-z]*)", text)
    if not parts or any(unit not in _SECONDS for _, unit in parts):
        raise UnitError(f"{text!r} is not a time span such as 90, 2s or 1min 30s")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _directives(text: str) -> dict[str, list[str]]:
    """Return the directives of the `[Service]` section; an empty value clears what came before."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = line
        elif section == "[Service]":
            name, _, value = line.partition("=")
            value = value.strip()
            earlier = found.get(name.strip(), [])
            found[name.strip()] = [*earlier, value] if value else []
    return found


def parse(text: str) -> UnitFile:
    """Return the service that a unit file describes, or say what in it cannot be played."""
    given = _directives(text)

    def last(name: str, default: str, allowed: tuple[str, ...] = ()) -> str:
        value = (given.get(name) or [default])[-1]
        if allowed and value not in allowed:
            raise UnitError(f"{name}={value} is not played here, only {', '.join(allowed)}")
        return value

    unplayed = [name for name in _NOT_PLAYED if given.get(name)]
    if unplayed:
        raise UnitError(f"{unplayed[0]}= is not played here")
    if len(given.get("ExecStart", [])) != 1:
        raise UnitError("ExecStart= must be given once")
    pairs = (pair for value in given.get("Environment", []) for pair in shlex.split(value))
    folders = tuple(
        (variable, os.path.join(parent, name))
        for directive, (parent, variable) in _FOLDERS.items()
        for name in last(directive, "").split()
    )
    kill_signal = last("KillSignal", "SIGTERM")
    if kill_signal not in signal.Signals.__members__:
        raise UnitError(f"KillSignal={kill_signal} is no signal")
    return UnitFile(
        command=given["ExecStart"][0],
        working_directory=last("WorkingDirectory", "") or None,
        environment=dict(pair.partition("=")[::2] for pair in pairs),
        environment_files=tuple(given.get("EnvironmentFile", [])),
        folders=folders,
        oneshot=last("Type", "simple", _TYPES) == "oneshot",
        restart=last("Restart", "no", _RESTARTS),
        restart_seconds=seconds(last("RestartSec", "100ms")),
        stop_seconds=seconds(last("TimeoutStopSec", "90s")),
        kill_signal=signal.Signals[kill_signal],
    )


def read_environment_file(path: str) -> dict[str, str]:
    """Return the variables of an environment file; a leading `-` lets it be missing."""
    optional, path = path.startswith("-"), path.removeprefix("-")
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        if optional:
            return {}
        raise UnitError(f"EnvironmentFile={path} does not exist") from None
    found = {}
    for line in lines:
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            value = value.strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            found[name.strip()] = value
    return found


def command_line(command: str, environment: Mapping[str, str]) -> list[str]:
    """Return a command as words, with `${NAME}` (and `$NAME` as a whole word) filled in."""
    words = []
    for word in shlex.split(command):
        if re.fullmatch(r"\$\w+", word):
            words += environment.get(word[1:], "").split()
        else:
            filled = re.sub(r"\$\{(\w+)\}", lambda name: environment.get(name[1], ""), word)
            words.append(filled.replace("%%", "%"))
    return words
