"""`isomorph compile`: graphs of a model for an accelerator."""

from pathlib import Path

import click

from isomorph import output
from isomorph.errors import UserError

_SLUGS = ("moe",)


@click.command(name="compile")
@click.argument("slug")
@click.option(
    "--model", default="tiny-moe", show_default=True, help="A sample, trained if need be."
)
@click.option("--weights", type=click.Path(path_type=Path), help="A model's folder instead.")
@click.option("--out", type=click.Path(path_type=Path), help="Left out, neuron/ in the folder.")
@click.option("--slots", default=8, show_default=True, type=click.IntRange(1, 256))
@click.option("--context", default=2048, show_default=True, type=click.IntRange(16))
@click.option(
    "--dtype", default="auto", show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16"]),
)  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def compile_(
    slug: str, model: str, weights: Path | None, out: Path | None, slots: int, context: int,
    dtype: str, json_: bool,
) -> None:  # fmt: skip
    """Compile the model of SLUG for Neuron, where there is a Neuron device; else check its form."""
    from isomorph import samples
    from model_code.common.errors import UserError as ModelCodeError

    if slug not in _SLUGS:
        raise UserError(f"{slug!r} has nothing to compile; allowed: {', '.join(_SLUGS)}")
    folder = weights or samples.fetch(model)[0]
    from model_code.moe.static.compile import compile_model

    try:
        with output.step(f"compile {slug}"):
            made = compile_model(folder, out, slots=slots, context=context, dtype=dtype)
    except ModelCodeError as error:
        raise UserError(str(error)) from error
    if json_:
        output.as_json(
            {
                "compiled": made.folder and str(made.folder),
                "graphs": [each.name for each in made.buckets],
                "largest_difference": made.worst,
            }
        )
    else:
        click.echo(made.says)
