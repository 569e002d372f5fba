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

VLLM = Path(__file__).parents[1] / ".isomorph/cache/vllm/bin/python"  # `make vllm`


@contextmanager
def running(
    experts: int, visited: int, width: int, inner: int, dtype: str
) -> Iterator[Callable[[int], float]]:
    """Start it; what is yielded returns the seconds of one call for so many tokens."""
    sizes = [str(each) for each in (experts, visited, width, inner)]
    process = subprocess.Popen(
        [str(VLLM), "-I", __file__, *sizes, dtype], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "0"},
    )  # fmt: skip
    assert process.stdin is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    told, answers = process.stdin, process.stdout

    def seconds(tokens: int) -> float:
        print(tokens, file=told, flush=True)
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
    """Time one call for each number of tokens that is read."""
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
        tokens = int(line)
        x = torch.randn(tokens, width, **numbers)
        shares = torch.full((tokens, visited), 1 / visited)
        chosen = torch.stack([torch.randperm(experts)[:visited] for _ in range(tokens)]).int()
        out = torch.empty_like(x)
        since = time.perf_counter()
        ops.cpu_fused_moe(out, x, *packed, None, None, shares, chosen, "silu", isa)
        print(json.dumps({"seconds": time.perf_counter() - since}), flush=True)


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:5]], sys.argv[5])
