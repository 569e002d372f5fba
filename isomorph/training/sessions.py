"""One command on a node of a HyperPod cluster, through Session Manager.

Nodes take no SSH, and `SendCommand` does not know them: only StartSession takes the target
`sagemaker-cluster:ID_GROUP-INSTANCE`. What it prints comes through AWS's session-manager-plugin,
which must be on the path (docs/training.md).
"""

import base64
import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from isomorph.environments import Environment
from isomorph.errors import UserError

DOCUMENT = "AWS-StartNonInteractiveCommand"
_PLUGIN = "session-manager-plugin"
_BEGIN, _END = "isomorph-begin", "isomorph-end"
_ANSWER = re.compile(rf"{_BEGIN}\n(.*?)\n?{_END} (\d+)", re.DOTALL)
_PATIENCE_S = 120.0
# The service gives an account three sessions a second; botocore's own retries wait for that.


def run(environment: Environment, target: str, words: Sequence[str]) -> str:
    """Run a script of the node's code with some words, and return what it printed.

    Args:
        environment: Whose AWS it is.
        target: `sagemaker-cluster:ID_GROUP-INSTANCE`.
        words: Path below /opt/isomorph/code, and its arguments.

    Raises:
        UserError: no plugin, no such node, no answer, or the script said `isomorph: ...`.
    """
    plugin = shutil.which(_PLUGIN, path=_path(environment))
    if plugin is None:
        raise UserError(
            f"{_PLUGIN} is not on the path; AWS's documentation of Session Manager says how to "
            f"install it"
        )
    ssm = environment.client("ssm")
    given = {"command": [_command(words)]}
    with environment.aws_errors():
        session = ssm.start_session(Target=target, DocumentName=DOCUMENT, Parameters=given)
    said = _listen(environment, plugin, ssm, session, {"Target": target, "Parameters": given})
    found = _ANSWER.search(said)
    if found is None:
        with contextlib.suppress(Exception):  # it may have ended by itself
            ssm.terminate_session(SessionId=session["SessionId"])
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"the node did not answer to {words[0]}; it said: {last}")
    text = found[1]
    if found[2] != "0":
        told = [line for line in text.splitlines() if line.startswith("isomorph: ")]
        last = told[-1].removeprefix("isomorph: ") if told else text.strip()[-300:]
        raise UserError(last or f"{words[0]} ended with {found[2]} on the node")
    return text


_SCRIPT = """\
echo {begin}
python3 - <<'PYTHON'
import json, os, subprocess, sys
words = json.loads({words!r})
home = os.environ.get("ISOMORPH_ROOT", "") + "/opt/isomorph/code/"
sys.exit(subprocess.run(["bash", home + words[0], *words[1:]]).returncode)
PYTHON
code=$?
echo
echo {end} $code
"""


def _command(words: Sequence[str]) -> str:
    """Return a command line whose meaning no character of `words` can change."""
    script = _SCRIPT.format(begin=_BEGIN, end=_END, words=json.dumps(list(words)))
    encoded = base64.b64encode(script.encode()).decode()
    return f"bash -c 'echo {encoded} | base64 -d | bash'"


def _path(environment: Environment) -> str:
    return environment.variables.get("PATH") or os.environ.get("PATH", os.defpath)


def _listen(
    environment: Environment, plugin: str, ssm: Any, session: dict[str, Any], asked: dict[str, Any]
) -> str:
    """Return what the plugin shows; it loses its output now and then where that is no terminal."""
    told = json.dumps({name: session[name] for name in ("SessionId", "TokenValue", "StreamUrl")})
    words = [plugin, told, environment.config.region, "StartSession", "",
             json.dumps(asked), ssm.meta.endpoint_url]  # fmt: skip
    variables = {**os.environ, **environment.variables}
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(  # noqa: S603 - the plugin, found on the path
            words, env=variables, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave
        )
        os.close(slave)
        parts: list[bytes] = []
        with contextlib.suppress(OSError):  # Linux says EIO at the end
            while part := os.read(master, 1 << 16):
                parts.append(part)
        try:
            process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise UserError(f"{_PLUGIN} did not end in {_PATIENCE_S:.0f} s") from None
    finally:
        os.close(master)
    # A terminal ends lines in its own way, and each one on the way does.
    return re.sub(r"\r+\n", "\n", b"".join(parts).decode(errors="replace"))
