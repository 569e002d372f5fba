import ctypes

import pytest

from isomorph.errors import UserError
from isomorph.machine import need_openmp


def missing(_: str) -> ctypes.CDLL:
    return ctypes.CDLL("libthere-is-none.so.1")


def test_a_machine_without_openmp_is_told_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UserError, match=r"needs libgomp\.so\.1, .*`apt-get install libgomp1`, or"):
        need_openmp(missing)


def test_elsewhere_the_wheels_bring_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    need_openmp(missing)


def test_a_machine_that_has_it_goes_on() -> None:
    loaded: list[str] = []
    need_openmp(loaded.append)
