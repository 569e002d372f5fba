"""A small fleet: what its machines run, its template, and a deployed one."""

from dataclasses import dataclass
from typing import Any

import httpx

from tests.local_aws.conftest import Emulator, until
from tests.local_aws.templates import Template, attribute, ref, resource

SERVER = """
import http.server, json, os, signal, sys, time

def drain(*_):
    print("isomorph: drained", flush=True)
    sys.exit(0)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        broken = os.path.exists(os.environ["ISOMORPH_ROOT"] + "/broken")
        self.send_response(500 if broken and self.path == "/health" else 200)
        self.end_headers()
        about = {"version": VERSION, "pid": os.getpid(), "path": self.path, "cwd": os.getcwd(),
                 "environment": dict(os.environ), "executable": sys.executable,
                 "modules": sys.path}
        self.wfile.write(json.dumps(about).encode())

signal.signal(signal.SIGTERM, drain)
port = int(os.environ["ISOMORPH_PORT_OVERRIDE"])
http.server.ThreadingHTTPServer.request_queue_size = 256
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

BOOT = """#!/bin/bash
set -eu
mkdir -p "$ISOMORPH_ROOT/srv" "$ISOMORPH_ROOT/etc/systemd/system" "$ISOMORPH_ROOT/etc/web"
cat > "$ISOMORPH_ROOT/srv/server.py" <<'END'
VERSION = "{version}"
{server}
END
echo 'FROM_FILE="a value"' > "$ISOMORPH_ROOT/etc/web/web.env"
cat > "$ISOMORPH_ROOT/etc/systemd/system/web.service" <<END
[Unit]
Description=A small server
[Service]
ExecStart=$ISOMORPH_ROOT/bin/python3 $ISOMORPH_ROOT/srv/server.py
WorkingDirectory=$ISOMORPH_ROOT/srv
Environment=FROM_UNIT=yes
EnvironmentFile=$ISOMORPH_ROOT/etc/web/web.env
StateDirectory=web
Restart=always
RestartSec=0.2
TimeoutStopSec=5
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --now web
{more}
"""

SIGNAL = """
aws cloudformation signal-resource --stack-name {stack} --logical-resource-id Group \\
  --unique-id "$(cat "$ISOMORPH_ROOT/id")" --status {status}
"""

ID = """
imds() { curl -sf -H "X-aws-ec2-metadata-token: $token" "$AWS_EC2_METADATA_SERVICE_ENDPOINT$1"; }
token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \\
  "${AWS_EC2_METADATA_SERVICE_ENDPOINT}latest/api/token")
imds latest/meta-data/instance-id > "$ISOMORPH_ROOT/id"
"""


def boot(version: str = "1", more: str = "true") -> str:
    """Return user data that starts the server, then does more."""
    return BOOT.format(version=version, server=SERVER, more=more)


def template(user_data: str, *, group: dict[str, Any] | None = None, **attributes: Any) -> Template:
    """Return a fleet whose machines run that user data.

    Args:
        user_data: Of the launch template.
        group: Properties of the Auto Scaling group that differ.
        attributes: CreationPolicy and UpdatePolicy of the group.
    """
    scaling = resource(
        "AutoScaling::AutoScalingGroup",
        **{
            "MinSize": "0",
            "MaxSize": "4",
            "DesiredCapacity": "1",
            "LaunchTemplate": {
                "LaunchTemplateId": ref("Template"),
                "Version": attribute("Template", "LatestVersionNumber"),
            },
            "VPCZoneIdentifier": [ref("Subnet")],
            "TargetGroupARNs": [ref("Targets")],
            "HealthCheckType": "ELB",
            "HealthCheckGracePeriod": 60,
            **(group or {}),
        },
    )
    return {
        "Resources": {
            "Vpc": resource("EC2::VPC", CidrBlock="10.0.0.0/16"),
            "Subnet": resource(
                "EC2::Subnet",
                VpcId=ref("Vpc"),
                CidrBlock="10.0.0.0/24",
                AvailabilityZone="us-east-1c",
            ),
            "Template": resource(
                "EC2::LaunchTemplate",
                LaunchTemplateData={
                    "ImageId": "ami-12345678",
                    "InstanceType": "c7i.large",
                    "UserData": {"Fn::Base64": user_data},
                },
            ),
            "Targets": resource(
                "ElasticLoadBalancingV2::TargetGroup",
                VpcId=ref("Vpc"),
                Port=8080,
                Protocol="HTTP",
                TargetType="instance",
                HealthCheckPath="/health",
                HealthCheckIntervalSeconds=1,
                HealthCheckTimeoutSeconds=10,  # a busy computer is not an unhealthy server
                HealthyThresholdCount=2,
                UnhealthyThresholdCount=3,
            ),
            "Balancer": resource(
                "ElasticLoadBalancingV2::LoadBalancer", Scheme="internal", Subnets=[ref("Subnet")]
            ),
            "Listener": resource(
                "ElasticLoadBalancingV2::Listener",
                LoadBalancerArn=ref("Balancer"),
                Port=80,
                Protocol="HTTP",
                DefaultActions=[{"Type": "forward", "TargetGroupArn": ref("Targets")}],
            ),
            "Group": {**scaling, **attributes},
        },
        "Outputs": {"Host": {"Value": attribute("Balancer", "DNSName")}},
    }


DRAIN = {
    "LifecycleHookName": "drain",
    "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
    "HeartbeatTimeout": 30,
    "DefaultResult": "CONTINUE",
}


@dataclass
class Fleet:
    """A deployed fleet."""

    emulator: Emulator
    stack: str

    @property
    def group(self) -> str:
        return self.emulator.resources(self.stack)["Group"].physical_id

    @property
    def host(self) -> str:
        found = self.emulator.client("cloudformation").describe_stacks(StackName=self.stack)
        return str(found["Stacks"][0]["Outputs"][0]["OutputValue"])

    def ask(self, path: str = "/v1/models", host: str | None = None) -> dict[str, Any]:
        answer = httpx.get(
            self.emulator.running.endpoint + path, headers={"Host": host or self.host}
        )
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def pid(self) -> int | None:
        """Return the process that answers, if one does."""
        try:
            return int(self.ask()["pid"])
        except httpx.HTTPError:
            return None

    def machines(self) -> list[dict[str, Any]]:
        group = self.group
        return [one for one in self.emulator.running.machines() if one["group"] == group]

    def ready(self, count: int = 1) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]] | None:
            found = self.machines()
            good = [one for one in found if one["ready"]]
            return good if len(good) == count == len(found) else None

        return until(look, f"{count} machines that serve")

    def scale(self, count: int) -> None:
        self.emulator.client("autoscaling").set_desired_capacity(
            AutoScalingGroupName=self.group, DesiredCapacity=count
        )
