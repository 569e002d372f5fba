"""What a node's code imports is in what the node installs, for each engine that it may be told."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from tests.cdk_app import ROOT

from stacks.settings import SETTINGS  # isort: skip

FOLDER = ROOT / "model_code" / "common" / "engine"
ENGINES = {"llama.cpp": FOLDER / "llama_cpp.py", "native": FOLDER / "native.py"}
# Imported where a machine has it, and never by a server.
NOT_ON_NODES = {"transformers"}


def choices() -> Iterator[tuple[str, str]]:
    """Yield each innovation with a server, and each engine that its settings allow."""
    for path in sorted((ROOT / "model_code").glob("*/serve/requirements-native.in")):
        slug = path.parts[-3]
        settings = SETTINGS.get(slug)
        engine = settings.model_fields.get("engine") if settings else None
        for name in get_args(engine.annotation) if engine else ("native",):
            yield slug, name


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def libraries(start: list[Path], engine: str) -> set[str]:
    """Return the libraries that these files need, and every file of ours that they import."""
    found: set[str] = set()
    seen = {path for name, path in ENGINES.items() if name != engine}  # nobody imports the others
    seen.add(FOLDER / "vllm.py")  # nor this one: no fleet runs it
    waiting = [*start]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported(path):
            base = ROOT / name.replace(".", "/")
            if name.split(".")[0] != "model_code":
                found.add(name.split(".")[0])
            elif base.with_suffix(".py").is_file():
                waiting.append(base.with_suffix(".py"))
            elif (base / "__init__.py").is_file():
                waiting.append(base / "__init__.py")
    return found - sys.stdlib_module_names - NOT_ON_NODES


def installed(*lists: Path) -> set[str]:
    text = "\n".join(path.read_text() for path in lists)
    return {name.lower().replace("-", "_") for name in re.findall(r"^([\w.-]+)==", text, re.M)}


@pytest.mark.parametrize(("slug", "engine"), [*choices()])
def test_a_node_installs_what_its_code_imports(slug: str, engine: str) -> None:
    serve = ROOT / "model_code" / slug / "serve"
    needed = libraries([serve / "__main__.py", ENGINES[engine]], engine)
    assert {"xllamacpp" if engine == "llama.cpp" else "torch", "starlette"} <= needed
    lists = [serve / "requirements.txt"]
    if engine == "native":
        lists.append(serve / "requirements-native.in")
    assert needed <= installed(*lists)
