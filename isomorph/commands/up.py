"""`isomorph up`: from nothing to a model that answers, on this machine."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from isomorph import cdk, deployment, fleets, output, samples, terms, trained
from isomorph.ask_halves import answers, ask_halves, halves
from isomorph.environments import Environment, load, slug_of
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
    environment = load("local")
    if accept_gemma:
        output.say(terms.TERMS["gemma"].notice)
        terms.accept("gemma")
    chosen = _chosen(environment, slugs)
    if not slugs:
        chosen = _without_unaccepted_terms(environment, chosen)
    from local_aws import daemon

    need_openmp()
    start = time.monotonic()
    slugs = tuple(dict.fromkeys(slug_of(stack) for stack in chosen))
    deployment.ensure_wheelhouses(environment.config, slugs)
    served = dict.fromkeys(slug_of(stack) for stack in chosen if answers(stack))
    folders = {slug: _weights(environment, slug) for slug in served}
    prepared = time.monotonic()

    began = daemon.status(state()) is None
    try:
        if began:
            with output.step("start the embedded AWS") as notes:
                notes.append(daemon.start(state(), port).endpoint)
        assembly = _bootstrap_and_synthesize(environment, list(slugs))
        with output.step("cdk deploy local/foundation"):
            deployment.deploy(environment, "foundation", assembly=assembly)
        for slug, folder in folders.items():
            with output.step(f"push the weights of {slug}"):
                deployment.push_weights(environment, slug, folder)
        for stack in chosen:
            with output.step(f"cdk deploy local/{stack}"):
                deployment.deploy(environment, stack, assembly=assembly)
            if answers(stack):
                with output.step(f"wait for local/{stack}") as notes:
                    notes.append(", ".join(fleets.wait_until_served(environment, stack)))
        rows = [_row(environment, stack) for stack in chosen]
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
                *_said(row),
            )
            for row in rows
        ],
    )
    if folders:
        more = f'ask it more: .venv/bin/isomorph run {next(iter(folders))} "PROMPT"'
    else:
        more = f"go on with .venv/bin/isomorph start {slugs[0]}"
    output.say(f"up in {own:.0f} s; {more}")


def _said(row: dict[str, Any]) -> tuple[str, str]:
    """Return a row's text and its speed; both empty where nothing answers."""
    if "answer" not in row:
        return "", ""
    answer = row["answer"]
    return " ".join((PROMPT + answer["text"]).split()), f"{answer['tokens_per_second']:.0f}"


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
    """Return the stacks to bring up, in the order of the map; an innovation means all of its own.

    Raises:
        UserError: a slug that `local` does not turn on, or that is only planned.
    """
    on = environment.stack_ids()
    wanted = {stack for slug in slugs for stack in environment.stacks_of(slug)}
    for slug in slugs:
        if not environment.stacks_of(slug):
            known = dict.fromkeys(name for stack in on for name in (slug_of(stack), stack))
            raise UserError(
                f"{slug!r} cannot be brought up: config/local.yaml turns on {', '.join(known)}; "
                f"`isomorph list` shows what is real and what is planned"
            )
    if slugs:
        return [stack for stack in on if stack in wanted]
    models = {stack: _model(environment, stack) for stack in on}
    for slug in dict.fromkeys(slug_of(stack) for stack in on):
        model = environment.config.innovations[slug]["model"]
        if model in trained.TRAINED:
            output.say(
                f"{slug} is left out: {model} is trained on this machine first, with torch; "
                f"bring it up with `isomorph up {slug}`"
            )
    return [stack for stack in on if models[stack] not in trained.TRAINED]


def _model(environment: Environment, stack: str) -> str:
    return str(environment.config.innovations[slug_of(stack)]["model"])


def _without_unaccepted_terms(environment: Environment, slugs: list[str]) -> list[str]:
    """Return what may be brought up without a word, and say what is left out and why."""
    kept = []
    for slug in slugs:
        model = _model(environment, slug)
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


def _row(environment: Environment, stack: str) -> dict[str, Any]:
    """Return what the table says of one stack, after asking its model if it has one.

    The first half that answers is `answer`; others have their own names.
    """
    pages = environment.client("cloudformation").get_paginator("list_stack_resources")
    name = environment.stack(stack)
    count = sum(len(p["StackResourceSummaries"]) for p in pages.paginate(StackName=name))
    said: dict[str, Any] = {}
    for half in halves(environment.outputs(stack)) if answers(stack) else []:
        with output.step(f"ask {stack} ({half})"):
            found = ask_halves(environment, stack, PROMPT, where=half, max_tokens=16)[half]
        said["answer" if not said else half] = found.as_dict()
    return {
        **said,
        "innovation": slug_of(stack),
        "stack": name,
        "resources": count,
        "runs_in": _where(environment, stack),
    }


def _where(environment: Environment, slug: str) -> str:
    """Return the machine and the process that serve."""
    from local_aws import daemon

    outputs = environment.outputs(slug)
    groups, name = fleets.groups(outputs).values(), outputs.get("Function")
    running = daemon.status(state())
    if running is None:
        return ""
    places = [
        f"{row['id']} (pid {row['pid']}, port {row['port']})"
        for row in running.machines()
        if row["group"] in groups
    ]
    places += [
        f"function (pid {row['pid']})" for row in running.functions() if row["function"] == name
    ]
    places += [
        f"endpoint (pid {row['pid']}, port {row['port']})"
        for row in running.containers()
        if row["endpoint"] == outputs.get("SageMakerEndpoint")
    ]
    nodes = [row for row in running.nodes() if row["cluster"] == outputs.get("ClusterName")]
    places += [f"{row['group']} {row['name']} ({row['state'].lower()})" for row in nodes]
    places += [f"jobs by {nodes[0]['slurm']}"] if nodes else []
    return ", ".join(places)
