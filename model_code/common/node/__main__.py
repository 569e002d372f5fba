"""`python -m model_code.common.node ready` after boot, and `... drain` in the background."""

import logging
import os
import sys

from model_code.common.errors import UserError
from model_code.common.node.imds import Metadata
from model_code.common.node.lifecycle import Node


def main(arguments: list[str]) -> int:
    """Run one command, and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    node = Node(os.environ, Metadata())
    commands = {"ready": node.ready, "drain": node.drain}
    if len(arguments) != 1 or arguments[0] not in commands:
        print(
            f"isomorph: usage: python -m model_code.common.node {'|'.join(commands)}",
            file=sys.stderr,
        )
        return 2
    try:
        commands[arguments[0]]()
    except (UserError, OSError) as error:
        print(f"isomorph: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
