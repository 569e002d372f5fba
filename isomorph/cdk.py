"""The real CDK command line, run for an environment."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from isomorph.errors import UserError
from isomorph.paths import CDK, ROOT

_REASONS = re.compile(r"^\s*(?:❌|error:|Error:|\S*Error\b)|(?:_FAILED\s+\|)", re.IGNORECASE)
_CAUSE = "‣ "  # below what failed
_PRELOAD = Path(__file__).with_name("cdk_preload.cjs")


def run(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    cwd: Path = ROOT,
) -> str:
    """Run `cdk` and return what it printed; the whole of it is also appended to `log`.

    Raises:
        UserError: the CLI is not installed, or it failed; the message has its reason and the log.
    """
    if not CDK.exists():
        raise UserError(f"the CDK command line is not in {CDK.parent}; run `make install`")
    log.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(  # noqa: S603
        [str(CDK), *arguments],
        cwd=cwd,
        env=_variables(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with log.open("a") as file:
        file.write(f"$ cdk {' '.join(arguments)}\n{done.stdout}\n")
    if done.returncode:
        raise UserError(f"cdk {arguments[0]} failed: {reason(done.stdout)} (whole log: {log})")
    return done.stdout


def _variables(given: Mapping[str, str]) -> dict[str, str]:
    """Return this process's variables with those given on top.

    A profile wins over keys in the CLI, and no variable undoes it: where keys are given, as for
    the embedded AWS, a person's profile is left out.
    """
    profiles = {"AWS_PROFILE", "AWS_DEFAULT_PROFILE"} if "AWS_ACCESS_KEY_ID" in given else set()
    kept = {name: value for name, value in os.environ.items() if name not in profiles}
    options = f'{os.environ.get("NODE_OPTIONS", "")} --require "{_PRELOAD}"'.strip()
    return {**kept, **given, "NO_COLOR": "1", "NODE_OPTIONS": options}


def reason(printed: str) -> str:
    """Return the line of the CLI's output that says why it failed."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    named = [line for line in lines if _REASONS.search(line)]
    said = (named or lines or ["it printed nothing"])[0]
    causes = [line.removeprefix(_CAUSE) for line in lines if line.startswith(_CAUSE)]
    if said.startswith("❌") and causes:
        said = f"{said}: {causes[0]}"
    return said.removeprefix("❌").strip()


def bootstrap(
    account: str, region: str, *, environment: Mapping[str, str], log: Path, scratch: Path
) -> None:
    """Run `cdk bootstrap` for one account and region.

    It runs in an empty folder: beside cdk.json the CLI would synthesize the whole app first.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    run(["bootstrap", f"aws://{account}/{region}"], environment=environment, log=log, cwd=scratch)


def synthesize(
    into: Path, *, context: Mapping[str, str], environment: Mapping[str, str], log: Path
) -> None:
    """Run `cdk synth` into a folder of its own, from which stacks can be deployed one by one."""
    run(
        ["synth", "--quiet", "--output", str(into), *_options(context)],
        environment=environment,
        log=log,
    )


def deploy(
    stacks: Sequence[str],
    *,
    assembly: Path | None = None,
    context: Mapping[str, str],
    environment: Mapping[str, str],
    log: Path,
) -> str:
    """Run `cdk deploy` for stacks by path, without asking, and return what it printed.

    For the embedded AWS: elsewhere a person deploys, and sees what will change.

    Args:
        stacks: Paths such as `local/gqa`; what they depend on is deployed too.
        assembly: What `synthesize` made. Left out, the app is synthesized first, beside the log.
        context: What `-c` gives; an assembly has it built in.
        environment: Variables on top of this process's.
        log: Takes the whole output.
    """
    # Not into cdk.out: another command may be reading it.
    own = ["--output", str(log.parent / "deployed"), *_options(context)]
    source = ["--app", str(assembly)] if assembly else own
    # Nobody reviews a change set here: to make one takes calls, and all that is known of all types.
    options = ["--require-approval", "never", "--method", "direct", "--concurrency", "4"]
    return run(["deploy", *source, *options, *stacks], environment=environment, log=log)


def _options(context: Mapping[str, str]) -> list[str]:
    return [part for key, value in context.items() for part in ("-c", f"{key}={value}")]
