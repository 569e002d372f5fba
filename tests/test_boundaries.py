"""Who may import whom. A package that is not named here may import what it likes."""

import ast
import functools
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"app", "bench", "config", "constructs_lib", "isomorph", "local_aws", "model_code",
        "planner", "stacks", "tests"}  # fmt: skip

# What each of our packages may import of the others.
MAY_IMPORT = {
    "app.py": {"config", "constructs_lib", "stacks"},
    "stacks": {"config", "constructs_lib", "planner"},
    "constructs_lib": set(),
    "config": set(),
    "planner": {"model_code.common.architecture"},
    "model_code": set(),
    "local_aws": set(),
    "isomorph": {"app", "bench", "config", "constructs_lib", "local_aws", "model_code", "planner",
                 "stacks"},
}  # fmt: skip

# What a package must not import of others' libraries, wherever in its files.
MAY_NOT_IMPORT = {
    "constructs_lib": {"boto3", "botocore", "pydantic", "ruamel", "torch", "yaml"},
    "constructs_lib/functions": {"aws_cdk", "constructs", "pydantic", "ruamel", "torch", "yaml"},
    "stacks": {"boto3", "ruamel", "torch", "yaml"},
    "config": {"aws_cdk", "constructs", "torch"},
    "planner": {"aws_cdk", "boto3", "constructs", "torch"},
    "model_code": {"aws_cdk", "constructs"},
    "local_aws": {"aws_cdk", "constructs", "torch"},
}

# What must not happen when a module is imported; inside of a function it may.
NOT_AT_IMPORT = {"isomorph": {"aws_cdk", "constructs", "torch"}}


# Code that a construct sends to Lambda: it has the libraries of its runtime, and nothing of ours.
ELSEWHERE = {"constructs_lib": ROOT / "constructs_lib" / "functions"}


def files_of(package: str) -> list[Path]:
    """The package's files, without the code of Lambda functions that travels as an asset."""
    found = ROOT / package
    files = [found] if found.is_file() else sorted(found.rglob("*.py"))
    return [file for file in files if not file.is_relative_to(ELSEWHERE.get(package, ROOT / "-"))]


@functools.cache  # each file is asked about by most tests
def imported(path: Path, *, at_import: bool = False) -> set[str]:
    """Return the dotted names that a file imports; with at_import, those outside of functions."""
    found: set[str] = set()

    def look(node: ast.AST) -> None:
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
            base = [*(home if node.level else ()), *filter(None, [node.module])]
            found.update(".".join([*base, alias.name]) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            look(child)

    look(ast.parse(path.read_text()))
    return found


def below(name: str, allowed: set[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_our_packages_stay_apart(package):
    own = package.removesuffix(".py")
    for path in files_of(package):
        foreign = {
            name
            for name in imported(path)
            if name.split(".")[0] in OURS - {own} and not below(name, MAY_IMPORT[package])
        }
        assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


@pytest.mark.parametrize("package", MAY_NOT_IMPORT)
def test_a_package_does_without_libraries_that_are_not_its_business(package):
    for path in files_of(package):
        found = {name.split(".")[0] for name in imported(path)} & MAY_NOT_IMPORT[package]
        assert not found, f"{path.relative_to(ROOT)} imports {', '.join(sorted(found))}"


def test_functions_of_constructs_import_nothing_of_ours():
    for path in files_of("constructs_lib/functions"):
        assert not {name.split(".")[0] for name in imported(path)} & OURS


@pytest.mark.parametrize("package", NOT_AT_IMPORT)
def test_a_package_starts_without_what_is_slow(package):
    for path in files_of(package):
        at_import = imported(path, at_import=True)
        found = {name.split(".")[0] for name in at_import} & NOT_AT_IMPORT[package]
        assert not found, f"{path.relative_to(ROOT)} imports {', '.join(sorted(found))}"


def test_yaml_is_read_in_one_place_and_written_in_one():
    readers = {
        str(path.relative_to(ROOT))
        for package in MAY_IMPORT
        for path in files_of(package)
        if below_yaml(imported(path))
    }
    assert readers == {"config/loader.py", "planner/writing.py"}


def test_the_types_of_what_is_used_of_the_cdk_are_checked():
    """mypy skips the other services of the CDK, which would take it minutes to read."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    [read] = [each["module"] for each in settings if each.get("follow_imports") == "normal"]
    used = {
        ".".join(name.split(".")[:2])
        for package in MAY_IMPORT
        for path in files_of(package)
        for name in imported(path)
        if name.startswith("aws_cdk.aws_")
    }
    assert used == {name for name in read if name.startswith("aws_cdk.aws_")}


def test_the_types_of_what_is_used_of_other_libraries_are_checked():
    """mypy skips some of what they import themselves; these are skipped with reason."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    skipped = {
        pattern.removesuffix(".*")
        for each in settings
        if each.get("follow_imports") == "skip"
        for pattern in each["module"]
    } - {"aws_cdk", "moto", "transformers"}
    skipped.remove("torch._dynamo")  # imported early, and nothing of it used
    used = {
        name
        for package in (*MAY_IMPORT, "bench")
        for path in files_of(package)
        for name in imported(path)
    }
    assert skipped
    assert not {name for name in used if any(f"{name}.".startswith(f"{s}.") for s in skipped)}


def below_yaml(names: set[str]) -> bool:
    return bool({name.split(".")[0] for name in names} & {"ruamel", "yaml"})


def test_every_package_of_ours_has_a_rule():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders - {"tests", "bench"} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import a.b", {"a.b"}),
        ("from a import b", {"a.b"}),
        ("from . import b", {"stacks.b"}),
        ("from .c import b", {"stacks.c.b"}),
        ("def f():\n  import late", set()),
        ("class C:\n  import early", {"early"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import a",
         {"typing.TYPE_CHECKING"}),
    ],
)  # fmt: skip
def test_imports_are_found(tmp_path, monkeypatch, text, names):
    monkeypatch.setattr("tests.test_boundaries.ROOT", tmp_path)
    path = tmp_path / "stacks" / "module.py"
    path.parent.mkdir()
    path.write_text(text)
    assert imported(path, at_import=True) == names
