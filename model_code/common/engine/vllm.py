"""vLLM as an engine: its own server in an environment of its own, asked over a Unix socket.

It wants other versions of torch and transformers than ours, so it is never imported: the setting
ISOMORPH_VLLM_PYTHON names a Python that has it (`make vllm` makes one with the build for CPUs).
"""

import asyncio
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from model_code.common.architecture import Architecture, ModelError, read
from model_code.common.chat import folder_template
from model_code.common.engine import Finish, Generation, Piece, PromptTooLongError, UnavailableError
from model_code.common.engine.vllm_http import answers, complete
from model_code.common.errors import SettingsError, WeightsError
from model_code.common.gguf_model import check_context
from model_code.common.tokenizer import FolderTokenizer

_LOG = logging.getLogger(__name__)
_CHILD = Path(__file__).with_name("vllm_child.py")
_BLOCK = 128  # tokens of a page on CPUs, https://docs.vllm.ai: every sequence has one that is begun
_KV_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
_LOADING_S = 900.0
# Nothing is asked of a hub, and nothing is told to anybody.
_ALONE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
          "DO_NOT_TRACK": "1"}  # fmt: skip


class VllmEngine:
    """Hands tokens to vLLM's continuous batching, and passes on the text that it streams.

    Args:
        folder: With config.json, tokenizer.json and safetensors.
        slots: Sequences that it runs at a time.
        context: Tokens of a request with its answer.
        dtype: float32 or bfloat16; auto leaves it to the checkpoint.
        quantization: none.

    Raises:
        SettingsError: ISOMORPH_VLLM_PYTHON has no vLLM, or another setting is not for it.
        WeightsError: vLLM cannot read the folder.
    """

    name = "vllm"

    def __init__(
        self, folder: Path, *, slots: int, context: int, dtype: str, quantization: str = "none",
        env: Mapping[str, str] = os.environ,
    ) -> None:  # fmt: skip
        if quantization != "none":
            raise SettingsError(
                f"ISOMORPH_QUANTIZATION is {quantization!r}; with ISOMORPH_ENGINE=vllm it must be "
                f"none: vllm computes with the checkpoint's own numbers"
            )
        architecture = _read(folder)
        check_context(context, architecture)
        self._tokenizer = FolderTokenizer(folder, architecture.vocabulary)
        self.chat_template = folder_template(folder)
        self.slots, self.context, self.window = slots, context, architecture.window
        self.kv_bytes_per_token = architecture.kv_bytes_per_token(_KV_DTYPES.get(dtype, "bf16"))
        self._home = Path(tempfile.mkdtemp(prefix="vllm-"))  # for us alone: mode 0700
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = False
        try:
            python = _python(env)
            pages = slots * (-(-context // _BLOCK) + 1)
            words = command(
                python, folder, self._home / "socket", slots=slots, context=context, dtype=dtype,
                kv_bytes=pages * _BLOCK * self.kv_bytes_per_token,
                options=env.get("ISOMORPH_VLLM_OPTIONS", ""),
            )  # fmt: skip
            self._process = self._start(words, env)
            self._wait(self._process, folder)
            threading.Thread(target=self._watch, args=(self._process,), daemon=True).start()
        except BaseException:
            self.close()
            raise

    async def generate(self, request: Generation) -> AsyncGenerator[Piece, None]:
        """Yield pieces as vLLM streams them; closing the connection makes it stop."""
        prompt = await asyncio.to_thread(self._tokenizer.encode, request.prompt)
        if len(prompt) >= self.context:
            raise PromptTooLongError(len(prompt), self.context)
        room = self.context - len(prompt)
        body = _body(request, prompt, room, sorted(self._tokenizer.ends))
        done, finish, cached, text = 0, None, 0, ""
        try:
            async for event in complete(self._home / "socket", body):
                for choice in event.get("choices", []):
                    text, finish = choice["text"], choice["finish_reason"] or finish
                if usage := event.get("usage"):
                    done = usage["completion_tokens"]
                    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                if text:
                    yield Piece(text=text, prompt_tokens=len(prompt), completion_tokens=done)
                    text = ""
        except (OSError, EOFError) as error:
            raise UnavailableError(
                "vllm has stopped; the server ends, to be started again"
            ) from error
        if finish is None:
            raise UnavailableError("vllm ended an answer before its end")
        yield Piece(
            text="", prompt_tokens=len(prompt), completion_tokens=done, cached_tokens=cached,
            finish=_finish(finish),
        )  # fmt: skip

    def close(self) -> None:
        """End vLLM's processes and remove its socket and log."""
        self._closing = True
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()  # what vllm_child.py waits for
            self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def _start(self, words: list[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with (self._home / "log").open("wb") as log:
            return subprocess.Popen(  # noqa: S603  the command below, in the Python that was named
                [sys.executable, str(_CHILD), *words],
                env={**env, **_ALONE}, stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip

    def _wait(self, process: "subprocess.Popen[bytes]", folder: Path) -> None:
        """Return when it answers."""
        deadline = time.monotonic() + _LOADING_S
        while not answers(self._home / "socket"):
            if process.poll() is not None:
                raise WeightsError(f"{folder}: vllm cannot serve it: {_why(self._home / 'log')}")
            if time.monotonic() > deadline:
                raise WeightsError(f"{folder}: vllm was not ready after {_LOADING_S:.0f} s")
            time.sleep(0.2)

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Let the server go, too, when vLLM ends by itself: whoever started it starts it again."""
        process.wait()
        if not self._closing:
            _LOG.error("vllm has ended with %s: %s", process.returncode, _why(self._home / "log"))
            os.kill(os.getpid(), signal.SIGTERM)


def command(
    python: str, folder: Path, address: Path, *, slots: int, context: int, dtype: str,
    kv_bytes: int, options: str = "",
) -> list[str]:  # fmt: skip
    """Return what starts vLLM's server on a Unix socket.

    Without compilation, which takes minutes and a compiler; `options` may say otherwise: they come
    last. https://docs.vllm.ai/en/latest/cli/serve.html
    """
    return [
        *(python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(folder), "--served-model-name", "model", "--uds", str(address)),
        *("--dtype", dtype, "--max-model-len", str(context), "--max-num-seqs", str(slots)),
        *("--kv-cache-memory-bytes", str(kv_bytes), "--enforce-eager"),
        *("--generation-config", "vllm"),  # no sampling that nobody asked for
        *("--enable-prompt-tokens-details", "--disable-log-stats"),
        "--disable-uvicorn-access-log",
        *shlex.split(options),
    ]


def _read(folder: Path) -> Architecture:
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"{folder}: has no config.json; vllm reads safetensors, which `python -m "
            f"model_code.common.convert FILE.gguf FOLDER` makes of a GGUF file"
        )
    try:
        return read(folder)
    except ModelError as error:
        raise WeightsError(str(error)) from error


def _python(env: Mapping[str, str]) -> str:
    """Return the Python that has vLLM."""
    python = env.get("ISOMORPH_VLLM_PYTHON") or sys.executable
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        found = subprocess.run([python, "-c", look], capture_output=True).returncode == 0  # noqa: S603
    except OSError:
        found = False
    if not found:
        raise SettingsError(
            f"ISOMORPH_VLLM_PYTHON is {python!r}, which has no vllm; `make vllm` makes a Python "
            f"that has it"
        )
    return python


def _body(
    request: Generation, prompt: list[int], room: int, ends: list[int]
) -> dict[str, Any]:  # fmt: skip
    return {
        "model": "model",
        "prompt": prompt,
        "max_tokens": room if request.max_tokens is None else min(room, request.max_tokens),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k or -1,  # its word for all
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "seed": request.seed,
        "stop_token_ids": ends,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


def _finish(reason: str) -> Finish:
    if reason not in ("stop", "length"):
        raise RuntimeError(f"vllm: finished because of {reason!r}")
    return "stop" if reason == "stop" else "length"


def _why(log: Path) -> str:
    """Return the last line that names an error."""
    said = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1][:300]
