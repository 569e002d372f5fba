import itertools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cdk_app import json_of, new_app
from tests.stacks import synthesis
from tests.stacks.synthesis import Synthesized

from config import EnvironmentConfig  # isort: skip
from stacks.stage import ToolkitStage  # isort: skip
from stacks.wheelhouse import function_libraries_name, wheelhouse_name  # isort: skip

CERTIFICATE = "arn:aws:acm:us-east-1:111122223333:certificate/00000000-0000-0000-0000-000000000000"
ENVIRONMENT: dict[str, Any] = {
    "name": "test",
    "aws": "account",
    "account": "111122223333",
    "region": "us-east-1",
    "availability_zones": ["us-east-1a", "us-east-1b", "us-east-1c"],
    "s3_prefix_list": "pl-63a5400a",
    "data": "disposable",
    "tags": {"team": "inference"},
    "budget": {"monthly_usd": 10, "email": "someone@example.com"},
}
GQA: dict[str, Any] = {"model": "tiny", "certificate_arn": CERTIFICATE}
MLA: dict[str, Any] = {"model": "deepseek-v3", "certificate_arn": CERTIFICATE}
WINDOW: dict[str, Any] = {"model": "gemma-3-270m", "certificate_arn": CERTIFICATE}
MOE_GROUPS: dict[str, Any] = {
    "controller": {"role": "controller", "instance_type": "ml.r7i.large"},
    "workers": {"role": "workers", "instance_type": "ml.r7i.xlarge", "count": 2},
}
MOE: dict[str, Any] = {"model": "tiny-moe", "training": {"groups": MOE_GROUPS}}
ENGINES = {
    "gqa": ("llama.cpp", "native"),
    "mla": ("native",),
    "moe": ("native",),
    "sliding_window": ("llama.cpp", "native"),
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheelhouses with the right names and hardly anything in them."""
    folder = tmp_path_factory.mktemp("wheelhouses")
    for slug, engines in ENGINES.items():
        for python, engine in itertools.product(("host", "3.11"), engines):
            name = wheelhouse_name(slug, python, engine)
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr("wheel", name)
    for python, engine in (("host", "native"), ("3.11", "native"), ("3.12", "neuron")):
        with zipfile.ZipFile(folder / wheelhouse_name("moe", python, engine), "w") as archive:
            archive.writestr("wheel", f"moe {engine}")
    for python, engine in itertools.product(("host", "3.11", "3.12"), ("native", "image")):
        name = wheelhouse_name("moe", python, engine, "train")
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("wheel", name)
    for python in ("host", "3.12", "3.13", "3.14"):
        for architecture in ("x86_64", "arm64"):
            name = function_libraries_name("sliding_window", python, architecture)
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr("lib/libgomp.so.1", "")
    return folder


@pytest.fixture(scope="session")
def shipped(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Synthesized:
    """Every environment as it is shipped, through every gate. For tests with the mark `gates`."""
    synthesized = synthesis.synthesize(wheels, tmp_path_factory.mktemp("shipped") / "cdk.out")
    assert synthesized.done.returncode == 0, synthesized.done.stderr
    return synthesized


@pytest.fixture(scope="session")
def synthesize(wheels: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """Return a function from gqa's settings (None: off) and the environment's to templates."""

    def templates(
        gqa: dict[str, Any] | None, *, mla: dict[str, Any] | None = None, **changes: Any
    ) -> dict[str, dict[str, Any]]:
        on = {} if gqa is None else {"gqa": {**GQA, **gqa}}
        on |= {} if mla is None else {"mla": {**MLA, **mla}}
        environment = EnvironmentConfig(**{**ENVIRONMENT, "innovations": on, **changes})
        stage = ToolkitStage(new_app(), environment, wheelhouses=wheels)
        return {child.node.id: json_of(child) for child in stage.node.children}

    return templates


@pytest.fixture(scope="session")
def synthesize_window(wheels: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """Return a function from sliding_window's settings and its function's to templates."""

    def templates(
        settings: dict[str, Any], function: dict[str, Any] | None = None, **changes: Any
    ) -> dict[str, dict[str, Any]]:
        section = {**WINDOW, **settings, **({"function": function} if function else {})}
        on = {"sliding_window": section}
        environment = EnvironmentConfig(**{**ENVIRONMENT, "innovations": on, **changes})
        stage = ToolkitStage(new_app(), environment, wheelhouses=wheels)
        return {child.node.id: json_of(child) for child in stage.node.children}

    return templates


@pytest.fixture(scope="session")
def synthesize_serving(wheels: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """Return a function from moe.serving's settings and the environment's to templates."""

    def templates(
        serving: dict[str, Any], *, certificate_arn: str = CERTIFICATE, **changes: Any
    ) -> dict[str, dict[str, Any]]:
        section = {"model": "tiny-moe", "serving": {"certificate_arn": certificate_arn, **serving}}
        environment = EnvironmentConfig(
            **{**ENVIRONMENT, "innovations": {"moe": section}, **changes}
        )
        stage = ToolkitStage(new_app(), environment, wheelhouses=wheels)
        return {child.node.id: json_of(child) for child in stage.node.children}

    return templates


@pytest.fixture(scope="session")
def templates(synthesize: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """The templates of an environment with everything on and nothing unusual."""
    return dict(synthesize({"max_capacity": 2}, mla={}))


@pytest.fixture(scope="session")
def synthesize_training(wheels: Path) -> Callable[..., dict[str, Any]]:
    """Return a function from settings of moe.training, and the environment's, to its template."""

    def template(training: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        on = {"moe": {**MOE, "training": {**MOE["training"], **(training or {})}}}
        environment = EnvironmentConfig(**{**ENVIRONMENT, "innovations": on, **changes})
        stage = ToolkitStage(new_app(), environment, wheelhouses=wheels)
        return json_of(stage.node.find_child("moe-training"))

    return template
