"""Serves a model with latent attention: `python -m model_code.mla.serve`."""

import sys

from model_code.common.server.run import main
from model_code.mla.serve.reuse import Reuse

if __name__ == "__main__":
    sys.exit(main(extend=Reuse.from_environment))
