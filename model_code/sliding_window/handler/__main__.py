"""Streams: `bootstrap` starts this in place of the managed runtime's own client."""

import os
import sys

from model_code.common.errors import UserError
from model_code.sliding_window.handler.model import Model, Settings
from model_code.sliding_window.handler.runtime import RuntimeApi, serve


def main() -> int:
    """Load the model, then answer events; return an exit code when the settings are wrong."""
    try:
        model = Model(Settings.read(os.environ))
    except UserError as error:
        print(f"isomorph: {error}", file=sys.stderr)
        return 1
    model.warm()
    serve(model, RuntimeApi(os.environ["AWS_LAMBDA_RUNTIME_API"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
