"""The AWS CLI of the machines: loaded once, and each call as if it had loaded the CLI itself."""

import marshal
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_aws.clusters.slurm.keeper import descendants
from local_aws.machines.image.aws import FOLDER, SOCKET
from local_aws.machines.machine import Machine
from local_aws.processes import command
from tests.local_aws.conftest import Emulator, alive, until

BUCKET = "cli-texts"
Done = tuple[int, bytes, bytes]


class Caller:
    """A machine whose `aws` is called."""

    def __init__(self, folder: Path, emulator: Emulator) -> None:
        self.folder, self._place = folder, str(emulator.running.state_dir / "cli")
        self.variables = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "ISOMORPH_ROOT": str(folder),
            "AWS_ENDPOINT_URL": emulator.running.endpoint,
            "AWS_ACCESS_KEY_ID": emulator.account,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": emulator.region,
        }

    def start(self, *words: str, place: str | None = None) -> "subprocess.Popen[bytes]":
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [self.folder / "bin" / "aws", *words],
            env={**self.variables, FOLDER: self._place if place is None else place},
            cwd=self.folder / "opt",
            **pipes,
        )

    def call(self, *words: str, said: bytes = b"", place: str | None = None) -> Done:
        process = self.start(*words, place=place)
        out, err = process.communicate(said, timeout=30)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def caller(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    emulator.client("s3").create_bucket(Bucket=BUCKET)
    folder = tmp_path_factory.mktemp("machine") / "i-0"
    machine = Machine("i-0", folder, 1, "#!/bin/sh\n", {})
    machine.boot()
    (folder / "opt" / "text").write_text("words of a file")
    yield Caller(folder, emulator)
    machine.cut_power()


def copies(emulator: Emulator) -> list[int]:
    """The processes that are a call, below the one that waits for calls."""
    for pid in descendants(emulator.running.pid):
        if "cli_server.py" in (command(pid) or ""):
            return descendants(pid)
    return []


@pytest.mark.parametrize(
    "words",
    [
        ("sts", "get-caller-identity"),  # by the variables
        ("s3", "cp", "--no-progress", "text", f"s3://{BUCKET}/of-a-file"),  # in the caller's folder
        ("s3", "cp", "-", f"s3://{BUCKET}/said"),  # from standard input
        ("s3", "cp", f"s3://{BUCKET}/said", "-"),  # to standard output
        ("nonsense",),  # which lists all that the CLI knows
        ("configure", "set", "region", "eu-west-1"),  # into the home folder
    ],
    ids=" ".join,
)
def test_a_call_does_and_says_what_it_would_alone(caller: Caller, words: tuple[str, ...]) -> None:
    alone = caller.call(*words, said=b"words said", place="/nowhere")
    assert caller.call(*words, said=b"words said") == alone
    if words[-1] == "-":
        assert alone == (0, b"words said", b"")


def test_a_call_ends_with_who_made_it(caller: Caller, emulator: Emulator) -> None:
    process = caller.start("s3", "cp", "-", f"s3://{BUCKET}/never")
    [copy] = until(lambda: copies(emulator), "the call")
    process.kill()
    process.wait()
    until(lambda: not alive(copy), "the end of the call")
    assert process.stdin
    process.stdin.close()
    found = emulator.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="never")
    assert found["KeyCount"] == 0


def test_a_call_ends_when_its_maker_dies_before_it_reads_that_it_was_taken(
    caller: Caller, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["s3", "cp", "-", f"s3://{BUCKET}/never"]
    said = marshal.dumps((words, caller.variables, str(caller.folder), 0o077))
    monkeypatch.chdir(emulator.running.state_dir / "cli")  # the whole name may be too long
    reads, writes = os.pipe()  # its standard input, which does not end meanwhile
    with socket.socket(socket.AF_UNIX) as maker, open(os.devnull, "w") as nowhere:
        maker.connect(SOCKET)
        streams = [reads, nowhere.fileno(), nowhere.fileno()]
        socket.send_fds(maker, [len(said).to_bytes(4, "little")], streams)
        maker.sendall(said)
        assert maker.recv(1, socket.MSG_PEEK) == b"\0"  # it is there, and stays unread
        [copy] = copies(emulator)
    os.close(reads)
    until(lambda: not alive(copy), "the end of the call")
    os.close(writes)


def test_only_this_user_may_call(emulator: Emulator) -> None:
    assert (emulator.running.state_dir / "cli" / SOCKET).stat().st_mode & 0o777 == 0o600


def test_a_call_that_is_not_taken_is_made_all_the_same(caller: Caller, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET))
        listener.listen()
        process = caller.start("--version", place=str(tmp_path))
        listener.accept()[0].close()
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out.startswith(b"aws-cli/")) == (0, True)
