from pathlib import Path

import pytest

from isomorph import cdk
from isomorph.errors import UserError


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("error: config/dev.yaml: account: put it in quotes\n", "error: config/dev.yaml: account"),
        ("deploying\n ❌  local-gqa failed: bad thing\n", "local-gqa failed: bad thing"),
        ("❌  gqa failed to deploy\n\n‣ ValidationError: no\n", "gqa failed to deploy: Validation"),
        ("only this\n", "only this"),
        ("", "it printed nothing"),
    ],
)
def test_the_line_that_says_why_is_found(printed: str, reason: str) -> None:
    assert cdk.reason(printed).startswith(reason)


def test_fails_when_the_command_line_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdk, "CDK", tmp_path / "cdk")
    with pytest.raises(UserError, match=r"the CDK command line is not in .*; run `make install`"):
        cdk.run(["ls"], environment={}, log=tmp_path / "log")


def test_a_failure_names_the_reason_and_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "cdk"
    fake.write_text(
        "#!/bin/sh\necho some words\necho ' ❌  dev-gqa failed: no such bucket'\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(cdk, "CDK", fake)
    with pytest.raises(UserError, match=r"cdk deploy failed: dev-gqa failed: no such bucket .*log"):
        cdk.run(["deploy"], environment={}, log=tmp_path / "log", cwd=tmp_path)
    assert "some words" in (tmp_path / "log").read_text()


def test_what_is_uploaded_is_not_written_into_the_log_byte_by_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "cdk"
    program = "console.log(JSON.stringify({Body: Buffer.alloc(5000)}))"
    fake.write_text(f"#!/usr/bin/env node\n{program}\nconsole.log(Error.stackTraceLimit)\n")
    fake.chmod(0o755)
    monkeypatch.setattr(cdk, "CDK", fake)
    monkeypatch.setenv("NODE_OPTIONS", "--stack-trace-limit=7")
    said = cdk.run(["deploy"], environment={}, log=tmp_path / "log", cwd=tmp_path)
    assert '{"Body":"<5000 bytes>"}' in said
    assert said.endswith("7\n")  # a person's own options stay
