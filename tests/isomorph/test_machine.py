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


@pytest.mark.parametrize(("platform", "looked_for"), [("linux", ["libgomp.so.1"]), ("darwin", [])])
def test_only_linux_is_looked_at_where_wheels_do_not_bring_their_own(
    monkeypatch: pytest.MonkeyPatch, platform: str, looked_for: list[str]
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("sys.platform", platform)
    need_openmp(loaded.append)
    assert loaded == looked_for
