"""One endpoint: its containers, how new ones come up, and how an update takes over or goes back."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from local_aws.endpoints.container import Container
from local_aws.errors import EmulatorError

MOST_FAILURES = (
    3  # of a container that ends before it was healthy; AWS tries until the time is over
)
_LONGEST_PAUSE = 30.0
# Makes the container of a model on one machine, with its data fetched.
Make = Callable[[str], Container]


@dataclass
class Variant:
    """A production variant as its configuration has it, and what plays it."""

    config: Mapping[str, Any]
    count: int
    containers: list[Container] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.config["VariantName"])

    @property
    def patience(self) -> float:
        """Seconds from the start of a container to its first healthy answer."""
        return float(self.config.get("ContainerStartupHealthCheckTimeoutInSeconds", 300))

    def stop(self) -> None:
        """End its containers."""
        for container in self.containers:
            container.stop()
        self.containers = []


@dataclass
class Rollout:
    """A configuration on its way: variants that do not take requests yet."""

    config_name: str
    variants: list[Variant]
    deployment: Mapping[str, Any] | None = None


@dataclass
class Endpoint:
    """An endpoint. Only the runner's thread changes it, in `step`.

    Args:
        name: Its name.
        arn: Its ARN.
        make: Makes containers.
        incoming: What shall serve next.
    """

    name: str
    arn: str
    make: Make
    incoming: Rollout | None
    config_name: str = ""
    status: str = "Creating"
    reason: str = ""
    live: list[Variant] = field(default_factory=list)
    deployment: Mapping[str, Any] | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))
    deleted: bool = False
    _due: dict[int, float] = field(default_factory=dict)
    _turns: "itertools.count[int]" = field(default_factory=itertools.count)

    def step(self) -> None:
        """Go one step: bring up what is new, keep up what serves."""
        if self.deleted:
            self._stop_all()
            return
        for variant in self.live:
            self._keep_up(variant)
        if self.incoming is None:
            return
        try:
            ready = [self._bring_up(variant) for variant in self.incoming.variants]
        except EmulatorError as error:
            self._give_up(str(error))
            return
        if all(ready):
            self._take_over()

    def _bring_up(self, variant: Variant) -> bool:
        while len(variant.containers) < variant.count:
            container = self.make(str(variant.config["ModelName"]))
            variant.containers.append(container)
            container.fetch()
            container.start()
        return all(self._healthy(variant, one) for one in variant.containers)

    def _healthy(self, variant: Variant, container: Container) -> bool:
        """Tell whether a container answers, starting it again if it ended.

        Raises:
            EmulatorError: It will not, as far as can be known.
        """
        if not container.alive:
            if container.restarts + 1 >= MOST_FAILURES:
                raise EmulatorError(
                    f"the container of {variant.name} ended {MOST_FAILURES} times before it was "
                    f"healthy: {container.last_words()}"
                )
            container.start()
            return False
        status = container.ping()
        if status == 200:
            return True
        if status == 500:  # it says that it failed: here nobody waits for the time to be over
            raise EmulatorError(
                f"the container of {variant.name} answers /ping with 500: {container.last_words()}"
            )
        if time.monotonic() > container.begun + variant.patience:
            raise EmulatorError(
                f"the primary container for production variant {variant.name} did not pass the "
                f"ping health check in {variant.patience:.0f} s: {container.last_words()}"
            )
        return False

    def _keep_up(self, variant: Variant) -> None:
        """Start a container again that ended, with longer and longer pauses; follow the count."""
        for container in variant.containers:
            if container.alive:
                continue
            due = self._due.setdefault(
                id(container),
                time.monotonic() + min(_LONGEST_PAUSE, 0.2 * 2**container.restarts),
            )
            if time.monotonic() >= due:
                del self._due[id(container)]
                container.begun = time.monotonic()
                container.start()
        while len(variant.containers) > variant.count:
            variant.containers.pop().stop()
        if len(variant.containers) < variant.count:
            try:
                self._bring_up(variant)
            except EmulatorError as error:  # those that serve go on
                variant.count, self.reason = len(variant.containers), str(error)

    def _take_over(self) -> None:
        """Let what is new serve, and end what served before."""
        assert self.incoming is not None  # noqa: S101
        before, self.live = self.live, self.incoming.variants
        self.config_name, self.deployment = self.incoming.config_name, self.incoming.deployment
        self.incoming = None
        self._settle("InService")
        for variant in before:
            variant.stop()

    def _give_up(self, reason: str) -> None:
        """End what is new; what served before, if anything, goes on."""
        assert self.incoming is not None  # noqa: S101
        for variant in self.incoming.variants:
            variant.stop()
        if not self.live:
            self.config_name = self.incoming.config_name
        self.incoming = None
        self._settle("InService" if self.live else "Failed", reason)

    def _settle(self, status: str, reason: str = "") -> None:
        self.status, self.reason, self.modified = status, reason, datetime.now(UTC)

    def _stop_all(self) -> None:
        for variant in [*self.live, *(self.incoming.variants if self.incoming else [])]:
            variant.stop()
        self.live, self.incoming = [], None

    def containers(self) -> list[Container]:
        """Return every container, those that do not serve yet as well."""
        incoming = self.incoming.variants if self.incoming else []
        return [one for variant in [*self.live, *incoming] for one in variant.containers]

    def choose(self) -> tuple[Variant, Container] | None:
        """Return who takes the next request: the containers that live, in turn."""
        alive = [(v, one) for v in self.live for one in v.containers if one.alive]
        return alive[next(self._turns) % len(alive)] if alive else None
