"""vLLM's kernel for experts on CPUs, timed by a Python that has vLLM; it is imported nowhere else.

Only what its own mixture would run: the portable path, or AMX where the CPU has it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VLLM = Path(__file__).parents[1] / ".isomorph/cache/vllm/bin/python"  # `make vllm`


@contextmanager
def running(
    experts: int, visited: int, width: int, inner: int, dtype: str
) -> Iterator[Callable[[int, int], float]]:
    """Start it; what is yielded returns the seconds of a call, for so many tokens and calls."""
    sizes = [str(each) for each in (experts, visited, width, inner)]
    process = subprocess.Popen(
        [str(VLLM), "-I", __file__, *sizes, dtype], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "0"},
    )  # fmt: skip
    assert process.stdin is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    told, answers = process.stdin, process.stdout

    def seconds(tokens: int, calls: int) -> float:
        print(tokens, calls, file=told, flush=True)
        for line in answers:
            if line.startswith("{"):
                return float(json.loads(line)["seconds"])
        raise RuntimeError("vLLM's kernel for experts cannot run here")

    try:
        yield seconds
    finally:
        told.close()
        process.wait()


def main(sizes: list[int], dtype: str) -> None:
    """Time the calls for each number of tokens that is read."""
    import torch
    import vllm._custom_ops as ops  # type: ignore[import-not-found]
    from vllm.platforms import current_platform  # type: ignore[import-not-found]

    experts, visited, width, inner = sizes
    current_platform.import_kernels()
    isa = "amx" if dtype == "bfloat16" and torch.cpu._is_amx_tile_supported() else "vec"
    numbers = {"dtype": getattr(torch, dtype)}
    first = torch.randn(experts, 2 * inner, width, **numbers).mul_(0.02)
    second = torch.randn(experts, width, inner, **numbers).mul_(0.02)
    packed = [ops.cpu_prepack_moe_weight(each, isa) for each in (first, second)]
    for line in sys.stdin:
        tokens, calls = map(int, line.split())
        shares = torch.full((tokens, visited), 1 / visited)
        given = [
            (torch.randn(tokens, width, **numbers), choices(tokens, experts, visited).int())
            for _ in range(calls)
        ]
        since = time.perf_counter()
        for x, chosen in given:
            ops.cpu_fused_moe(
                torch.empty_like(x), x, *packed, None, None, shares, chosen, "silu", isa
            )
        print(json.dumps({"seconds": (time.perf_counter() - since) / calls}), flush=True)


def choices(tokens: int, experts: int, visited: int) -> Any:
    """Return which experts each token visits: any, each as often as another."""
    import torch

    return torch.stack([torch.randperm(experts)[:visited] for _ in range(tokens)])


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:5]], sys.argv[5])
