"""An instance as its Auto Scaling group sees it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from local_aws.machines.cloud import Cloud, Hook, TargetGroup
from local_aws.machines.health import HealthCheck
from local_aws.machines.machine import Machine

_SHUTDOWN_SECONDS = 120.0


@dataclass
class Action:
    """A lifecycle hook that waits for its answer on one instance."""

    hook: Hook
    deadline: float
    result: str | None = None  # written by the API, read by the runner

    @classmethod
    def begin(cls, hook: Hook) -> Self:
        """Begin to wait for the answer of a hook."""
        return cls(hook, time.monotonic() + hook.timeout)

    def heartbeat(self) -> None:
        """Begin the timeout of the hook anew."""
        self.deadline = time.monotonic() + self.hook.timeout

    def outcome(self) -> str | None:
        """Return the answer: the one given, or the default once the time is over."""
        if self.result is None and time.monotonic() > self.deadline:
            return self.hook.default
        return self.result


@dataclass
class Member:
    """One instance of a group, from `Pending` to `Terminated`."""

    machine: Machine
    account: str
    zone: str
    template: dict[str, str]
    facts: dict[str, str]
    phase: str = "Pending"
    actions: dict[str, Action] = field(default_factory=dict)
    checks: list[HealthCheck] = field(default_factory=list)
    failure: str | None = None
    served: bool = False
    _off_by: float = 0.0

    @property
    def instance_id(self) -> str:
        """Such as `i-0123456789abcdef0`."""
        return self.machine.instance_id

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out."""
        return self.phase.startswith("Terminat")

    @property
    def target_state(self) -> str:
        """What the instance metadata say that the group wants of it."""
        return "Terminated" if self.leaving else "InService"

    @property
    def ready(self) -> bool:
        """Whether it does its work: in service, and healthy to every load balancer."""
        if self.phase != "InService":
            return False
        if not self.checks:
            return self.machine.boot_code == 0
        return all(check.state == "healthy" for check in self.checks)

    def begin_launch(self, hooks: Sequence[Hook]) -> None:
        """Boot; in service once the hooks have been answered, if there are any."""
        self.machine.boot()
        self.actions = {hook.name: Action.begin(hook) for hook in hooks}
        self.phase = "Pending:Wait" if hooks else "Pending:Proceed"

    def enter_service(self, cloud: Cloud, target_groups: Sequence[TargetGroup]) -> None:
        """Become a target of the load balancers."""
        self.actions = {}
        for group in target_groups:
            cloud.register(group.arn, self.instance_id)
            check = HealthCheck(group, self.machine.port)
            check.start()
            self.checks.append(check)
        self.phase = "InService"  # last: without its checks it would seem ready

    def find_failure(self, *, by_load_balancer: bool, grace: float) -> str | None:
        """Return why this instance has to be replaced, if it has to."""
        if self.machine.boot_code:
            told = f"user data ended with exit code {self.machine.boot_code}"
            return self.machine.reason() or told
        if not self.machine.running:
            return "the machine's init died"
        if any(action.outcome() == "ABANDON" for action in self.actions.values()):
            return self.machine.reason() or "its launch was abandoned"
        if by_load_balancer:
            for check in self.checks:
                if check.overdue(grace):
                    return self.machine.reason() or f"unhealthy: {check.detail}"
        return None

    def begin_end(self, cloud: Cloud, hooks: Sequence[Hook]) -> None:
        """Stop being a target; the machine goes off once the hooks have been answered."""
        for check in self.checks:
            check.stop()
            cloud.deregister(check.group.arn, self.instance_id)
        self.checks = []
        self.actions = {hook.name: Action.begin(hook) for hook in hooks}
        if hooks or not self.failure:
            # Until the runner's next step: a request that was on its way still finds its server.
            self.phase = "Terminating:Wait"
        else:
            self.shut_down()

    def forget_hook(self, name: str) -> None:
        """Wait no more for a hook, since it was deleted."""
        if name in self.actions:
            self.actions[name].result = "CONTINUE" if self.leaving else "ABANDON"

    def shut_down(self) -> None:
        """Stop the services as an operating system does, for as long as EC2 would wait."""
        self.actions = {}
        self.phase = "Terminating:Proceed"
        self._off_by = time.monotonic() + _SHUTDOWN_SECONDS
        self.machine.power_off()

    def is_off(self) -> bool:
        """Tell whether nothing of the machine runs any more, cutting its power at the end."""
        if self.machine.running and time.monotonic() > self._off_by:
            self.machine.cut_power()
        return not self.machine.running
