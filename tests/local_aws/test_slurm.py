"""Which Slurm a cluster here uses, how Debian's is unpacked, and what it is told."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from local_aws import slurm
from local_aws.clusters import spool
from local_aws.clusters.node import Node
from local_aws.clusters.slurm.real import flat
from local_aws.clusters.slurmconf import programs, slurm_conf
from local_aws.errors import EmulatorError
from tests.local_aws.conftest import alive

ROOT = Path(__file__).resolve().parents[2]
VERSION = '#!/bin/sh\n[ "$LD_LIBRARY_PATH" ] && echo slurm-wlm 1.2.3\n'


def unpacked(root: Path, *, without: str = "") -> Path:
    """A folder as Debian's packages have it, whose slurmctld wants their libraries."""
    for name in ("slurmctld", "slurmd", "slurmstepd", "munged"):
        put(root / "usr/sbin" / (name if name == "munged" else f"{name}-wlm"))
    for name in slurm.COMMANDS:
        put(root / "usr/bin" / name)
    for path in root.rglob(f"{without or '-'}*"):
        path.unlink()
    (root / "usr/lib/x86_64-linux-gnu/slurm-wlm").mkdir(parents=True, exist_ok=True)
    return root


def put(path: Path, content: str = VERSION) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = unpacked(tmp_path / "root")
    monkeypatch.setenv("ISOMORPH_SLURM", str(root))
    return root


def test_an_unpacked_slurm_is_found_with_its_libraries(chosen):
    found = slurm.find()
    assert found is not None
    assert (found.version, found.root) == ("slurm-wlm 1.2.3", chosen)
    assert found.plugins == chosen / "usr/lib/x86_64-linux-gnu/slurm-wlm"
    assert found.programs["slurmctld"] == chosen / "usr/sbin/slurmctld-wlm"


def test_the_stand_in_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("ISOMORPH_SLURM", "stand-in")
    assert slurm.find() is None


def test_a_folder_without_slurm_is_refused(tmp_path, monkeypatch):
    unpacked(tmp_path, without="munged")
    monkeypatch.setenv("ISOMORPH_SLURM", str(tmp_path))
    with pytest.raises(EmulatorError, match="and there is no Slurm: name a folder in which"):
        slurm.find()


def test_paths_that_slurm_conf_cannot_name_are_left_to_the_stand_in(chosen):
    found = slurm.find()
    assert found is not None
    assert found.fits(Path("/home/me/.isomorph/local"))
    assert not found.fits(Path("/home/me/my projects"))
    assert not found.fits(Path("/home/%n"))


def test_where_there_is_no_apt_get_nothing_is_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match="this machine has no apt-get: install Slurm's daemons"):
        slurm.install(tmp_path / "slurm")
    monkeypatch.delenv("ISOMORPH_SLURM", raising=False)
    monkeypatch.setattr(slurm, "find", lambda: None)
    slurm.main(["install"])
    assert "no Slurm, and no apt-get" in capsys.readouterr().out


def test_a_download_that_fails_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    put(tmp_path / "bin/apt-get", "#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
    put(tmp_path / "bin/dpkg-deb")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(EmulatorError, match="cannot read the lists of Debian's packages: E: no"):
        slurm.install(tmp_path / "slurm")
    assert [path.name for path in (tmp_path / "slurm").iterdir()] == ["lock"]


def test_packages_that_do_not_start_here_are_refused(tmp_path, monkeypatch):
    for name in ("apt-get", "dpkg-deb"):
        put(tmp_path / "bin" / name, "#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(EmulatorError, match="libmunge2 does not start on this machine"):
        slurm.install(tmp_path / "slurm")


def node(folder: Path, kind: str, number: int) -> Node:
    made: dict[str, Any] = {
        "name": f"ip-127-1-0-{number}", "address": f"127.1.0.{number}", "slurm_type": kind,
        "folder": folder / str(number), "port": 7000 + number,
        "properties": {"SlurmConfig": {"PartitionNames": ["dev"]}},
    }  # fmt: skip
    return cast("Node", SimpleNamespace(**made))


def test_slurm_conf_gives_every_daemon_a_port_and_the_clusters_own_munge(chosen, tmp_path):
    nodes = [node(tmp_path, "Controller", 2), node(tmp_path, "Compute", 3)]
    text = slurm_conf("local", nodes, slurm.find(), tmp_path / "spool")
    lines = text.splitlines()
    assert f"AuthInfo=socket={tmp_path}/spool/munge.socket,cred_expire=5" in lines
    assert "AuthType=auth/munge" in lines
    assert "SlurmctldPort=7002" in lines
    [row] = [line for line in lines if line.startswith("NodeName=")]
    assert "NodeAddr=127.1.0.3" in row
    assert " Port=7003 " in row
    assert lines[-1] == "PartitionName=dev Nodes=ip-127-1-0-3 Default=YES MaxTime=INFINITE"
    assert "Port" not in slurm_conf("local", nodes, None, tmp_path / "spool")


def test_a_task_gets_the_variables_of_its_node_and_none_of_ours(chosen, tmp_path):
    for name, script in programs("ip-127-1-0-3", slurm.find()).items():
        put(tmp_path / "bin" / name, script)
    said = subprocess.run(
        [str(tmp_path / "bin/slurm-task-prolog")], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert f"export ISOMORPH_ROOT={tmp_path}" in said
    assert "unset LD_LIBRARY_PATH" in said


def test_nodes_get_slurm_conf_with_what_it_includes(tmp_path):
    (tmp_path / "isomorph.conf").write_text("Prolog=/p\n")
    (tmp_path / "slurm.conf").write_text(f"A=1\nInclude {tmp_path}/isomorph.conf\nB=2\n")
    assert flat(tmp_path / "slurm.conf") == "A=1\nProlog=/p\nB=2"


def test_the_spool_of_sockets_is_elsewhere_and_removed_with_its_link(tmp_path):
    spool.make(tmp_path / "cluster", sockets=True)
    made = (tmp_path / "cluster/spool").resolve()
    assert len(str(made)) < 50
    assert made.stat().st_mode & 0o777 == 0o700
    spool.remove(tmp_path / "cluster")
    assert not made.exists()
    assert not (tmp_path / "cluster/spool").is_symlink()


def test_what_a_node_runs_is_killed_after_its_folder_was_deleted(tmp_path):
    """Where Python 3.13.0 fails to look for a codec that it has not loaded yet."""
    code = (
        "import os, subprocess, sys; from local_aws.clusters.slurm.keeper import kill_all\n"
        "os.rmdir(os.getcwd()); child = subprocess.Popen(['sleep', '1000'])\n"
        "kill_all(); print(child.pid, 'encodings.ascii' in sys.modules)"
    )
    (tmp_path / "node").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "node", env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    child, loaded = done.stdout.split()
    assert not alive(int(child))
    assert loaded == "False"
