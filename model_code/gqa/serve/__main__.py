"""Serves a model with grouped-query attention: `python -m model_code.gqa.serve`."""

import sys

from model_code.common.server.run import main

if __name__ == "__main__":
    sys.exit(main())
