"""Starting a run: what it is given, checked and uploaded, for whoever places it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isomorph import output
from isomorph.environments import Environment
from isomorph.errors import UserError
from isomorph.training.cluster import TrainingCluster
from isomorph.training.jobs import Job, Submission
from isomorph.training.submit import Run, config_of, upload


@dataclass(frozen=True)
class Started:
    """What came of it: a job and who places it, or manifests that somebody has yet to apply."""

    job: Job
    by: str
    manifests: str | None = None


def start_run(
    environment: Environment,
    *,
    config: str,
    steps: int,
    run: str | None,
    texts: Sequence[Path],
    tokenizer: Path | None,
    data: str | None,
    nodes: int | None,
    ranks_per_node: int | None,
    expert_parallel: int | None,
    batch: int,
    held_out: int,
    checkpoint_every: int,
    restarts: int,
    seed: int,
    team: str | None,
    manifests: bool,
) -> Started:
    """Start a run, and return its job.

    Raises:
        UserError: no cluster, more nodes than it has, a run of that name that runs already.
    """
    cluster = TrainingCluster(environment)
    found, workers = cluster.outputs, int(cluster.outputs["Workers"])
    if nodes is not None and nodes > workers:
        raise UserError(
            f"--nodes is {nodes}; {cluster.name} has {workers} workers "
            f"(innovations.moe.training.groups in config/{environment.name}.yaml)"
        )
    if data and (texts or tokenizer):
        raise UserError(
            "--data names what is on the cluster, --text and --tokenizer bring it there"
        )
    jobs = cluster.jobs()
    jobs.check(name=run, team=team, manifests=manifests)
    known = config_of(config)
    with output.step("put config and texts into the data bucket"):
        config, made = upload(
            environment, found["DataUrl"], config=config, texts=texts, tokenizer=tokenizer
        )
    wanted = Run(
        config=config,
        data=data or made,
        texts=len(texts),
        vocabulary=int(known["model"]["vocab_size"]),
        held_out=held_out,
        steps=steps,
        ranks=ranks_per_node or int(found["RanksPerNode"]),
        restarts=restarts,
        checkpoint_every=checkpoint_every,
        expert_parallel=expert_parallel or 0,
        batch=batch,
        seed=seed,
        peak_tflops=_peak(found["WorkerType"]),
    )
    submission = Submission(
        name=run or f"moe-{Path(config).stem}", run=wanted, nodes=nodes or workers, team=team
    )
    if manifests:
        return Started({}, jobs.placer, jobs.manifests(submission))
    with output.step(f"submit {submission.name} to {cluster.name}"):
        job = jobs.start(submission)
    return Started(job, str(job.get("slurm", jobs.placer)))


def _peak(instance_type: str) -> float:
    """Return the peak of one device in TFLOPS (dense bf16), or 0 where the catalogue has none."""
    from planner.catalogue import instances

    found = instances().get(instance_type.removeprefix("ml."))
    return (
        round(found.rates.get("bf16", 0.0) / 1e12, 1) if found and found.runtime != "cpu" else 0.0
    )
