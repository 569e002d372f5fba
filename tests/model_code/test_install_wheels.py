"""How machines that share a disk install the same wheels, with the uv that nodes have."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.model_code.conftest import ROOT

INSTALL = ROOT / "model_code/common/node/install_wheels.sh"
MODULE = "lib/python*/site-packages/made_up.py"
pytestmark = pytest.mark.slow  # uv is in what nodes install


class Machine:
    """A folder with one wheel, the list that locks it, and an environment.

    Args:
        folder: The folder.
        uv: uv's wheel.
        says: The content of the wheel's only module.
    """

    def __init__(self, folder: Path, uv: Path, says: str) -> None:
        self.wheels, self.venv = folder / "wheelhouse", folder / "venv"
        self.wheels.mkdir(parents=True)
        (self.wheels / uv.name).hardlink_to(uv)
        wheel = self.wheels / "made_up-1-py3-none-any.whl"
        files = {
            "made_up.py": says,
            "made_up-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: made-up\nVersion: 1\n",
            "made_up-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n",
        }
        record = "".join(f"{name},{_digest(text)},\n" for name, text in files.items())
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, text in {**files, "made_up-1.dist-info/RECORD": record}.items():
                archive.writestr(zipfile.ZipInfo(name), text)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        self.list = folder / "requirements.txt"
        self.list.write_text(f"made-up==1 --hash=sha256:{digest}\n")

    def install(self, cache: Path) -> Path:
        """Run the script, and return the installed module."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        subprocess.run(
            ["bash", INSTALL, self.venv, self.wheels, self.list],
            env={"PATH": "/usr/bin:/bin", "UV_CACHE_DIR": str(cache)},
            check=True,
        )
        [module] = self.venv.glob(MODULE)
        return module


def _digest(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    return f"sha256={digest.decode().rstrip('=')}"


@pytest.fixture
def uv(wheelhouse: Path) -> Path:
    [found] = wheelhouse.glob("uv-*.whl")
    return found


def test_machines_that_share_a_disk_unpack_a_wheel_once(tmp_path: Path, uv: Path) -> None:
    first, second = (Machine(tmp_path / name, uv, "HERE = 1") for name in ("first", "second"))
    installed = first.install(tmp_path / "cache")
    subprocess.run(["rm", "-rf", first.wheels], check=True)  # a machine that has gone
    assert installed.samefile(second.install(tmp_path / "cache"))


def test_machines_that_share_a_disk_compile_a_module_once(tmp_path: Path, uv: Path) -> None:
    found = []
    for name in ("first", "second"):
        machine = Machine(tmp_path / name, uv, "HERE = 1")
        machine.install(tmp_path / "cache")
        code = "import made_up; print(made_up.__cached__)"
        done = subprocess.run(
            [machine.venv / "bin/python", "-c", code], env={}, check=True, capture_output=True
        )
        found.append(Path(done.stdout.decode().strip()))
    first, second = found
    [compiled] = (tmp_path / "cache/compiled").glob("*/made_up.*.pyc")
    assert first != second
    assert compiled.samefile(first)
    assert compiled.samefile(second)
    before = compiled.stat()
    assert (before.st_ino, before.st_mtime_ns) == (second.stat().st_ino, second.stat().st_mtime_ns)


def test_a_machine_with_another_build_of_a_wheel_gets_its_own(tmp_path: Path, uv: Path) -> None:
    Machine(tmp_path / "first", uv, "HERE = 1").install(tmp_path / "cache")
    second = Machine(tmp_path / "second", uv, "HERE = 2")
    assert second.install(tmp_path / "cache").read_text() == "HERE = 2"
