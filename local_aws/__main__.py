"""`python -m local_aws serve`: the embedded AWS in the foreground."""

import argparse
from pathlib import Path

from local_aws.serve import serve
from local_aws.settings import Settings


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m local_aws")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("serve", help="serve in the foreground until Ctrl-C")
    command.add_argument("--port", type=int, default=4570)
    command.add_argument("--state-dir", type=Path, default=Path(".isomorph/local"))
    given = parser.parse_args()
    serve(Settings(port=given.port, state_dir=given.state_dir.resolve()))


if __name__ == "__main__":
    main()
