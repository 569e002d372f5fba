"""llama.cpp inside this process, through PyPI's xllamacpp: prebuilt, no compiler, no torch."""

import asyncio
import secrets
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import xllamacpp

from model_code.common.engine import Generation, Piece, PromptTooLongError
from model_code.common.errors import WeightsError
from model_code.common.gguf_header import read_header
from model_code.common.gguf_model import architecture_of, check_context, find_gguf

_SILENT = -1
_CACHE_DTYPE = "fp16"  # what llama.cpp keeps keys and values in unless told otherwise


class LlamaCppEngine:
    """Hands each request to llama.cpp's own continuous batching, one thread waiting per slot."""

    name = "llama.cpp"

    def __init__(self, folder: Path, *, slots: int, context: int) -> None:
        path = find_gguf(folder)
        header = read_header(path)
        architecture = architecture_of(header)
        check_context(context, architecture)
        self.context, self.slots = context, slots
        self.chat_template = header.chat_template
        self.window = architecture.window
        self.kv_bytes_per_token = architecture.kv_bytes_per_token(_CACHE_DTYPE)
        self._server: Any = _start(path, slots, context)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="llama.cpp")

    async def generate(self, request: Generation) -> AsyncGenerator[Piece, None]:
        """Yield pieces as llama.cpp's thread hands them over."""
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        cancelled = threading.Event()

        def deliver(chunk: dict[str, Any] | Exception | None) -> bool:
            """Called by llama.cpp's thread; True tells it to stop."""
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            return cancelled.is_set()

        def run() -> None:
            try:
                if not cancelled.is_set():
                    self._server.handle_completions(_body(request, self.context), deliver)
                deliver(None)
            except Exception as error:
                deliver(error)

        self._threads.submit(run)
        prompt_tokens = completion_tokens = 0
        try:
            while (chunk := await chunks.get()) is not None:
                if isinstance(chunk, Exception):
                    raise chunk
                if "error" in chunk:
                    raise _error(chunk["error"])
                if "prompt_progress" in chunk:
                    prompt_tokens = chunk["prompt_progress"]["total"]
                completion_tokens = chunk.get("timings", {}).get("predicted_n", completion_tokens)
                for choice in chunk["choices"]:
                    yield Piece(
                        text=choice["text"],
                        prompt_tokens=prompt_tokens,
                        completion_tokens=completion_tokens,
                        finish=choice["finish_reason"],
                    )
        finally:
            cancelled.set()

    def close(self) -> None:
        """Wait for running requests to notice, then free the model."""
        self._threads.shutdown(cancel_futures=True)
        self._server = None


def _start(path: Path, slots: int, context: int) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = slots
    params.n_ctx = slots * context  # divided among the slots
    params.fit_params = False  # never shrink what was asked for
    params.cache_ram_mib = 0  # its default keeps old prompts in up to 8 GiB of memory
    params.verbosity = _SILENT
    # Its own HTTP server cannot be switched off; it is on loopback, shut by a key nobody knows.
    params.api_keys = [secrets.token_hex(32)]
    params.ui = params.endpoint_slots = False
    params.n_threads_http = 1
    try:
        return xllamacpp.Server(params)
    except Exception as error:
        raise WeightsError(f"{path}: llama.cpp cannot load it: {error}") from error


def _body(request: Generation, context: int) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "max_tokens": -1 if request.max_tokens is None else request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repeat_penalty": request.repetition_penalty,
        "repeat_last_n": context,
        # As the native engine orders them; nothing that nobody asked for.
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "seed": request.seed,
        "stream": True,
        "timings_per_token": True,  # the count of tokens so far
        "return_progress": True,  # the prompt's length; and a chance to cancel early
    }


def _error(error: dict[str, Any]) -> Exception:
    if error.get("type") == "exceed_context_size_error":
        return PromptTooLongError(error["n_prompt_tokens"], error["n_ctx"])
    return RuntimeError(f"llama.cpp: {error.get('message')}")
