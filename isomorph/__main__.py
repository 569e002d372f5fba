"""`isomorph`, also `python -m isomorph`."""

import gc
import importlib
import os
import sys

import click

COMMANDS = {
    "list": "The innovations of the map, and where each is on.",
    "check": "Read an environment's file and say what it turns on.",
    "plan": "Size, price and explain what a model needs on AWS.",
    "doctor": "Look for what would fail, before it is deployed.",
    "diff": "What a deployment would change, and what it would replace.",
    "prices": "Prices of the catalogue.",
    "up": "Deploy `local` to the embedded AWS and ask each model a question.",
    "down": "Stop the embedded AWS and all that it runs.",
    "destroy": "Remove what an environment deployed.",
    "status": "What is deployed in an environment, and how it fares.",
    "run": "Ask a deployed innovation.",
    "start": "Start a training run on a deployed cluster.",
    "logs": "What a training run prints.",
    "stop": "Stop a training run; it saves a checkpoint first.",
    "access": "Let roles run on a cluster of EKS; for an admin, once.",
    "plans": "Training plans: capacity that is bought ahead.",
    "refresh": "Replace a fleet's machines, a part at a time.",
    "weights": "Weights in the model bucket.",
    "wheelhouses": "Download what nodes install, before synthesis.",
    "compile": "Graphs of a model for an accelerator.",
    "bench": "Measurements beside a named peer or limit.",
    "map": "The map of innovations and services, in Mermaid.",
}


class Lazy(click.Group):
    """Imports a command's module when it is called, so that each starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None when there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        gc.disable()  # what is imported stays, and to look for garbage in it takes a tenth
        module = importlib.import_module(f"isomorph.commands.{cmd_name}")
        gc.freeze()
        gc.enable()
        command: click.Command = getattr(
            module, f"{cmd_name}_" if cmd_name in KEYWORDS else cmd_name
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


KEYWORDS = {"compile", "list", "map"}  # names that Python itself uses


@click.group(cls=Lazy)
def cli() -> None:
    """Map a language model's architecture to AWS services, deploy them, and run the model."""


def main() -> int:
    """Run the command line: a user's mistake is one line and exit code 1, never a traceback."""
    # A line of the README says which Node to have; a banner at every command helps nobody.
    os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "18,20")
    try:
        cli(prog_name="isomorph", standalone_mode=False)
    except _mistakes() as error:
        for line in str(error).splitlines():
            click.echo(f"error: {line}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.stderr.flush()
        # Ctrl-C has ended CDK's Node process too; at a normal exit its library would complain.
        os._exit(130)
    return 0


def _mistakes() -> tuple[type[Exception], ...]:
    """Return what a person can mend; imported when something went wrong, so that help is fast."""
    from config import ConfigError
    from isomorph.errors import UserError
    from local_aws.errors import EmulatorError

    return UserError, ConfigError, EmulatorError


if __name__ == "__main__":
    sys.exit(main())
