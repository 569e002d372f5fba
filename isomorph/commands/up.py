"""`isomorph up`: from nothing to a model that answers, on this machine."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from isomorph import cdk, output, samples, terms, trained
from isomorph.ask import ask
from isomorph.ask_function import ask_function
from isomorph.environments import Environment, load
from isomorph.errors import UserError
from isomorph.machine import need_openmp
from isomorph.paths import state

PROMPT = "The capital of France is"


@click.command()
@click.argument("slugs", nargs=-1, metavar="[SLUG ...]")
@click.option("--port", default=4570, show_default=True, type=click.IntRange(1024, 65000))
@click.option(
    terms.TERMS["gemma"].flag,
    "accept_gemma",
    is_flag=True,
    help="Accept Google's terms for Gemma's weights; remembered in this checkout.",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def up(slugs: tuple[str, ...], port: int, accept_gemma: bool, json_: bool) -> None:
    """Deploy what `local` turns on, or SLUG ..., to the embedded AWS, and ask each model.

    Without SLUG, what has to be trained first is left out, and what serves weights whose terms are
    not accepted; it says so. Twice in a row, the second only renews what changed.
    """
    from isomorph import deployment
    from local_aws import daemon

    environment = load("local")
    if accept_gemma:
        output.say(terms.TERMS["gemma"].notice)
        terms.accept("gemma")
    chosen = _chosen(environment, slugs)
    if not slugs:
        chosen = _without_unaccepted_terms(environment, chosen)
    need_openmp()
    start = time.monotonic()
    deployment.ensure_wheelhouses(environment.config, chosen)
    folders = {slug: _weights(environment, slug) for slug in chosen}
    prepared = time.monotonic()

    began = daemon.status(state()) is None
    try:
        if began:
            with output.step("start the embedded AWS") as notes:
                notes.append(daemon.start(state(), port).endpoint)
        assembly = _bootstrap_and_synthesize(environment, chosen)
        with output.step("cdk deploy local/foundation"):
            deployment.deploy(environment, "foundation", assembly=assembly)
        for slug in chosen:
            with output.step(f"push the weights of {slug}"):
                deployment.push_weights(environment, slug, folders[slug])
            with output.step(f"cdk deploy local/{slug}"):
                deployment.deploy(environment, slug, assembly=assembly)
            with output.step(f"wait for local/{slug}") as notes:
                notes.append(", ".join(deployment.wait_until_served(environment, slug)))
        rows = [_row(environment, slug) for slug in chosen]
    except KeyboardInterrupt:
        if began:  # what this command started, it takes away again
            daemon.stop(state())
        raise
    own = time.monotonic() - prepared
    if json_:
        seconds = {"downloads": round(prepared - start, 2), "own_steps": round(own, 2)}
        output.as_json({"innovations": rows, "seconds": seconds})
        return
    output.table(
        ["innovation", "stack", "resources", "runs in", "answer", "tokens/s"],
        [
            (
                row["innovation"],
                row["stack"],
                str(row["resources"]),
                row["runs_in"],
                " ".join((PROMPT + row["answer"]["text"]).split()),
                f"{row['answer']['tokens_per_second']:.0f}",
            )
            for row in rows
        ],
    )
    output.say(f'up in {own:.0f} s; ask it more: .venv/bin/isomorph run {chosen[0]} "PROMPT"')


def _bootstrap_and_synthesize(environment: Environment, slugs: list[str]) -> Path:
    """Do both at once, since neither needs the other; return the folder with the templates."""
    assembly, config = state() / "cdk.out", environment.config
    with output.step("cdk bootstrap, cdk synth"), ThreadPoolExecutor(1) as thread:
        synthesis = thread.submit(
            cdk.synthesize,
            assembly,
            context={"env": environment.name, "slugs": ",".join(slugs)},
            environment=environment.variables,
            log=state() / "cdk-synth.log",
        )
        cdk.bootstrap(
            config.account,
            config.region,
            environment=environment.variables,
            log=state() / "cdk.log",
            scratch=state() / "bootstrap",
        )
        synthesis.result()
    return assembly


def _chosen(environment: Environment, slugs: tuple[str, ...]) -> list[str]:
    """Return the innovations to bring up, in the order of the map.

    Raises:
        UserError: a slug that `local` does not turn on, or that is only planned.
    """
    on = environment.stack_ids()
    for slug in slugs:
        if slug not in on:
            raise UserError(
                f"{slug!r} cannot be brought up: config/local.yaml turns on {', '.join(on)}; "
                f"`isomorph list` shows what is real and what is planned"
            )
    if slugs:
        return [slug for slug in on if slug in slugs]
    models = {slug: environment.config.innovations[slug]["model"] for slug in on}
    for slug in on:
        if models[slug] in trained.TRAINED:
            output.say(
                f"{slug} is left out: {models[slug]} is trained on this machine first, with torch; "
                f"bring it up with `isomorph up {slug}`"
            )
    return [slug for slug in on if models[slug] not in trained.TRAINED]


def _without_unaccepted_terms(environment: Environment, slugs: list[str]) -> list[str]:
    """Return what may be brought up without a word, and say what is left out and why."""
    kept = []
    for slug in slugs:
        model = environment.config.innovations[slug]["model"]
        sample = samples.SAMPLES.get(model)
        if sample is None or sample.terms is None or terms.accepted(sample.terms):
            kept.append(slug)
            continue
        asked = terms.TERMS[sample.terms]
        output.say(f"{slug} is left out: {model} comes under terms that are not accepted yet")
        output.say(asked.notice)
        output.say(f"accept them with `isomorph up {asked.flag}`, or {asked.variable}=1")
    if not kept:
        raise UserError(
            f"nothing is left to bring up: config/{environment.name}.yaml turns on only what "
            f"needs terms that are not accepted: {', '.join(slugs)}"
        )
    return kept


def _weights(environment: Environment, slug: str) -> Path:
    """Return the folder with the weights of an innovation's model, downloaded if need be."""
    model = environment.config.innovations[slug]["model"]
    with output.step(f"weights of {model}") as notes:
        folder, made = samples.fetch(model)
        how = "trained" if model in trained.TRAINED else "downloaded"
        notes.append(how if made else "cached")
    return folder


def _row(environment: Environment, slug: str) -> dict[str, Any]:
    """Return what the table says of one innovation, after asking its model."""
    stack = environment.stack(slug)
    pages = environment.client("cloudformation").get_paginator("list_stack_resources")
    count = sum(len(p["StackResourceSummaries"]) for p in pages.paginate(StackName=stack))
    with output.step(f"ask {slug}"):
        answer = ask(environment, slug, PROMPT, max_tokens=16)
    function: dict[str, Any] = {}
    if "FunctionUrl" in environment.outputs(slug):
        with output.step(f"ask the function of {slug}, which loads its model first"):
            said = ask_function(environment, slug, PROMPT, max_tokens=16)
        function = {"function": said.as_dict()}
    return {
        **function,
        "innovation": slug,
        "stack": stack,
        "resources": count,
        "runs_in": _where(environment, slug),
        "answer": answer.as_dict(),
    }


def _where(environment: Environment, slug: str) -> str:
    """Return the machine and the process that serve."""
    from local_aws import daemon

    group = environment.outputs(slug)["Fleet"]
    name = environment.outputs(slug).get("Function")
    running = daemon.status(state())
    if running is None:
        return ""
    places = [
        f"{row['id']} (pid {row['pid']}, port {row['port']})"
        for row in running.machines()
        if row["group"] == group
    ]
    places += [
        f"function (pid {row['pid']})" for row in running.functions() if row["function"] == name
    ]
    return ", ".join(places)
