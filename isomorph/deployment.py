"""Bringing an innovation up: wheels, weights, the CDK CLI."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from botocore.exceptions import BotoCoreError, ClientError

from config import EnvironmentConfig, Override
from isomorph import cdk, function_libraries, output, wheelhouse
from isomorph.environments import Environment, slug_of
from isomorph.errors import UserError
from isomorph.fleets import wait_until_served
from isomorph.paths import state
from model_code.common import weights
from model_code.common.errors import WeightsError
from stacks.innovation import weights_parameter
from stacks.moe import MoeSettings
from stacks.moe_training_settings import MoeTrainingSettings, engine_of
from stacks.settings import environments, selected
from stacks.wheelhouse import FOLDER, TRAIN, function_libraries_name, wheelhouse_name


@runtime_checkable
class OnNodes(Protocol):
    """Settings of an innovation whose code runs on machines that install a wheelhouse."""

    engine: str
    python: str


class OfFunction(Protocol):
    """Settings of a Lambda function."""

    python: str
    processor: str


@runtime_checkable
class WithFunction(Protocol):
    """Settings of an innovation that has a Lambda function."""

    function: OfFunction


def deploy(
    environment: Environment,
    stack: str,
    *,
    assembly: Path | None = None,
    context: Mapping[str, str] | None = None,
) -> None:
    """Deploy one stack of an environment with the CDK CLI, and what it needs."""
    alone = {} if stack == "foundation" else {"slugs": slug_of(stack)}
    cdk.deploy(
        [f"{environment.name}/{stack}"],
        assembly=assembly,
        context={"env": environment.name, **alone, **(context or {})},
        environment=environment.variables,
        log=state() / "cdk.log",
    )


def ensure_wheelhouses(
    config: EnvironmentConfig, slugs: Collection[str] | None = None
) -> list[Path]:
    """Return what fleets and functions install, of all or of some; build what is missing."""
    paths = []
    for innovation, settings in selected(config):
        slug = innovation.slug
        if slugs is not None and slug not in slugs:
            continue
        if isinstance(settings, WithFunction):
            paths.append(_ensure_function_libraries(slug, settings.function))
        if isinstance(settings, MoeSettings) and settings.training:
            paths += _ensure_training_wheels(slug, settings.training)
        if isinstance(settings, MoeSettings) and settings.serving:
            wanted = sorted(settings.serving.wheels())
            paths += [_ensure_wheels(slug, python, engine) for python, engine in wanted]
        if isinstance(settings, OnNodes):
            paths.append(_ensure_wheels(slug, settings.python, settings.engine))
    return paths


def _ensure_wheels(slug: str, python: str, engine: str) -> Path:
    path = FOLDER / wheelhouse_name(slug, python, engine)
    if not path.is_file():
        with output.step(f"download the wheels of {slug} for {engine}, Python {python}") as notes:
            wheelhouse.build(slug, engine=engine, python=python, path=path)
            notes.append(f"{path.stat().st_size / 2**20:.0f} MiB")
    return path


def _ensure_training_wheels(slug: str, training: MoeTrainingSettings) -> list[Path]:
    engine, python = engine_of(training), training.python
    if engine is None:
        return []
    path = FOLDER / wheelhouse_name(slug, python, engine, TRAIN)
    if not path.is_file():
        what = f"download the wheels that {slug} trains with, for {engine}, Python {python}"
        with output.step(what) as notes:
            wheelhouse.build(slug, engine=engine, python=python, path=path, target=TRAIN)
            notes.append(f"{path.stat().st_size / 2**20:.0f} MiB")
    return [path]


def _ensure_function_libraries(slug: str, function: OfFunction) -> Path:
    python, architecture = function.python, function.processor
    path = FOLDER / function_libraries_name(slug, python, architecture)
    if not path.is_file():
        what = f"download the libraries of {slug}'s function, Python {python}, {architecture}"
        with output.step(what) as notes:
            function_libraries.build(slug, python=python, architecture=architecture, path=path)
            notes.append(f"{path.stat().st_size / 2**20:.0f} MiB")
    return path


def push_weights(environment: Environment, slug: str, folder: Path) -> str:
    """Put a folder of weights into the model bucket and point the fleet at them.

    Raises:
        UserError: the foundation is not deployed, it keeps no weights for `slug`, the folder
            holds nothing, or the upload failed; the pointer moves last, so that it never
            names what is not there.
    """
    bucket = environment.outputs("foundation")["ModelBucket"]
    ssm, name = environment.client("ssm"), weights_parameter(environment.name, slug)
    try:
        ssm.get_parameter(Name=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "ParameterNotFound":
            raise UserError(f"AWS refused to read {name}: {error}") from None
        raise UserError(
            f"{environment.name} keeps no weights for {slug!r}: innovations.{slug} is not on in "
            f"config/{environment.name}.yaml, or the foundation was deployed without it"
        ) from None
    try:
        pushed = weights.push(folder, environment.client("s3"), bucket, slug)
        ssm.put_parameter(Name=name, Value=pushed, Type="String", Overwrite=True)
    except WeightsError as error:
        raise UserError(str(error)) from None
    except (ClientError, BotoCoreError) as error:
        raise UserError(f"the weights could not be pushed: {error}") from None
    return pushed


def ensure_engine(environment: Environment, slug: str, engine: str) -> None:
    """See to it that a deployed fleet serves with `engine`; in the embedded AWS, deploy that.

    The code asset stays the same: the engine is a line of the machine's settings, and a
    wheelhouse that has what it needs.

    Raises:
        UserError: the fleet is in an account and serves with another engine.
    """
    serves = environment.outputs(slug).get("Engine")
    if serves == engine:
        return
    if not environment.embedded:
        raise UserError(
            f"{environment.stack(slug)} serves with {serves}; to change that, set "
            f"innovations.{slug}.engine: {engine} in config/{environment.name}.yaml and deploy"
        )
    [config] = environments(environment.name, (Override(slug, "engine", engine),))
    ensure_wheelhouses(config, [slug])
    with output.step(f"deploy {environment.name}/{slug} with the engine {engine}"):
        deploy(environment, slug, context={f"{slug}.engine": engine})
    with output.step(f"wait for {environment.name}/{slug}"):
        wait_until_served(environment, slug)
