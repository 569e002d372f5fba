"""A small fleet: what its machines run, and its template."""

from typing import Any

from tests.local_aws.samples import Template, attribute, ref, resource

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
                HealthCheckTimeoutSeconds=1,
                HealthyThresholdCount=2,
                UnhealthyThresholdCount=2,
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
