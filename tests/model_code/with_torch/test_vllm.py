"""vLLM as an engine, for real: its build for CPUs serves SmolLM2 beside our own engine."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from model_code.common.convert import convert
from model_code.common.engine import (
    Engine,
    Generation,
    Piece,
    PromptTooLongError,
    UnavailableError,
    load_engine,
)  # fmt: skip
from model_code.common.engine import vllm as module
from model_code.common.engine.vllm import VllmEngine
from model_code.common.engine.vllm_http import complete
from model_code.common.errors import SettingsError, WeightsError
from model_code.common.gguf_model import find_gguf
from model_code.common.tokenizer import FolderTokenizer

pytestmark = [pytest.mark.torch, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".isomorph/cache/vllm/bin/python"  # `make vllm`
CHILD = ROOT / "model_code/common/engine/vllm_child.py"
SIZES = {"slots": 2, "context": 256, "dtype": "float32"}


async def ask(engine: Engine, prompt: str, **given: object) -> tuple[str, list[Piece]]:
    request = Generation(prompt=prompt, **{"temperature": 0, "max_tokens": 24, **given})  # type: ignore[arg-type]
    pieces = [piece async for piece in engine.generate(request)]
    return "".join(piece.text for piece in pieces), pieces


@pytest.fixture(scope="module")
def folder(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "folder"
    convert(find_gguf(weights), folder, dtype="bfloat16")
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    env = {**os.environ, "ISOMORPH_VLLM_PYTHON": str(PYTHON), "OMP_NUM_THREADS": "1"}
    engine = VllmEngine(folder, **SIZES, env=env)  # type: ignore[arg-type]
    yield engine
    engine.close()


@pytest.mark.timeout(600)
def test_its_text_is_that_of_our_engine(engine: VllmEngine, folder: Path) -> None:
    native = load_engine("native", folder, **SIZES)  # type: ignore[arg-type]
    prompt = "The capital of France is"
    try:
        ours, our_pieces = asyncio.run(ask(native, prompt))
        theirs, pieces = asyncio.run(ask(engine, prompt))
    finally:
        native.close()
    assert "Paris" in ours
    assert theirs == ours
    last = pieces[-1]
    assert (last.finish, last.completion_tokens) == ("length", 24)
    assert last.prompt_tokens == our_pieces[-1].prompt_tokens
    assert len(pieces) > 12  # it came bit by bit
    assert engine.kv_bytes_per_token == native.kv_bytes_per_token


def test_requests_run_together_and_end_where_the_model_ends(engine: VllmEngine) -> None:
    chat = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"

    async def both() -> list[tuple[str, list[Piece]]]:
        return await asyncio.gather(
            ask(engine, chat, max_tokens=60), ask(engine, "1 2 3 4", temperature=0.7, seed=7),
            ask(engine, "1 2 3 4", temperature=0.7, seed=7),
        )  # fmt: skip

    hello, *numbers = asyncio.run(both())
    assert hello[1][-1].finish == "stop"
    assert "<|im_end|>" not in hello[0]
    assert numbers[0][0] == numbers[1][0] != ""


def test_a_prompt_that_was_read_before_is_not_read_again(engine: VllmEngine) -> None:
    prompt = "All work and no play makes Jack a dull boy. " * 15
    found = [asyncio.run(ask(engine, prompt, max_tokens=1))[1][-1].cached_tokens for _ in range(2)]
    assert found == [0, 128]


def test_a_prompt_beyond_the_context_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(PromptTooLongError, match="takes at most 255"):
        asyncio.run(ask(engine, "one " * 300))


def test_who_goes_away_gives_the_slot_back(engine: VllmEngine) -> None:
    async def leave() -> None:
        for _ in range(4):  # more than there are slots
            answer = engine.generate(Generation(prompt="Once", temperature=0))
            await anext(answer)
            await answer.aclose()

    asyncio.run(leave())
    start = time.monotonic()
    assert asyncio.run(ask(engine, "The capital of France is", max_tokens=2))[0].strip()
    assert time.monotonic() - start < 20


def test_what_vllm_refuses_is_an_error_and_not_an_empty_answer(engine: VllmEngine) -> None:
    with pytest.raises(RuntimeError, match=r"vllm: 400: .*min_p"):
        asyncio.run(ask(engine, "Hello", min_p=7.0))


def test_when_vllm_dies_requests_fail_and_the_server_is_told(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, with something that answers as vLLM does and then dies."""
    (python := tmp_path / "python").write_text(
        f'#!/bin/sh\nexec {sys.executable} {tmp_path}/v "$@"'
    )
    python.chmod(0o755)
    (tmp_path / "v").write_text(
        "import socketserver, sys, os\n"
        "if '-c' in sys.argv: sys.exit(0)\n"
        "class H(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        if b'health' not in self.rfile.readline():\n"
        "            print('RuntimeError: out of memory', flush=True); os._exit(3)\n"
        "        self.wfile.write(b'HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n')\n"
        "path = sys.argv[sys.argv.index('--uds') + 1]\n"
        "socketserver.ThreadingUnixStreamServer(path, H).serve_forever()\n"
    )
    program = (
        "import asyncio, os, signal, sys, threading\n"
        "from pathlib import Path\n"
        "from model_code.common.engine import Generation, UnavailableError\n"
        "from model_code.common.engine.vllm import VllmEngine\n"
        "told = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('told', flush=True), told.set()))\n"
        "async def main():\n"
        "    engine = VllmEngine(Path(sys.argv[1]), slots=2, context=256, dtype='float32')\n"
        "    try: [piece async for piece in engine.generate(Generation(prompt='Hi'))]\n"
        "    except UnavailableError as error: print(error, flush=True)\n"
        "def start():\n"
        "    asyncio.run(main())\n"
        "asking = threading.Thread(target=start, daemon=True)\n"
        "asking.start(); asking.join(60); told.wait(60); os._exit(0)\n"  # whichever is first
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
        env={**os.environ, "ISOMORPH_VLLM_PYTHON": str(python)},
    )  # fmt: skip
    assert "vllm has ended with 3: RuntimeError: out of memory" in done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "told", "vllm has stopped; the server ends, to be started again",
    ]  # fmt: skip


