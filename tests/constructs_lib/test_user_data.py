"""Runs the script for real, with an `aws` that copies from a folder and writes down its calls."""

import hashlib
import http.server
import os
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from constructs_lib.user_data import render_user_data

POINTER = "s3://models/gqa/tiny/0123456789abcdef/#sha256=" + "ab" * 32
AWS = """#!/bin/bash
echo "$AWS_DEFAULT_REGION $*" >> "$CALLS"
[ "$1 $2" = "s3 cp" ] || exit 0
[ -z "${BROKEN:-}" ] || { echo "fatal error: unreachable" >&2; exit 1; }
cp "$BUCKET/${4##*/}" "$5"
"""


class Metadata(http.server.BaseHTTPRequestHandler):
    def answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        self.answer("a-token" if self.path == "/i-1/latest/api/token" else "?")

    def do_GET(self) -> None:
        known = self.headers["X-aws-ec2-metadata-token"] == "a-token"
        self.answer("i-0123" if known and self.path.endswith("/meta-data/instance-id") else "?")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def metadata():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/i-1/"
    server.shutdown()


class Node:
    """A folder that stands for a machine, and a folder that stands for a bucket."""

    def __init__(self, home: Path, metadata: str) -> None:
        self.root, self.bucket, self.calls = home / "root", home / "bucket", home / "calls"
        tools = home / "bin"
        for folder in (self.root, self.bucket, tools):
            folder.mkdir()
        (tools / "aws").write_text(AWS)
        (tools / "sleep").write_text('#!/bin/bash\necho "sleep $1" >> "$CALLS"\n')
        for tool in tools.iterdir():
            tool.chmod(0o755)
        self.environment = {
            "PATH": f"{tools}:/usr/bin:/bin:{os.path.dirname(os.sys.executable)}",
            "ISOMORPH_ROOT": str(self.root),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata,
            "CALLS": str(self.calls),
            "BUCKET": str(self.bucket),
        }

    def put(self, name: str, files: dict[str, str]) -> tuple[str, str]:
        with zipfile.ZipFile(self.bucket / name, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        digest = hashlib.sha256((self.bucket / name).read_bytes()).hexdigest()
        return f"s3://assets/{name}", digest

    def boot(
        self, *, pointer: str = POINTER, code_sha256: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        boot = 'echo "booted in $(pwd)"; cat "$ISOMORPH_ROOT/etc/isomorph/fleet.env"\n'
        code = self.put("code.zip", {"model_code/common/node/boot.sh": boot})
        script = render_user_data(
            region="us-east-1",
            pointer=pointer,
            stack="local-gqa",
            resource="Group",
            code=(code[0], code_sha256 or code[1]),
            wheelhouse=self.put("wheels.zip", {"a.whl": "wheel"}),
            settings={"ISOMORPH_SLOTS": 8, "ISOMORPH_ENGINE": "llama.cpp"},
        )
        return subprocess.run(
            ["/bin/bash", "-c", script],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def signals(self) -> list[str]:
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in calls if "signal-resource" in call]


@pytest.fixture
def node(tmp_path, metadata):
    return Node(tmp_path, metadata)


def test_hands_over_to_the_codes_own_boot_script(node):
    done = node.boot()
    assert done.returncode == 0, done.stderr
    assert "booted in" in done.stdout
    assert node.signals == []


def test_unpacks_code_and_wheels_below_the_root(node):
    node.boot()
    home = node.root / "opt" / "isomorph"
    assert (home / "code" / "model_code" / "common" / "node" / "boot.sh").is_file()
    assert (home / "wheelhouse" / "a.whl").read_text() == "wheel"
    assert {path.name for path in home.iterdir()} == {"code", "wheelhouse"}  # and keeps no zip


def test_writes_the_settings_and_the_two_halves_of_the_pointer(node):
    assert node.boot().stdout.splitlines()[1:] == [
        "AWS_REGION=us-east-1",
        "ISOMORPH_WEIGHTS=s3://models/gqa/tiny/0123456789abcdef/",
        f"ISOMORPH_WEIGHTS_SHA256={'ab' * 32}",
        "ISOMORPH_SLOTS=8",
        "ISOMORPH_ENGINE=llama.cpp",
    ]


def test_a_region_in_the_environment_wins(node):
    assert "AWS_REGION=eu-west-1" in node.boot(AWS_REGION="eu-west-1").stdout
    assert node.calls.read_text().startswith("eu-west-1 s3 cp")


def test_running_it_twice_leaves_nothing_of_the_first_time(node):
    node.boot()
    stale = node.root / "opt" / "isomorph" / "code" / "stale.py"
    stale.write_text("")
    assert node.boot().returncode == 0
    assert not stale.exists()


def test_fails_when_the_asset_is_not_the_one_that_was_synthesized(node):
    done = node.boot(code_sha256="0" * 64)
    assert done.returncode == 1
    expected = "isomorph: s3://assets/code.zip does not have the sha256 " + "0" * 64
    assert done.stderr.splitlines() == [expected]
    assert not (node.root / "opt" / "isomorph" / "code").exists()


def test_fails_when_s3_stays_out_of_reach_after_five_tries(node):
    done = node.boot(BROKEN="yes")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "isomorph: cannot fetch s3://assets/code.zip after 5 tries"
    )
    calls = node.calls.read_text().splitlines()
    assert [call for call in calls if call.startswith("sleep")] == [
        "sleep 2", "sleep 4", "sleep 8", "sleep 16",
    ]  # fmt: skip


def test_fails_when_the_pointer_is_not_one(node):
    done = node.boot(pointer="none")
    assert done.stderr.splitlines() == [
        "isomorph: the weights pointer is 'none'; it must be s3://BUCKET/PREFIX/#sha256=DIGEST"
    ]


def test_a_failure_is_signalled_once_under_the_instances_id(node):
    node.boot(pointer="none")
    assert node.signals == [
        "us-east-1 cloudformation signal-resource --stack-name local-gqa "
        "--logical-resource-id Group --unique-id i-0123 --status FAILURE"
    ]


def test_an_unforeseen_failure_is_told_and_signalled_too(node):
    node.root.joinpath("opt").write_text("a file where a folder must go")
    done = node.boot()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("isomorph: line ")
    assert len(node.signals) == 1


def test_shellcheck_has_nothing_to_say(node, tmp_path):
    script = tmp_path / "user-data.sh"
    script.write_text(
        render_user_data(
            region="us-east-1",
            pointer=POINTER,
            stack="s",
            resource="r",
            code=("s3://a/b", "0" * 64),
            wheelhouse=("s3://a/c", "1" * 64),
            settings={},
        )
    )
    tool = Path(os.sys.executable).parent / "shellcheck"
    done = subprocess.run([tool, script], capture_output=True, text=True)
    assert done.stdout == ""


def test_fails_when_a_setting_could_be_run_as_code():
    with pytest.raises(ValueError, match=r"ISOMORPH_MODEL cannot be '\$\(reboot\)'; allowed: lett"):
        render_user_data(
            region="us-east-1",
            pointer=POINTER,
            stack="s",
            resource="r",
            code=("", ""),
            wheelhouse=("", ""),
            settings={"ISOMORPH_MODEL": "$(reboot)"},
        )
