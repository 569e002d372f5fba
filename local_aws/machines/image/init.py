"""The first process of a machine: runs its user data, and its services for `systemctl`.

It is started in the machine's `sbin`, with the variables that every process of the machine gets,
and speaks JSON lines with the embedded AWS: events on standard output, `poweroff` on standard
input. When that input ends the embedded AWS is gone, however it went, and every process of the
machine is killed.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import NoReturn

from .service import Service, signal_group, spawn
from .units import UnitError, UnitFile, parse

_UNITS = "etc/systemd/system"
_VERBS = ("start", "stop", "restart", "enable", "is-active", "daemon-reload")


class Init:
    """The services of one machine, and who waits for them."""

    def __init__(self, root: str) -> None:
        self.root = root
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self.console = os.open("console.log", flags, 0o644)
        self.services: dict[str, Service] = {}
        self.user_data: subprocess.Popen[bytes] | None = None
        self.powering_off = False
        self.waiting: list[tuple[socket.socket, list[Service]]] = []
        self._told: dict[str, tuple[object, ...]] = {}
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Boot, and serve until the machine is powered off."""
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.makedirs("run", exist_ok=True)
        listener.bind("run/init.sock")
        listener.listen(16)
        self._selector.register(wake, selectors.EVENT_READ, lambda: wake.recv(4096))
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._order)
        self._boot()
        while not (self.powering_off and all(s.process is None for s in self.services.values())):
            for key, _ in self._selector.select(self._pause()):
                key.data()
            self._tick()

    def _boot(self) -> None:
        with open("user-data", encoding="utf-8") as file:
            first = file.readline().strip()
        if not first.startswith("#!"):
            os.write(self.console, b"isomorph: user data does not begin with #!, nothing was run\n")
            self._tell(event="booted", code=126)
            return
        command = [*first[2:].strip().split(None, 1), os.path.join(self.root, "user-data")]
        self.user_data = spawn(command, os.environ, self.root, self.console)
        self._tell(event="booting", pid=self.user_data.pid)

    def _pause(self) -> float | None:
        due = [service.due for service in self.services.values() if service.due is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _tick(self) -> None:
        if self.user_data is not None and self.user_data.poll() is not None:
            self._tell(event="booted", code=self.user_data.returncode)
            self.user_data = None
        now = time.monotonic()
        for service in self.services.values():
            while service.tick(now):
                pass
            self._tell_of(service)
        for connection, services in self.waiting.copy():
            if not any(service.busy for service in services):
                self.waiting.remove((connection, services))
                failed = any(service.state == "failed" for service in services)
                _answer(connection, code=int(failed))

    def _tell_of(self, service: Service) -> None:
        pid = service.process.pid if service.process else None
        now = (service.state, pid, service.restarts)
        if self._told.get(service.name) != now:
            self._told[service.name] = now
            self._tell(
                event="unit",
                name=service.name,
                state=service.state,
                pid=pid,
                restarts=service.restarts,
            )

    def _tell(self, **event: object) -> None:
        try:
            os.write(1, json.dumps(event).encode() + b"\n")
        except BrokenPipeError:
            self.die()

    def _order(self) -> None:
        order = os.read(0, 4096)
        if not order:
            self.die()
        if b"poweroff" in order:
            self.powering_off = True
            if self.user_data is not None:
                signal_group(self.user_data, signal.SIGKILL)
            for service in self.services.values():
                service.stop()

    def die(self) -> NoReturn:
        """Kill every process of the machine, this one last."""
        for service in self.services.values():
            service.kill()
        if self.user_data is not None:
            signal_group(self.user_data, signal.SIGKILL)
        os._exit(1)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(5)
        try:
            words = json.loads(connection.makefile().readline())
            self._systemctl(connection, words)
        except (OSError, ValueError, UnitError) as error:
            _answer(connection, code=1, err=f"systemctl: {error}\n")

    def _systemctl(self, connection: socket.socket, words: list[str]) -> None:
        options = {word for word in words if word.startswith("-")}
        verb, *names = [word for word in words if word not in options] or [""]
        unknown = options - {"--now", "--quiet", "-q"}
        if verb not in _VERBS or unknown:
            given = unknown.pop() if unknown else verb
            raise UnitError(f"{given!r} is not played here, only {', '.join(_VERBS)} and --now")
        services = [self._service(name) for name in names]
        if verb == "is-active":
            states = [service.state for service in services]
            out = "" if options & {"--quiet", "-q"} else "".join(f"{s}\n" for s in states)
            _answer(connection, code=0 if "active" in states else 3, out=out)
            return
        for service in services:
            if verb == "stop":
                service.stop()
                continue
            unit = self._unit(service.name)
            if verb == "restart":
                service.unit = unit
                service.stop(again=True)
            elif verb == "start" or "--now" in options:
                service.start(unit)
        self.waiting.append((connection, services))

    def _service(self, name: str) -> Service:
        name = name if "." in name else f"{name}.service"
        if name not in self.services:
            self._unit(name)
            self.services[name] = Service(name, self.root, self.console)
        return self.services[name]

    def _unit(self, name: str) -> UnitFile:
        try:
            with open(os.path.join(_UNITS, name), encoding="utf-8") as file:
                return parse(file.read())
        except FileNotFoundError:
            raise UnitError(f"Unit {name} not found in /{_UNITS}") from None
        except UnitError as error:
            raise UnitError(f"{name}: {error}") from None


def _answer(connection: socket.socket, **answer: object) -> None:
    with contextlib.suppress(OSError):  # whoever asked may be gone
        connection.sendall(json.dumps(answer).encode() + b"\n")
    connection.close()


if __name__ == "__main__":
    os.chdir("..")
    Init(os.getcwd()).run()
