"""Serves a model with sliding windows: `python -m model_code.sliding_window.serve`."""

import sys

from model_code.common.server.run import main

if __name__ == "__main__":
    sys.exit(main())
