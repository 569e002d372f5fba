"""boot.sh, run for real in an empty folder: real Python, real wheels, no network but loopback."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model_code.conftest import ROOT, free_port

BOOT = "model_code/common/node/boot.sh"
# As much of init as a boot needs: starts the server's unit, and notes each call.
SYSTEMCTL = """#!/bin/bash
echo "$*" >>"$ISOMORPH_ROOT/systemctl.calls"
if [ "$1 $2" = "enable --now" ]; then
  unit="$ISOMORPH_ROOT/etc/systemd/system/isomorph.service"
  cd "$(sed -n 's/^WorkingDirectory=//p' "$unit")" || exit 1
  set -a; . "$(sed -n 's/^EnvironmentFile=//p' "$unit")"; set +a
  export STATE_DIRECTORY="$ISOMORPH_ROOT/var/lib/isomorph"
  mkdir -p "$STATE_DIRECTORY"
  $(sed -n 's/^ExecStart=//p' "$unit") >"$ISOMORPH_ROOT/server.log" 2>&1 &
  echo $! >"$ISOMORPH_ROOT/server.pid"
fi
if [ "$1" = is-active ]; then kill -0 "$(cat "$ISOMORPH_ROOT/server.pid")" 2>/dev/null; fi
"""


class Machine:
    """An empty folder with the assets unpacked as the user data does it."""

    def __init__(self, root: Path, wheelhouse: Path, weights: Path) -> None:
        self.root = root
        home = root / "opt/isomorph"
        for name in ("common", "gqa"):
            shutil.copytree(ROOT / "model_code" / name, home / "code/model_code" / name)
        shutil.copy(ROOT / "model_code/__init__.py", home / "code/model_code")
        (home / "wheelhouse").symlink_to(wheelhouse)
        (root / "bin").mkdir()
        self.put("bin/systemctl", SYSTEMCTL)
        self.put("bin/aws", '#!/bin/bash\necho "$*" >>"$ISOMORPH_ROOT/aws.calls"\n')
        python = Path(sys.executable).resolve()
        for name in ("python3", "python3.11"):
            (root / "bin" / name).symlink_to(python)
        self.settings = {
            "SLUG": "gqa", "PYTHON": "python3.11", "ENGINE": "llama.cpp", "PORT": "8080",
            "MODEL": "smollm2", "WEIGHTS": str(weights), "SLOTS": "2", "CONTEXT": "256",
            "DEADLINE_S": "30", "STACK": "local-gqa", "SIGNAL_RESOURCE": "Fleet",
            "LAUNCH_HOOK": "launch", "DRAIN_HOOK": "drain",
        }  # fmt: skip
        self.port, self.cloud_port = free_port(), free_port()
        self.tools = "/usr/bin:/bin"

    def put(self, name: str, content: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)

    def boot(self) -> "subprocess.CompletedProcess[str]":
        """Run boot.sh where no interface but loopback exists."""
        lines = [f"ISOMORPH_{name}={value}\n" for name, value in self.settings.items()]
        self.put("etc/isomorph/fleet.env", "".join(lines) + "AWS_REGION=eu-west-1\n")
        cloud = f"{sys.executable} {ROOT}/tests/model_code/cloud.py {self.cloud_port} {self.root}"
        script = (
            f"/sbin/ip link set lo up; {cloud} & cloud=$!; "
            f"bash {self.root}/opt/isomorph/code/{BOOT}; code=$?; "
            f"echo 'GET /health' >&2; {sys.executable} -c \"import urllib.request as u; "
            f"print(u.urlopen('http://127.0.0.1:{self.port}/health').read())\" 2>/dev/null; "
            "kill $cloud; [ -f server.pid ] && kill $(cat server.pid); wait; exit $code"
        )
        aws = f"http://127.0.0.1:{self.cloud_port}"
        env = {
            "PATH": f"{self.root}/bin:{self.tools}",
            "HOME": str(self.root),
            "ISOMORPH_ROOT": str(self.root),
            "ISOMORPH_PORT_OVERRIDE": str(self.port),
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": aws,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{aws}/imds",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        return subprocess.run(
            ["unshare", "-rn", "bash", "-c", script],
            cwd=self.root, env=env, text=True, capture_output=True, timeout=240, check=False,
        )  # fmt: skip

    def lines(self, name: str) -> list[str]:
        path = self.root / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path, wheelhouse: Path, weights: Path) -> Iterator[Machine]:
    yield Machine(tmp_path, wheelhouse, weights)
    # A venv is thousands of files; pytest keeps the folders of three runs.
    shutil.rmtree(tmp_path / "opt", ignore_errors=True)


@pytest.mark.slow
def test_an_empty_machine_without_a_network_boots_serves_and_signals(machine: Machine) -> None:
    machine.settings |= {"HUGE_PAGES": "always", "NUMA": "interleave"}
    pages = "sys/kernel/mm/transparent_hugepage/enabled"
    machine.put(pages, "madvise")
    for _ in range(2):  # it may run again: nothing is left half done
        done = machine.boot()
        assert done.returncode == 0, done.stderr + "\n".join(machine.lines("server.log"))
        assert '{"status":"ok"}' in done.stdout
        calls = [json.loads(line) for line in machine.lines("calls")]
        assert [call["Action"] for call in calls[-3:]] == [
            "SignalResource", "DescribeAutoScalingInstances", "CompleteLifecycleAction",
        ]  # fmt: skip
        assert calls[-3]["Status"] == "SUCCESS"
        assert calls[-3]["UniqueId"] == "i-0123456789abcdef0"
    assert machine.lines("systemctl.calls")[:3] == [
        "daemon-reload",
        "enable --now isomorph.service isomorph-drain.service",
        "enable isomorph-ready.service",
    ]
    unit = machine.lines("etc/systemd/system/isomorph.service")
    assert "TimeoutStopSec=45" in unit
    assert "DynamicUser=yes" in unit
    assert f"Environment=PYTHONPYCACHEPREFIX={machine.root}/var/lib/isomorph/bytecode" in unit
    assert {"NUMAPolicy=interleave", "NUMAMask=all"} <= set(unit)
    assert machine.lines(pages) == ["always"]
    left = {path.name for path in (machine.root / "opt/isomorph").iterdir()}
    assert left == {"code", "wheelhouse", "venv"}  # no second copy of what was unpacked
    assert not machine.lines("aws.calls")  # only failures are signalled through the command line


@pytest.mark.slow
def test_a_neuron_machine_gets_the_libraries_of_its_image(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "image"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", image], check=True)
    [packages] = image.glob("lib/python*/site-packages")
    (packages / "torch_neuronx.py").write_text("HERE = True")
    machine.settings |= {"NEURON_VENV": str(image)}
    done = machine.boot()
    assert done.returncode == 0, done.stderr + "\n".join(machine.lines("server.log"))
    python = tmp_path / "opt/isomorph/venv/bin/python"
    subprocess.run([python, "-c", "import torch_neuronx, uvicorn"], check=True)
    unit = machine.lines("etc/systemd/system/isomorph.service")
    assert "PrivateDevices=no" in unit  # the accelerators are devices


@pytest.mark.slow
def test_fails_when_a_wheel_is_not_the_one_that_was_locked(
    machine: Machine, tmp_path: Path
) -> None:
    wheels = tmp_path / "opt/isomorph/wheelhouse"
    real = wheels.resolve()
    wheels.unlink()
    shutil.copytree(real, wheels)
    [uvicorn] = wheels.glob("uvicorn-*.whl")
    with zipfile.ZipFile(uvicorn, "a") as archive:
        archive.writestr("uvicorn/backdoor.py", "")
    done = machine.boot()
    assert done.returncode == 1
    assert "Hash mismatch for `uvicorn==" in done.stderr
    assert f"isomorph: the wheels in {wheels} cannot be installed" in done.stderr
    assert machine.lines("aws.calls") == [
        "cloudformation signal-resource --stack-name local-gqa --logical-resource-id Fleet "
        "--unique-id i-0123456789abcdef0 --status FAILURE"
    ]
    assert not machine.lines("systemctl.calls")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SLUG": "nope"}, "ISOMORPH_SLUG is nope, but there is no"),
        ({"PYTHON": ""}, "ISOMORPH_PYTHON is missing in"),
        ({"NEURON_VENV": "/opt/none"}, "ISOMORPH_NEURON_VENV is /opt/none, which has no Python"),
        (
            {"PYTHON": "python9.9"},
            "ISOMORPH_PYTHON is python9.9, which is not here, and dnf",
        ),
    ],
)
def test_fails_when_a_setting_is_wrong_and_signals_that(
    machine: Machine, settings: dict[str, str], message: str
) -> None:
    machine.settings |= settings
    done = machine.boot()
    assert done.returncode == 1
    assert f"isomorph: {message}" in done.stderr
    assert machine.lines("aws.calls")[-1].endswith("--status FAILURE")


@pytest.mark.parametrize("repository", ["has it", "does not answer"])
def test_the_native_engine_gets_a_compiler_where_there_is_one_to_get(
    machine: Machine, tmp_path: Path, repository: str
) -> None:
    for tool in Path("/usr/bin").iterdir():
        if not tool.name.startswith(("c++", "g++", "clang++")):
            (tmp_path / "tools").mkdir(exist_ok=True)
            (tmp_path / "tools" / tool.name).symlink_to(tool)
    machine.tools = str(tmp_path / "tools")
    code = 0 if repository == "has it" else 1
    machine.put("bin/dnf", f'#!/bin/bash\necho "$*" >>"$ISOMORPH_ROOT/dnf.calls"\nexit {code}\n')
    machine.settings["ENGINE"] = "native"
    done = machine.boot()
    assert machine.lines("dnf.calls") == ["install -y -q gcc-c++"]
    assert ("no C++ compiler is here, and dnf cannot install one" in done.stderr) == bool(code)
    # It goes on either way, here as far as the list of torch's wheels, which llama.cpp's has not.
    assert "requirements-native.txt" in done.stderr
    assert done.returncode == 1


def test_boot_sh_passes_shellcheck() -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    subprocess.run([checker, ROOT / BOOT], check=True)
