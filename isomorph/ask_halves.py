"""Asking an innovation whatever it has: a fleet, a function, pools, an endpoint."""

from collections.abc import Mapping
from typing import Any

from isomorph.ask import Answer, ask
from isomorph.ask_endpoint import OUTPUT, ask_endpoint
from isomorph.ask_function import ask_function
from isomorph.environments import Environment
from isomorph.errors import UserError


def serving_stack(environment: Environment, slug: str) -> str:
    """Return the stack of an innovation that answers, such as moe-serving of moe.

    Raises:
        UserError: the innovation is not on, or nothing of it answers.
    """
    stacks = environment.stacks_of(slug)
    if not stacks:
        on = ", ".join(environment.stack_ids())
        raise UserError(f"{slug!r} is not on in config/{environment.name}.yaml; on: {on}")
    answering = [stack for stack in stacks if answers(stack)]
    if not answering:
        raise UserError(f"{', '.join(stacks)} trains and answers nothing; `isomorph start {slug}`")
    return answering[0]


def answers(stack: str) -> bool:
    """Tell whether a stack serves a model."""
    return not stack.endswith("-training")


def halves(outputs: Mapping[str, str]) -> list[str]:
    """Return what a deployed stack can be asked by, in the words of `--on`."""
    fleet = "pools" if "Pools" in outputs else "fleet"
    there = {fleet: "Endpoint", "function": "FunctionUrl", "endpoint": OUTPUT}
    return [half for half, output in there.items() if output in outputs]


def ask_halves(
    environment: Environment,
    stack: str,
    prompt: str,
    *,
    where: str = "all",
    pool: str | None = None,
    max_tokens: int,
    chat: bool = False,
) -> dict[str, Answer]:
    """Ask one half of a deployed stack, or all that it has.

    Raises:
        UserError: it has no such half or pool, no weights, or refuses or does not answer.
    """
    there = halves(environment.outputs(stack))
    if where != "all" and where not in there:
        raise UserError(f"{environment.stack(stack)} has no {where}; it has: {', '.join(there)}")
    if pool is not None and "pools" not in there:
        raise UserError(f"{environment.stack(stack)} has no pools; leave --pool out")
    options: dict[str, Any] = {"max_tokens": max_tokens, "chat": chat}
    given = {}
    for half in there if where == "all" else [where]:
        if half == "function":
            given[half] = ask_function(environment, stack, prompt, **options)
        elif half == "endpoint":
            given[half] = ask_endpoint(environment, stack, prompt, **options)
        elif half == "pools":
            from isomorph.pools import choose_pool

            chosen = choose_pool(environment, stack, prompt, pool)
            given[half] = ask(environment, stack, prompt, pool=chosen, **options)
        else:
            given[half] = ask(environment, stack, prompt, **options)
    return given


def experts_that_worked(experts: Mapping[str, Any]) -> str:
    """Return one line: each layer's busiest experts, with how often each was visited."""
    layers = [
        f"layer {layer}: " + ", ".join(f"{expert} x{count}" for expert, count in visits.items())
        for layer, visits in experts["layers"].items()
    ]
    return f"experts, of {experts['visits']} visits: {'; '.join(layers)}"
