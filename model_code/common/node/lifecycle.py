"""Says to CloudFormation and Auto Scaling what became of this machine."""

import logging
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Literal

from model_code.common.errors import SettingsError, UserError
from model_code.common.node.imds import Metadata

_LOG = logging.getLogger(__name__)
_POLL_S = 1.0
_DRAIN_POLL_S = 2.0
_READY_S = 900.0
_MAX_DOWN = 10  # polls that found the server's unit down: by then it is crashing in a loop
_UNIT = "isomorph.service"
_ENDING = ("Terminated", "Warmed:Terminated")


class NotReadyError(UserError):
    """The server on this machine does not come up."""


class Node:
    """One machine of a fleet.

    Args:
        env: The machine's environment, with the lines of fleet.env.
    """

    def __init__(self, env: Mapping[str, str], metadata: Metadata) -> None:
        self._env, self._metadata = env, metadata

    def ready(self, timeout_s: float = _READY_S) -> None:
        """Wait for the server, and tell CloudFormation and Auto Scaling how that went.

        Raises:
            NotReadyError: The server keeps ending, or does not answer in time.
        """
        try:
            self._wait_for_health(timeout_s)
        except NotReadyError:
            self._signal("FAILURE")
            self._complete("ISOMORPH_LAUNCH_HOOK", "ABANDON")
            raise
        self._signal("SUCCESS")
        self._complete("ISOMORPH_LAUNCH_HOOK", "CONTINUE")

    def drain(self) -> None:
        """Wait until Auto Scaling ends this machine; let the server finish, and agree."""
        while not self._ending():
            time.sleep(_DRAIN_POLL_S)
        _LOG.info("this machine is being terminated: stopping %s", _UNIT)
        # It returns when the server has drained, or systemd's TimeoutStopSec is over.
        _systemctl("stop", _UNIT)
        self._complete("ISOMORPH_DRAIN_HOOK", "CONTINUE")

    def _ending(self) -> bool:
        try:
            return self._metadata.get("autoscaling/target-lifecycle-state") in _ENDING
        except OSError as error:  # HTTP errors too; asked again in a few seconds
            _LOG.warning("the metadata service does not answer: %s", error)
            return False

    def _wait_for_health(self, timeout_s: float) -> None:
        port = self._env.get("ISOMORPH_PORT_OVERRIDE") or self._setting("ISOMORPH_PORT")
        url = f"http://127.0.0.1:{port}/health"
        end, down = time.monotonic() + timeout_s, 0
        while not _healthy(url):
            down += _systemctl("is-active", "--quiet", _UNIT) != 0
            if down >= _MAX_DOWN:
                raise NotReadyError(f"{_UNIT} keeps ending; `journalctl -u {_UNIT}` says why")
            if time.monotonic() > end:
                raise NotReadyError(f"{url} was not healthy within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def _signal(self, status: Literal["SUCCESS", "FAILURE"]) -> None:
        """Tell CloudFormation; it listens only while it creates or updates the stack."""
        self._tolerated(
            "cloudformation",
            lambda cloudformation: cloudformation.signal_resource(
                StackName=self._setting("ISOMORPH_STACK"),
                LogicalResourceId=self._setting("ISOMORPH_SIGNAL_RESOURCE"),
                UniqueId=self._metadata.instance_id,
                Status=status,
            ),
        )

    def _complete(self, hook: str, result: Literal["CONTINUE", "ABANDON"]) -> None:
        """Let Auto Scaling go on; outside of that hook's wait there is nothing to complete."""
        if not (name := self._env.get(hook)):
            return

        def complete(autoscaling: Any) -> None:
            machine = self._metadata.instance_id
            found = autoscaling.describe_auto_scaling_instances(InstanceIds=[machine])
            for instance in found["AutoScalingInstances"]:
                autoscaling.complete_lifecycle_action(
                    LifecycleHookName=name,
                    AutoScalingGroupName=instance["AutoScalingGroupName"],
                    InstanceId=machine,
                    LifecycleActionResult=result,
                )

        self._tolerated("autoscaling", complete)

    def _tolerated(self, service: str, call: Callable[[Any], Any]) -> None:
        """Make a call that may be refused because nobody waits for it."""
        # Not above: who waits for a machine's end has nothing to say to AWS until then.
        from botocore.exceptions import BotoCoreError, ClientError

        from model_code.common.aws import client

        try:
            call(client(service))
        except ClientError as error:
            if error.response["Error"].get("Code") != "ValidationError":
                raise UserError(f"{service}: {error}") from error
            _LOG.info("%s does not wait for this machine: %s", service, error)
        except BotoCoreError as error:
            raise UserError(f"{service}: {error}") from error

    def _setting(self, name: str) -> str:
        if not (value := self._env.get(name)):
            raise SettingsError(f"{name} is missing; boot.sh takes it from fleet.env")
        return value


def _healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):  # refused, 503 while it loads, or no HTTP at all
        return False


def _systemctl(*arguments: str) -> int:
    """Run systemctl, which is where the machine's PATH says, and return its exit code."""
    return subprocess.run(["systemctl", *arguments], check=False).returncode  # noqa: S603, S607
