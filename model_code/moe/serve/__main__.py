"""Serves a mixture of experts: `python -m model_code.moe.serve`."""

import sys

from model_code.common.server.run import main
from model_code.moe.serve.extension import ExpertServing

if __name__ == "__main__":
    sys.exit(main(extend=ExpertServing.from_environment))
