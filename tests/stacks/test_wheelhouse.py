import sys

import pytest

from config import ConfigError
from stacks import wheelhouse as module
from stacks.wheelhouse import lock_files, python_command, wheelhouse, wheelhouse_name

HOST = f"host{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize(("python", "shown"), [("3.11", "3.11"), ("host", HOST)])
def test_the_name_says_what_the_wheels_are_for(python, shown):
    assert wheelhouse_name("gqa", python, "llama.cpp").startswith(f"gqa-llama.cpp-{shown}-")


def test_the_native_engine_has_wheels_of_its_own():
    assert [path.name for path in lock_files("gqa", "native")] == [
        "requirements.txt", "requirements-native.in",
    ]  # fmt: skip


def test_a_changed_lock_file_asks_for_another_wheelhouse(tmp_path, monkeypatch):
    lock = tmp_path / "model_code" / "gqa" / "serve" / "requirements.txt"
    lock.parent.mkdir(parents=True)
    lock.write_text("a==1\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    before = wheelhouse_name("gqa", "3.11", "llama.cpp")
    lock.write_text("a==2\n")
    assert wheelhouse_name("gqa", "3.11", "llama.cpp") != before


@pytest.mark.parametrize(("python", "command"), [("host", "python3"), ("3.11", "python3.11")])
def test_the_command_that_starts_the_nodes_python(python, command):
    assert python_command(python) == command


def test_a_built_wheelhouse_is_found(wheels):
    assert wheelhouse("gqa", "3.11", "llama.cpp", wheels).is_file()


def test_fails_when_the_wheels_are_not_built(tmp_path):
    name = wheelhouse_name("gqa", "3.11", "native")
    with pytest.raises(ConfigError) as caught:
        wheelhouse("gqa", "3.11", "native", tmp_path)
    assert str(caught.value) == (
        f"the wheels for gqa (engine native, python 3.11) are not built: no {name} in "
        f"{tmp_path}; run `make wheelhouses`"
    )
