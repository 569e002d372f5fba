"""Invokes functions: finds or starts an execution environment, and gives its answer back."""

import contextlib
import json
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ministack.core.responses import set_request_account_id, set_request_region
from ministack.services import lambda_svc

from local_aws.errors import EmulatorError
from local_aws.functions import managed_runtime
from local_aws.functions.environment import ExecutionEnvironment
from local_aws.functions.invocation import MAX_PAYLOAD_BYTES, Failure, Head, Invocation

Function = dict[str, Any]
_TOO_LARGE = Failure(
    "RequestTooLargeException",
    f"Request must be smaller than {MAX_PAYLOAD_BYTES} bytes for the InvokeFunction operation",
)


class FunctionRunner:
    """Plays every function of every account and region.

    Args:
        endpoint: Of the embedded AWS.
        folder: Where the environments' folders are made.
        variables: What every function is told besides, such as whom to trust.
    """

    def __init__(self, *, endpoint: str, folder: Path, variables: Mapping[str, str]) -> None:
        self._endpoint, self._folder, self._variables = endpoint, folder, dict(variables)
        self._lock = threading.Lock()
        self._idle: dict[str, list[ExecutionEnvironment]] = {}
        self._all: dict[int, ExecutionEnvironment] = {}

    def install(self) -> None:
        """Run zip functions here in the place of the control plane's own subprocesses."""
        dispatch = lambda_svc._execute_function_dispatch

        def execute(
            function: Function, config: Function, event: Any, request_id: str, started: float
        ) -> dict[str, Any]:
            if config.get("PackageType") == "Image":
                return dict(dispatch(function, config, event, request_id, started))
            return self.execute(function, config, event)

        lambda_svc._execute_function_dispatch = execute

    def execute(self, function: Function, config: Function, event: Any) -> dict[str, Any]:
        """Return the whole answer, as the control plane wants it from an executor."""
        parts: list[bytes] = []
        head: Head | None = None
        failure: Failure | None = None
        invocation = self.begin(function, config, event)
        for part in invocation.read():
            match part:
                case Head():
                    head = part
                case Failure():
                    failure = part
                case _:
                    parts.append(part)
        if failure:
            return {"body": failure.body, "error": True, "log": invocation.log}
        body = b"".join(parts)
        if head is None or not head.content_type.startswith("application/json"):
            return {"body": body, "log": invocation.log}
        try:
            return {"body": json.loads(body), "log": invocation.log}
        except ValueError:
            return {"body": body, "log": invocation.log}

    def begin(self, function: Function, config: Function, event: Any) -> Invocation:
        """Start an invocation in a thread of its own and return it; read its parts as they come.

        Args:
            function: The control plane's record, with the zip.
            config: The configuration of the version that is called.
            event: What JSON can hold.
        """
        payload = json.dumps(event, ensure_ascii=False).encode()
        invocation = Invocation(payload, config["FunctionArn"], float(config["Timeout"]))
        if len(payload) > MAX_PAYLOAD_BYTES:
            invocation.put(_TOO_LARGE)
            invocation.finish()
            return invocation
        scope = lambda_svc._account_region_from_function_config(config)
        threading.Thread(
            target=self._run, args=(function, config, invocation, scope), daemon=True
        ).start()
        return invocation

    def _run(
        self, function: Function, config: Function, invocation: Invocation, scope: tuple[str, str]
    ) -> None:
        set_request_account_id(scope[0])
        set_request_region(scope[1])
        started = time.monotonic()
        try:
            environment = self._acquire(function, config, scope)
            environment.run(invocation)
            invocation.log = environment.new_log()
            self._release(config, environment)
            lambda_svc._emit_lambda_logs(
                {"config": config},
                invocation.id,
                invocation.log,
                invocation.failed,
                int((time.monotonic() - started) * 1000),
            )
        except (EmulatorError, OSError, ValueError) as error:
            invocation.put(Failure("Runtime.InvalidEntrypoint", str(error)))
        finally:
            invocation.finish()  # or its caller would wait forever

    def _acquire(
        self, function: Function, config: Function, scope: tuple[str, str]
    ) -> ExecutionEnvironment:
        key = _key(config)
        with self._lock:
            idle = self._idle.get(key, [])
            while idle:
                environment = idle.pop()
                if environment.alive:
                    return environment
                self._forget(environment)
            self._retire(config, key)
        code = function.get("code_zip")
        if not code:
            raise EmulatorError(f"{config['FunctionName']} has no code")
        runtime = self._folder / "runtime"
        account, region = scope
        with self._lock:
            managed_runtime.prepare(runtime)
        environment = ExecutionEnvironment(
            self._folder / f"{config['FunctionName']}-{uuid.uuid4().hex[:8]}",
            runtime,
            config,
            code,
            {
                "AWS_ENDPOINT_URL": self._endpoint,
                "AWS_REGION": region,
                "AWS_DEFAULT_REGION": region,
                "AWS_ACCESS_KEY_ID": account,
                "AWS_SECRET_ACCESS_KEY": "local",
                **self._variables,
            },
        )
        with self._lock:
            self._all[id(environment)] = environment
        return environment

    def _release(self, config: Function, environment: ExecutionEnvironment) -> None:
        with self._lock:
            if environment.alive and environment.api.init_failure is None:
                self._idle.setdefault(_key(config), []).append(environment)
            else:
                self._forget(environment)

    def _retire(self, config: Function, key: str) -> None:
        """End idle environments of the function that have another configuration or code."""
        name = key.rpartition("#")[0]
        for other in [each for each in self._idle if each != key and each.startswith(name + "#")]:
            for environment in self._idle.pop(other):
                self._forget(environment)

    def _forget(self, environment: ExecutionEnvironment) -> None:
        self._all.pop(id(environment), None)
        environment.stop()
        shutil.rmtree(environment.folder, ignore_errors=True)

    def end(self, account: str, region: str, name: str) -> None:
        """End the environments of a function that is deleted."""
        arn = f"arn:aws:lambda:{region}:{account}:function:{name}"
        with self._lock:
            for key in [each for each in self._idle if each.startswith(f"{arn}#")]:
                del self._idle[key]
            for environment in list(self._all.values()):
                if _base(environment.config) == arn:
                    self._forget(environment)

    def stop(self) -> None:
        """End every environment."""
        with self._lock:
            for environment in list(self._all.values()):
                with contextlib.suppress(OSError):
                    self._forget(environment)

    def describe(self) -> list[dict[str, Any]]:
        """Return the environments that live: which function, which process, how much memory."""
        with self._lock:
            return [
                {
                    "function": each.config["FunctionName"],
                    "pid": each.process.pid,
                    "memory_mib": round(each.memory_mib(), 1),
                    "log": str(each.folder / "log"),
                }
                for each in self._all.values()
            ]


def _key(config: Function) -> str:
    """Return a name of everything that an environment is started with."""
    names = ("CodeSha256", "Environment", "MemorySize", "Handler", "Runtime", "Timeout")
    made_of = json.dumps([config.get(name) for name in names], sort_keys=True)
    return f"{_base(config)}#{uuid.uuid5(uuid.NAMESPACE_OID, made_of)}"


def _base(config: Function) -> str:
    """Return the ARN of the function itself, without version or alias."""
    return ":".join(str(config["FunctionArn"]).split(":")[:7])
