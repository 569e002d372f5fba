"""What a plan costs: time of 100 plans, time of the import, and parameter counts off by how many.

Each row is a mapping with the fields of a bench row: name, ours, peer, ratio, target, reached.
A ratio is the limit over ours, so that 1 or more is reached.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLANS = 100
PLANS_LIMIT_S = 5.0
IMPORT_LIMIT_S = 0.3
IMPORTS = 7


def measure() -> list[dict[str, Any]]:
    """Return the rows; those of transformers are there where it is installed."""
    return [plans(), import_time(), *parameter_counts()]


def plans() -> dict[str, Any]:
    """Time plans of the shipped models, each at a load of its own, in one process."""
    from planner import plan
    from planner.planning import MODELS

    files = sorted(MODELS.glob("*.json"))
    start = time.perf_counter()
    for index in range(PLANS):
        plan(files[index % len(files)], {"concurrent": 1 + index}).dumps()
    return _row(f"{PLANS} plans, as JSON", time.perf_counter() - start, PLANS_LIMIT_S)


def import_time() -> dict[str, Any]:
    """Time `import planner` in fresh processes, the interpreter's own start left out."""
    code = "import time; t = time.perf_counter(); import planner; print(time.perf_counter() - t)"
    seconds = []
    for _ in range(IMPORTS):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds.append(float(done.stdout))
    # The least: whatever else the machine does only adds to it.
    return _row(f"import planner, least of {IMPORTS}", min(seconds), IMPORT_LIMIT_S)


def parameter_counts() -> list[dict[str, Any]]:
    """Count each shipped model beside the model that transformers builds on the meta device."""
    try:
        import torch
        import transformers
    except ImportError:
        return []
    from model_code.common.architecture import read
    from planner.planning import MODELS

    right = 0
    files = sorted(MODELS.glob("*.json"))
    for file in files:
        values = json.loads(file.read_text())
        values = values.get("text_config") or values
        # transformers has no class for Kimi-K2, whose architecture is DeepSeek-V3's.
        kind = values.pop("model_type").replace("kimi_k2", "deepseek_v3")
        config = transformers.AutoConfig.for_model(kind, **values)
        with torch.device("meta"):
            built = transformers.AutoModelForCausalLM.from_config(config)
        right += read(file).parameters == sum(p.numel() for p in built.parameters())
    return [
        {
            "name": "models counted to the unit",
            "ours": f"{right} of {len(files)}",
            "peer": f"transformers {transformers.__version__}",
            "ratio": right / len(files),
            "target": 1.0,
            "reached": right == len(files),
        }
    ]


def _row(name: str, seconds: float, limit: float) -> dict[str, Any]:
    return {
        "name": name,
        "ours": f"{seconds:.3f} s",
        "peer": f"limit {limit:g} s",
        "ratio": limit / seconds,
        "target": 1.0,
        "reached": seconds <= limit,
    }


if __name__ == "__main__":
    for row in measure():
        sys.stdout.write(json.dumps(row) + "\n")
