"""`isomorph down`: stop the embedded AWS and all that it runs."""

import shutil

import click

from isomorph import output
from isomorph.paths import CDK_OUT, state


@click.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def down(json_: bool) -> None:
    """Stop the embedded AWS; keep the environment and the download caches."""
    from local_aws import daemon

    ran = daemon.status(state()) is not None
    daemon.stop(state())
    shutil.rmtree(CDK_OUT, ignore_errors=True)
    if json_:
        output.as_json({"stopped": ran})
    else:
        output.say("stopped the embedded AWS" if ran else "the embedded AWS did not run")
