"""`isomorph run`: ask a deployed innovation."""

import click

from isomorph import output
from isomorph.ask import ask
from isomorph.ask_function import ask_function
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
    type=click.Choice(["fleet", "function", "all"]),
    default="all",
    show_default=True,
    help="Which half of it to ask, where it has two.",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def run(
    slug: str,
    prompt: str,
    name: str,
    engine: str | None,
    max_tokens: int,
    chat: bool,
    where: str,
    json_: bool,
) -> None:
    """Ask the innovation SLUG to continue PROMPT."""
    environment = load(name)
    if engine:
        from isomorph.deployment import ensure_engine

        ensure_engine(environment, slug, engine)
    answers = {}
    if where in ("fleet", "all"):
        answers["fleet"] = ask(environment, slug, prompt, max_tokens=max_tokens, chat=chat)
    has_function = "FunctionUrl" in environment.outputs(slug)
    if where == "function" or (where == "all" and has_function):
        answers["function"] = ask_function(
            environment, slug, prompt, max_tokens=max_tokens, chat=chat
        )
    if json_:
        only = next(iter(answers.values())).as_dict()
        both = {half: answer.as_dict() for half, answer in answers.items()}
        output.as_json(both if len(both) > 1 else only)
        return
    for half, answer in answers.items():
        click.echo(answer.text if chat else prompt + answer.text)
        output.say(
            f"({half if len(answers) > 1 else answer.engine}, {answer.completion_tokens} tokens in "
            f"{answer.seconds:.2f} s, {answer.tokens_per_second:.0f} tokens/s)"
        )
