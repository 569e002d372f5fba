"""`isomorph run`: ask a deployed innovation."""

import click

from isomorph import output
from isomorph.ask_halves import ask_halves, experts_that_worked, serving_stack
from isomorph.environments import load


@click.command()
@click.argument("slug")
@click.argument("prompt")
@click.option("--env", "name", default="local", show_default=True, help="The environment.")
@click.option("--engine", help="Serve with this engine; deploys it first where that is needed.")
@click.option("--max-tokens", default=32, show_default=True, type=click.IntRange(1))
@click.option("--chat", is_flag=True, help="As a conversation instead of a completion.")
@click.option(
    "--on",
    "where",
    type=click.Choice(["fleet", "function", "endpoint", "pools", "all"]),
    default="all",
    show_default=True,
    help="Which half of it to ask, where it has two.",
)
@click.option("--pool", help="Ask this pool, whatever the router of pools says.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def run(
    slug: str,
    prompt: str,
    name: str,
    engine: str | None,
    max_tokens: int,
    chat: bool,
    where: str,
    pool: str | None,
    json_: bool,
) -> None:
    """Ask the innovation SLUG to continue PROMPT."""
    environment = load(name)
    stack = serving_stack(environment, slug)
    if engine:
        from isomorph.deployment import ensure_engine

        ensure_engine(environment, stack, engine)
    answers = ask_halves(
        environment, stack, prompt, where=where, pool=pool, max_tokens=max_tokens, chat=chat
    )
    if json_:
        only = next(iter(answers.values())).as_dict()
        both = {half: answer.as_dict() for half, answer in answers.items()}
        output.as_json(both if len(both) > 1 else only)
        return
    for half, answer in answers.items():
        click.echo(answer.text if chat else prompt + answer.text)
        who = half if len(answers) > 1 else answer.engine
        output.say(
            f"({who}{f' {answer.pool}' if answer.pool else ''}, {answer.completion_tokens} tokens "
            f"in {answer.seconds:.2f} s, {answer.tokens_per_second:.0f} tokens/s)"
        )
        if answer.experts:
            output.say(experts_that_worked(answer.experts))
