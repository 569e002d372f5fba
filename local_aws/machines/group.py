"""An Auto Scaling group: keeps as many machines as it should have, and rolls them when told."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from local_aws.machines.cloud import Cloud, Launched, TargetGroup
from local_aws.machines.member import Member

MOST_FAILURES = 3
_REMEMBERED = 100  # activities


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Replacement:
    """The order to replace every instance of a group, and how far it is.

    A new instance serves before an old one leaves, at most `batch` of them at a time.

    Args:
        batch: How many are replaced at a time.
        version: Of the launch template; who has it is spared. Without one, nobody is.
    """

    batch: int = 1
    version: str | None = None
    status: str = "Pending"  # as of an instance refresh
    reason: str = ""
    replacement_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: str = field(default_factory=_now)
    ended: str = ""
    total: int = 0
    remaining: set[str] = field(default_factory=set)

    def begin(self, members: list[Member]) -> None:
        """Choose whom to replace."""
        chosen = [m.instance_id for m in members if m.template["Version"] != self.version]
        self.remaining, self.total, self.status = set(chosen), len(chosen), "InProgress"

    @property
    def over(self) -> bool:
        """Whether it has come to an end, good or bad."""
        return self.status in ("Successful", "Failed", "Cancelled")

    def end(self, status: str, reason: str = "") -> None:
        """Come to an end."""
        self.status, self.reason, self.ended = status, reason, _now()
        self.remaining = set()


class Group:
    """The machines of one group.

    Only the runner's thread changes it, in `step`. The API, which other threads serve, leaves notes
    for that thread: the result of a hook's action, and replacements.
    """

    def __init__(self, name: str, cloud: Cloud, make: Callable[[Cloud, Launched], Member]) -> None:
        self.name = name
        self.cloud = cloud
        self.members: list[Member] = []
        self.ended: list[Member] = []  # machines that failed, kept for their reasons
        self.activities: list[dict[str, Any]] = []
        self.replacements: list[Replacement] = []
        self.failures = 0
        self.last_failure = ""
        self._make = make
        self._turn = 0
        self._seen: object = None

    @property
    def reason(self) -> str | None:
        """Why the last machines failed; None if the last one came up."""
        return self.last_failure if self.failures else None

    @property
    def given_up(self) -> bool:
        """Whether so many machines failed in a row that no other is started."""
        return self.failures >= MOST_FAILURES

    @property
    def replacement(self) -> Replacement | None:
        """The replacement under way."""
        latest = self.replacements[0] if self.replacements else None
        return latest if latest and not latest.over else None

    def step(self, wanted: dict[str, Any] | None) -> None:
        """Go one step towards what the control plane describes; None once the group is deleted."""
        for member in self.members.copy():
            if member.leaving:
                self._lead_out(member, deleted=wanted is None)
            elif wanted is None:
                self._retire(member, hooks=False)
            else:
                self._lead_in(member, wanted)
        if wanted is None:
            return
        seen = (wanted["LaunchTemplate"], wanted["DesiredCapacity"])
        if seen != self._seen:  # whatever was wrong may be right now
            self._seen, self.failures = seen, 0
        self._balance(wanted)

    def _lead_in(self, member: Member, wanted: dict[str, Any]) -> None:
        member.failure = member.failure or member.find_failure(
            by_load_balancer=wanted["HealthCheckType"] == "ELB",
            grace=wanted["HealthCheckGracePeriod"],
        )
        if member.failure:
            self.failures += 1
            self.last_failure = member.failure
            self._finish(member, "launch", "Failed", member.failure)
            self._retire(member, hooks=False)
        elif member.phase != "InService" and all(
            action.outcome() for action in member.actions.values()
        ):
            member.enter_service(self.cloud, self._target_groups(wanted))
            self._finish(member, "launch", "Successful")
        elif member.ready and not member.served:
            member.served = True
            self.failures = 0

    def _target_groups(self, wanted: dict[str, Any]) -> list[TargetGroup]:
        return [self.cloud.target_group(arn) for arn in wanted.get("TargetGroupARNs", [])]

    def _lead_out(self, member: Member, *, deleted: bool) -> None:
        if member.phase == "Terminating:Wait":
            # A machine that did not come up has nothing to finish, and nobody there to say so.
            over = deleted or bool(member.machine.boot_code)
            if over or all(action.outcome() for action in member.actions.values()):
                member.shut_down()
        elif member.is_off():
            self.cloud.terminate(member.instance_id)
            member.machine.cut_power()
            member.machine.remove(keep_console=member.failure is not None)
            member.phase = "Terminated"
            self._finish(member, "end", "Successful")
            self.members.remove(member)
            if member.failure:
                self.ended = [*self.ended[1 - MOST_FAILURES :], member]

    def _retire(self, member: Member, *, hooks: bool = True) -> None:
        self._begin("Terminating EC2 instance", member, "end")
        waiting = self.cloud.hooks(self.name, "TERMINATING") if hooks else []
        member.begin_end(self.cloud, waiting)
        if member.failure:
            member.machine.cut_power()

    def _balance(self, wanted: dict[str, Any]) -> None:
        replacement, desired = self.replacement, wanted["DesiredCapacity"]
        live = [member for member in self.members if not member.leaving]
        if replacement and replacement.status == "Pending":
            if replacement.version not in (None, wanted["LaunchTemplate"]["Version"]):
                return  # what is wanted was read before it changed
            replacement.begin(live)
        old = [m for m in live if replacement and m.instance_id in replacement.remaining]
        if replacement:
            replacement.remaining = {member.instance_id for member in old}
            if self.given_up:
                replacement.end("Failed", self.last_failure)
                old = []
            elif not old and sum(member.ready for member in live) >= desired:
                replacement.end("Successful")
        surge = min(replacement.batch, len(old)) if replacement else 0
        missing = desired + surge - len(live)
        if missing > 0 and not self.given_up:
            for _ in range(missing):
                self._launch(wanted)
        elif old:
            self._retire_old(old, spare=sum(member.ready for member in live) - desired)
        elif missing < 0:
            for member in sorted(live, key=_leaves_late)[:-missing]:
                self._retire(member)

    def _retire_old(self, old: list[Member], spare: int) -> None:
        for member in sorted(old, key=_leaves_late):
            if not member.ready:
                self._retire(member)
            elif spare > 0:
                spare -= 1
                self._retire(member)

    def _launch(self, wanted: dict[str, Any]) -> None:
        try:
            launched = self.cloud.launch(wanted, self._turn)
        except (ClientError, KeyError, ValueError) as error:  # what the template says is at fault
            self.failures += 1
            self.last_failure = f"the launch template makes no instance: {error}"
            return
        self._turn += 1
        member = self._make(self.cloud, launched)
        self.members.append(member)
        self._begin("Launching a new EC2 instance", member, "launch")
        try:
            member.begin_launch(self.cloud.hooks(self.name, "LAUNCHING"))
        except OSError as error:
            member.failure = f"the machine cannot boot: {error}"

    def _begin(self, what: str, member: Member, kind: str) -> None:
        activity = {
            "ActivityId": f"{kind}-{member.instance_id}",
            "AutoScalingGroupName": self.name,
            "Description": f"{what}: {member.instance_id}",
            "Cause": member.failure or "The group was not as it should be.",
            "StartTime": _now(),
            "StatusCode": "InProgress",
            "Progress": 50,
        }
        self.activities = [activity, *self.activities[: _REMEMBERED - 1]]

    def _finish(self, member: Member, kind: str, status: str, message: str = "") -> None:
        for activity in self.activities:
            if activity["ActivityId"] == f"{kind}-{member.instance_id}":
                activity |= {"StatusCode": status, "EndTime": _now(), "Progress": 100}
                if message:
                    activity["StatusMessage"] = message


def _leaves_late(member: Member) -> tuple[bool, int, float]:
    """Sort those first that leave first: without health, of an old version, long in service."""
    return member.ready, int(member.template["Version"]), member.machine.since
