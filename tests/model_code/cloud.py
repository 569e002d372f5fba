"""As much of AWS as a booting node talks to: instance metadata, signals, lifecycle actions.

`python cloud.py PORT FOLDER` notes each call as a line in FOLDER/calls, and takes the lifecycle
state from FOLDER/state. It is a program, so that it can run where the network is cut off.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

MACHINE, TOKEN = "i-0123456789abcdef0", "a-token"
_ANSWERS = {
    "SignalResource": "",
    "DescribeAutoScalingInstances": (
        "<DescribeAutoScalingInstancesResult><AutoScalingInstances><member>"
        f"<InstanceId>{MACHINE}</InstanceId><AutoScalingGroupName>the-group</AutoScalingGroupName>"
        "<AvailabilityZone>us-east-1a</AvailabilityZone><LifecycleState>Pending:Wait"
        "</LifecycleState><HealthStatus>HEALTHY</HealthStatus>"
        "<ProtectedFromScaleIn>false</ProtectedFromScaleIn></member></AutoScalingInstances>"
        "</DescribeAutoScalingInstancesResult>"
    ),
    "CompleteLifecycleAction": "<CompleteLifecycleActionResult/>",
}


class Cloud(BaseHTTPRequestHandler):
    """Answers; `folder` is set by serve()."""

    folder: Path

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        seconds = int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"])
        known = self.path == "/imds/latest/api/token" and 0 < seconds <= 21600
        self._answer(200 if known else 404, TOKEN)

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            self._answer(401, "no token")
            return
        state = self.folder / "state"
        facts = {"instance-id": MACHINE}
        if state.exists():
            facts["autoscaling/target-lifecycle-state"] = state.read_text()
        fact = facts.get(self.path.removeprefix("/imds/latest/meta-data/"))
        self._answer(404 if fact is None else 200, fact or "")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        call = {name: value for name, [value] in parse_qs(body).items() if name != "Version"}
        with (self.folder / "calls").open("a") as calls:
            calls.write(json.dumps(call) + "\n")
        action = call["Action"]
        if (self.folder / f"refuse-{action}").exists():
            error = "<Code>ValidationError</Code><Message>nobody waits</Message>"
            self._answer(400, f"<ErrorResponse><Error>{error}</Error></ErrorResponse>")
            return
        self._answer(200, f"<{action}Response>{_ANSWERS[action]}</{action}Response>")

    def _answer(self, code: int, body: str) -> None:
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def serve(port: int, folder: Path) -> ThreadingHTTPServer:
    """Return a server that is bound but not running yet."""
    return ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Cloud,), {"folder": folder}))


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()
