"""The part of the embedded AWS that plays EC2 and Auto Scaling: groups get the machines they want.

Other runners (the lifecycle scripts of a HyperPod cluster, SageMaker's containers, the Lambda
runtime) go into packages beside this one.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local_aws.machines.cloud import Cloud, Launched
from local_aws.machines.group import Group
from local_aws.machines.machine import Machine, free_port
from local_aws.machines.member import Member
from local_aws.stepper import Stepper

_PAUSE = 0.25
_log = logging.getLogger(__name__)

Scope = tuple[str, str]  # account and region
Key = tuple[str, str, str]  # account, region and name of a group


class Runner:
    """Steps every group of every account and region, in a thread of its own.

    Args:
        endpoint: Of the embedded AWS.
        instances_dir: Where the machines' folders are made.
        scopes: Tells in which accounts and regions there are groups, and all that is recorded of
            them: they are read again once that has changed.
        environment: Variables of every machine.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        instances_dir: Path,
        scopes: Callable[[], Mapping[Scope, str]],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = environment or {}
        self._endpoint = endpoint
        self._instances_dir = instances_dir
        self._scopes = scopes
        self._groups: dict[Key, Group] = {}
        self._members: dict[str, Member] = {}
        self._read: dict[Scope, tuple[str, list[dict[str, Any]]]] = {}
        self._steps = Stepper("machines", lambda: self._step(self._wanted()), _PAUSE)

    def start(self) -> None:
        """Begin to play."""
        self._steps.start()

    def stop(self) -> None:
        """Pull the plug of every machine."""
        self._steps.stop()
        for member in self.members():
            for check in member.checks:
                check.stop()
            member.machine.cut_power()

    def group(self, account: str, region: str, name: str) -> Group | None:
        """Return a group that the runner has seen."""
        return self._groups.get((account, region, name))

    def groups(self) -> list[tuple[Key, Group]]:
        """Return all groups."""
        return list(self._groups.items())

    def members(self) -> list[Member]:
        """Return all machines that are not off."""
        return [member for _, group in self.groups() for member in list(group.members)]

    def member(self, instance_id: str) -> Member | None:
        """Return an instance, also one that has failed."""
        return self._members.get(instance_id)

    def _wanted(self) -> dict[Key, dict[str, Any]]:
        scopes = self._scopes()
        for account, region in {*scopes, *(key[:2] for key in self._groups)}:
            recorded = scopes.get((account, region), "")
            if self._read.get((account, region), (None,))[0] != recorded:
                groups = Cloud(self._endpoint, account, region).groups()
                self._read[account, region] = recorded, groups
        return {
            (*scope, group["AutoScalingGroupName"]): group
            for scope, (_, groups) in self._read.items()
            for group in groups
        }

    def _step(self, wanted: dict[Key, dict[str, Any]]) -> None:
        for account, region, name in wanted:
            if (account, region, name) not in self._groups:
                cloud = Cloud(self._endpoint, account, region)
                self._groups[account, region, name] = Group(name, cloud, self._make)
        for key, group in self.groups():
            try:
                group.step(wanted.get(key))
            except (BotoCoreError, ClientError, OSError):  # say so, and try again
                _log.exception("group %s", key[2])
            if key not in wanted and not group.members:
                del self._groups[key]

    def _make(self, cloud: Cloud, launched: Launched) -> Member:
        name = launched.instance_id
        imds = f"{self._endpoint.replace('localhost', '127.0.0.1')}/_isomorph/imds/{name}/"
        machine = Machine(
            instance_id=name,
            folder=self._instances_dir / name,
            port=free_port(),
            user_data=launched.user_data,
            environment={
                **self._environment,
                "AWS_ENDPOINT_URL": self._endpoint,
                "AWS_REGION": cloud.region,
                "AWS_DEFAULT_REGION": cloud.region,
                "AWS_ACCESS_KEY_ID": cloud.account,
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds,
            },
        )
        facts = {
            **launched.facts,
            "placement/region": cloud.region,
            "placement/availability-zone": launched.zone,
        }
        member = Member(machine, cloud.account, launched.zone, launched.template, facts)
        self._members[name] = member
        return member
