"""llama.cpp's own seconds a token, without anything that Python adds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_code.common.gguf_model import find_gguf


@contextmanager
def steps(folder: Path, *, context: int, tokens: int) -> Iterator[Callable[[list[int]], float]]:
    """Yield what returns the seconds of a token, of `tokens` that follow a prompt.

    It keeps what it has read: asked again, or for a longer prompt, it computes what is new only.

    Args:
        folder: With a GGUF file.
        context: Tokens of the longest prompt, with those that follow.
        tokens: How many to take the mean of.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(find_gguf(folder))
    params.n_parallel, params.n_ctx, params.fit_params = 1, context, False
    params.cache_ram_mib, params.verbosity, params.ui = 0, -1, False
    server: Any = xllamacpp.Server(params)

    def ask(prompt: list[int]) -> float:
        last: dict[str, Any] = {}
        body = {
            "prompt": prompt, "max_tokens": tokens + 1, "temperature": 0, "stream": True,
            "timings_per_token": True, "ignore_eos": True,
        }  # fmt: skip

        def take(chunk: dict[str, Any]) -> bool:
            last.update(chunk)
            return False

        server.handle_completions(body, take)
        if "timings" not in last:
            raise RuntimeError(f"llama.cpp: {last.get('error')}")
        found = last["timings"]  # the first token is the prompt's
        return float(found["predicted_ms"]) / 1e3 / int(found["predicted_n"] - 1)

    try:
        yield ask
    finally:
        server = None
