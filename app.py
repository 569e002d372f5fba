"""Entry point of `cdk`. Synthesizes every environment, or the one named by `-c env=NAME`.

`-c slugs=gqa,mla` leaves out the other innovations of its file, with what they would have to have
built. `-c SLUG.KEY=VALUE`, such as `-c gqa.engine=native`, replaces one setting of the files.
"""

import gc
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # it takes a fifth of a process's time that ends with what it made
    # Node.js, too, collects and compiles with four threads that get in each other's way: with one,
    # `time npx cdk synth -q` takes a tenth less time on two cores, and a fifth less of the CPU's.
    os.environ["NODE_OPTIONS"] = f"--v8-pool-size=1 {os.environ.get('NODE_OPTIONS', '')}".strip()

import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks

from config import ConfigError, EnvironmentConfig, Override, hyperpod_instance_types
from constructs_lib.rules import RULES, RulesPlugin, cluster_types
from stacks.map_data import INNOVATIONS
from stacks.settings import environments
from stacks.stage import ToolkitStage
from stacks.wheelhouse import FOLDER


def build(context: Mapping[str, Any] | None = None, wheelhouses: Path = FOLDER) -> cdk.App:
    """Return the app, with security checks that fail `cdk synth`.

    Args:
        context: What `-c` would give. Left out, what the CDK CLI gives counts alone.
        wheelhouses: Folder of the built wheels.
    """
    app = cdk.App(context=context)
    context = app.node.get_all_context()
    only, overrides = read_context(context)
    for environment in environments(only, overrides):
        ToolkitStage(app, _with(environment, context.get("slugs")), wheelhouses=wheelhouses)
    types = cluster_types.rule(hyperpod_instance_types())
    cdk.Validations.of(app).add_plugins(
        AwsSolutionsChecks(app, verbose=True), RulesPlugin((*RULES, types))
    )
    return app


def _with(environment: EnvironmentConfig, slugs: str | None) -> EnvironmentConfig:
    """Return the environment with these of its innovations, which may be none, or with all."""
    if slugs is None:
        return environment
    on, wanted = environment.innovations, [slug for slug in slugs.split(",") if slug]
    for slug in wanted:
        if slug not in on:
            raise ConfigError(
                f"-c slugs={slugs}: config/{environment.name}.yaml turns on no {slug!r}; "
                f"allowed: {', '.join(on)}"
            )
    kept = {slug: section for slug, section in on.items() if slug in wanted}
    return environment.model_copy(update={"innovations": kept})


def read_context(context: Mapping[str, Any]) -> tuple[str | None, tuple[Override, ...]]:
    """Return the environment's name and the overrides; refuse what would otherwise be ignored."""
    overrides = []
    for name, value in context.items():
        slug, dot, key = name.partition(".")
        if dot and re.fullmatch(r"[a-z_]+\.[a-z_]+", name):
            known = [innovation.slug for innovation in INNOVATIONS]
            if slug not in known:
                raise ConfigError(
                    f"-c {name}={value}: no innovation {slug!r}; allowed: {', '.join(known)}"
                )
            overrides.append(Override(slug, key, str(value)))
        elif name not in ("env", "slugs") and re.fullmatch(r"[a-z_]+", name):
            raise ConfigError(
                f"-c {name}={value}: unknown; allowed: env=NAME, slugs=SLUG,SLUG, or "
                f"SLUG.KEY=VALUE such as gqa.engine=native"
            )
    only = context.get("env")
    return (None if only is None else str(only)), tuple(overrides)


if __name__ == "__main__":
    try:
        build().synth()
    except ConfigError as error:
        raise SystemExit("\n".join(f"error: {line}" for line in str(error).splitlines())) from None
