"""How a function starts and what it ships: beside torch, llama.cpp alone, and onnxruntime.

onnxruntime has no Gemma 3 to run: onnxruntime-genai's builder fails on it. What can be compared is
what it ships, and the time until a session with a graph of one node is there, without weights.
"""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import gemma
from bench.apart import NotInstallableError, install
from bench.row import Row, interleaved
from isomorph.errors import UserError
from model_code.common.gguf_model import find_gguf
from stacks.wheelhouse import FOLDER, function_libraries_name

_ROOT = Path(__file__).parents[1]
_MIB = 2**20
_ONNX = ("onnxruntime==1.31.1", "onnx==1.22.0")  # onnx only writes the graph of one node
_FIRST = """
import asyncio
from model_code.common.engine import Generation
async def first():
    async for piece in engine.generate(Generation(prompt="The capital of", temperature=0,
                                                  max_tokens=1)):
        if piece.completion_tokens:
            return
asyncio.run(first())
import os
os._exit(0)
"""
# From a process's start to its first token of Gemma.
_TO_FIRST_TOKEN = {
    "ours": """
from pathlib import Path
from model_code.common.engine.llama_cpp import LlamaCppEngine as E
engine = E(Path({folder!r}), slots=1, context=2048)
""" + _FIRST,
    "torch": """
from pathlib import Path
from model_code.common.engine.native import NativeEngine as E
engine = E.load(Path({folder!r}), slots=1, context=2048, dtype="bfloat16")
""" + _FIRST,
    "llama.cpp": """
import os, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = {file!r}, 2048, 1
params.fit_params, params.cache_ram_mib, params.verbosity, params.ui = False, 0, -1, False
server = xllamacpp.Server(params)
body = {{"prompt": "The capital of", "temperature": 0, "max_tokens": 1, "stream": True}}
server.handle_completions(body, lambda chunk: False)
os._exit(0)
""",
}  # fmt: skip
# From a process's start to a runtime that could load something, without weights.
_TO_RUNTIME = {
    "ours": "import model_code.common.engine.llama_cpp",
    "torch": "import model_code.common.engine.native",
    "onnxruntime": """
import sys
sys.path.insert(0, {runtime!r})
import onnxruntime
onnxruntime.InferenceSession({graph!r}, providers=["CPUExecutionProvider"])
""",
}


def rows() -> Iterator[Row]:
    """From a process's start to the first token of Gemma 3 270M, and what must be shipped."""
    folder = gemma.folder()
    took = _run(_TO_FIRST_TOKEN, {"folder": str(folder), "file": str(find_gguf(folder))})
    ours = f"{took['ours']:.2f} s (llama.cpp, Q4_K_M mapped)"
    for name, peer, target in (
        ("torch", "our decoder on torch, bfloat16", 1.0),
        ("llama.cpp", "llama.cpp without our engine around it", 0.9),
    ):
        yield Row(
            name=f"process to first token, {gemma.NAME}", ours=ours,
            peer=f"{peer}: {took[name]:.2f} s", ratio=took[name] / took["ours"], target=target,
        )  # fmt: skip
    yield Row(
        name=f"process to first token, {gemma.NAME}",
        ours=ours,
        peer="limit: 3 s to load and 1 s to the first token",
        ratio=4 / took["ours"],
        target=1.0,
    )
    with TemporaryDirectory() as scratch:
        runtime, graph = _onnxruntime(Path(scratch))
        took = _run(_TO_RUNTIME, {"runtime": str(runtime), "graph": str(graph)})
        for name, peer in (("torch", "torch"), ("onnxruntime", "onnxruntime, one node's session")):
            yield Row(
                name="process to a runtime without weights", ours=f"{took['ours']:.2f} s",
                peer=f"{peer}: {took[name]:.2f} s", ratio=took[name] / took["ours"], target=1.0,
            )  # fmt: skip
        yield from _packages(_size_of(runtime))


def _run(scripts: dict[str, str], values: dict[str, str]) -> dict[str, float]:
    """Return seconds from start to end of a process with each script."""

    def start(script: str) -> None:
        command = [sys.executable, "-c", script.format(**values)]
        subprocess.run(command, check=True, cwd=_ROOT, capture_output=True)

    return interleaved({name: partial(start, script) for name, script in scripts.items()}, rounds=3)


def _onnxruntime(scratch: Path) -> tuple[Path, Path]:
    """Install onnxruntime apart from everything else, and write a graph of one node for it."""
    runtime, writer, graph = scratch / "runtime", scratch / "writer", scratch / "one-node.onnx"
    for folder, package in ((runtime, _ONNX[0]), (writer, _ONNX[1])):
        try:
            install(package, folder)
        except NotInstallableError as error:
            raise UserError(f"nothing to measure beside: {error}") from error
    script = f"""
import sys
sys.path.insert(0, {str(writer)!r})
from onnx import TensorProto, helper, save
a, b = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab")
graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "one", [a], [b])
opset = helper.make_opsetid("", 21)
save(helper.make_model(graph, opset_imports=[opset], ir_version=10), {str(graph)!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    return runtime, graph


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _packages(onnxruntime: int) -> Iterator[Row]:
    path = FOLDER / function_libraries_name("sliding_window", "host", "x86_64")
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}: run `isomorph wheelhouses`")
    with zipfile.ZipFile(path) as archive:
        ours = sum(entry.file_size for entry in archive.infolist())
    for peer, size, target in (
        ("torch, numpy, tokenizers, gguf", _installed("torch", "numpy", "tokenizers", "gguf"), 1.0),
        ("onnxruntime and what it needs, which alone can run no Gemma 3", onnxruntime, 1.0),
        ("llama.cpp alone (xllamacpp), without boto3 and OpenMP", _installed("xllamacpp"), 0.5),
    ):
        yield Row(
            name="libraries of the function, unzipped (Lambda's limit: 250 MiB)",
            ours=f"{ours / _MIB:,.1f} MiB", peer=f"{peer}: {size / _MIB:,.1f} MiB",
            ratio=size / ours, target=target,
        )  # fmt: skip


def _installed(*names: str) -> int:
    """Return the bytes of packages as pip installed them here, links to other packages aside."""
    return sum(file.size or 0 for name in names for file in metadata.files(name) or [])
