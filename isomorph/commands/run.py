"""`isomorph run`: ask a deployed innovation."""

import click

from isomorph import output
from isomorph.ask import ask
from isomorph.environments import load


@click.command()
@click.argument("slug")
@click.argument("prompt")
@click.option("--env", "name", default="local", show_default=True, help="The environment.")
@click.option("--engine", help="Serve with this engine; deploys it first where that is needed.")
@click.option("--max-tokens", default=32, show_default=True, type=click.IntRange(1))
@click.option("--chat", is_flag=True, help="As a conversation instead of a completion.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def run(
    slug: str, prompt: str, name: str, engine: str | None, max_tokens: int, chat: bool, json_: bool
) -> None:
    """Ask the innovation SLUG to continue PROMPT."""
    environment = load(name)
    if engine:
        from isomorph.deployment import ensure_engine

        ensure_engine(environment, slug, engine)
    answer = ask(environment, slug, prompt, max_tokens=max_tokens, chat=chat)
    if json_:
        output.as_json(answer.as_dict())
        return
    click.echo(answer.text if chat else prompt + answer.text)
    output.say(
        f"({answer.engine}, {answer.completion_tokens} tokens in {answer.seconds:.2f} s, "
        f"{answer.tokens_per_second:.0f} tokens/s)"
    )
