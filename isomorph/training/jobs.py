"""Runs on a training cluster, whoever places them: what the commands may ask for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

from isomorph.errors import UserError
from isomorph.training.submit import Run

ENDED = frozenset({"done", "failed", "stopped", "lost"})
PAUSE_S = 1.0

Job = dict[str, Any]  # has at least job, name, state, config, steps, nodes and begun


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A run that is to start.

    Args:
        name: Of the run and of its checkpoints.
        run: What is trained, and how.
        nodes: How many of the workers.
        team: Whose quota it takes; left out, the first team's, if there are teams.
    """

    name: str
    run: Run
    nodes: int
    team: str | None


class Part(TypedDict):
    """A part of a log: how the run fares, the byte after the part, its text, what it waits for."""

    state: str
    next: int
    text: str
    why: str


class Jobs(Protocol):
    """The runs of one cluster."""

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        ...

    @property
    def placer(self) -> str:
        """Who places its runs, for a person."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """What a table of its runs shows."""
        ...

    def check(self, *, name: str | None, team: str | None, manifests: bool) -> None:
        """Refuse what this cluster cannot do, before anything is uploaded."""
        ...

    def start(self, wanted: Submission) -> Job:
        """Start a run; one of its name that runs already is a UserError."""
        ...

    def manifests(self, wanted: Submission) -> str:
        """Return what would be submitted, for somebody else to submit."""
        ...

    def all(self) -> list[Job]:
        """Return all runs with their states, the newest first."""
        ...

    def named(self, given: str, jobs: list[Job]) -> list[Job]:
        """Return the runs that `--job` means; what can be no job is a UserError."""
        ...

    def log(self, job: Job, *, follow: bool) -> Iterator[Part]:
        """Yield a run's log from its beginning; the last part has the run's state."""
        ...

    def stop(self, job: Job) -> None:
        """Let a run save a checkpoint and end; does not wait for its end."""
        ...


def find(jobs: Jobs, given: str | None, *, running: bool = False) -> Job:
    """Return one run: the newest, where no job is given.

    Args:
        jobs: Of the cluster.
        given: What `--job` says.
        running: Whether only runs count that have not ended, if no job is given.

    Raises:
        UserError: there is none, or more than one of the name.
    """
    there = jobs.all()
    wanted = jobs.named(given, there) if given is not None else there
    if given is None and running:
        wanted = [job for job in there if job["state"] not in ENDED]
    if given is not None and len(wanted) > 1:
        raise UserError(f"--job {given} may be {known(wanted)}; name one of them")
    if wanted:
        return wanted[0]
    what = f"no job {given}" if given is not None else "no job"
    more = " that runs" if running and given is None else ""
    raise UserError(f"there is {what}{more} on {jobs.cluster}; jobs: {known(there)}")


def known(jobs: list[Job]) -> str:
    """Return the jobs' names in a line."""
    return ", ".join(str(job["job"]) for job in jobs) or "none"