def test_all_of_it_goes_with_who_started_it(tmp_path: Path) -> None:
    grandchild = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    server = subprocess.Popen(
        [sys.executable, "-c",
         "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()",
         sys.executable, str(CHILD), sys.executable, "-c", command],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    last = int(server.stdout.readline())
    os.kill(last, 0)
    server.send_signal(signal.SIGKILL)
    server.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(last, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the grandchild is still there")


def test_the_child_ends_with_the_code_of_its_command() -> None:
    told = "os.kill(os.getpid(), 15)"  # which the child itself does not heed
    for said, expected in (("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137), (told, 143)):
        command = [sys.executable, str(CHILD), sys.executable, "-c", f"import os, sys; {said}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert process.wait(30) == expected


def test_a_python_without_vllm_is_named(folder: Path) -> None:
    for python in (sys.executable, "/no/such/python"):
        with pytest.raises(SettingsError, match=f"ISOMORPH_VLLM_PYTHON is '{python}', which has "
                           "no vllm; `make vllm` makes a Python that has it"):  # fmt: skip
            VllmEngine(folder, **SIZES, env={"ISOMORPH_VLLM_PYTHON": python})  # type: ignore[arg-type]


def test_weights_and_settings_that_are_not_for_it(folder: Path, weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no config.json; vllm reads safetensors, which "
                       r"`python -m model_code.common.convert FILE.gguf FOLDER`"):  # fmt: skip
        VllmEngine(weights, **SIZES)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"ISOMORPH_QUANTIZATION is 'int8'; .* must be none"):
        VllmEngine(folder, **SIZES, quantization="int8")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="ISOMORPH_CONTEXT is 9000"):
        VllmEngine(folder, slots=2, context=9000, dtype="float32")


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard"}')
    with pytest.raises(WeightsError, match="model_type is 'unheard'"):
        VllmEngine(tmp_path, **SIZES)  # type: ignore[arg-type]


def test_what_vllm_says_when_it_cannot_start_is_passed_on(folder: Path, tmp_path: Path) -> None:
    (python := tmp_path / "python").write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exit 0\n'
        "for last; do :; done\n"
        'echo "api_server.py: error: unrecognized arguments: $last"; echo; exit 2\n'
    )
    python.chmod(0o755)
    env = {
        **os.environ, "ISOMORPH_VLLM_PYTHON": str(python),
        "ISOMORPH_VLLM_OPTIONS": "--swap '--non sense'",
    }  # fmt: skip
    with pytest.raises(WeightsError, match=r"cannot serve it: .*unrecognized .*: --non sense$"):
        VllmEngine(folder, **SIZES, env=env)  # type: ignore[arg-type]


def test_it_is_given_up_after_a_while(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (python := tmp_path / "python").write_text('#!/bin/sh\n[ "$1" = -c ] || exec sleep 100\n')
    python.chmod(0o755)
    monkeypatch.setattr(module, "_LOADING_S", 1.0)
    with pytest.raises(WeightsError, match="vllm was not ready after 1 s"):
        VllmEngine(folder, **SIZES, env={**os.environ, "ISOMORPH_VLLM_PYTHON": str(python)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "expected", "message"),
    [
        (b"", EOFError, None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ndata", EOFError, None),
        (b"what?\r\n\r\n", EOFError, None),
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", RuntimeError, "^vllm: 500$"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": "bad"}\n', RuntimeError, "^vllm: bad$"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 << 20), RuntimeError, "more than a megabyte"),
    ],
)
def test_answers_that_are_none(
    tmp_path: Path, said: bytes, expected: type[Exception], message: str | None
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"{}")
            writer.write(said)
            await writer.drain()
            writer.close()

    async def main() -> None:
        async with await asyncio.start_unix_server(serve, str(tmp_path / "socket")):
            async for _ in complete(tmp_path / "socket", {}):
                pass

    with pytest.raises(expected, match=message):
        asyncio.run(main())


def test_an_answer_without_an_end_is_an_error(folder: Path, tmp_path: Path) -> None:
    engine = VllmEngine.__new__(VllmEngine)  # asks, without a vLLM behind it
    engine.context, engine._home = 256, tmp_path
    engine._tokenizer = FolderTokenizer(folder, 49152)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}}")
        event = {"choices": [{"text": "Hi", "finish_reason": finish}]}
        writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata: " + json.dumps(event).encode() + b"\n")
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_unix_server(serve, str(tmp_path / "socket")):
            await ask(engine, "Hello")

    finish: str | None = None
    with pytest.raises(UnavailableError, match="vllm ended an answer before its end"):
        asyncio.run(main())
    finish = "abort"
    with pytest.raises(RuntimeError, match="vllm: finished because of 'abort'"):
        asyncio.run(main())
