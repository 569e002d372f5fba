"""The first script that a node runs: fetch, verify, unpack, hand over."""

import re
from collections.abc import Mapping

from aws_cdk import Token

_SAFE = re.compile(r"[A-Za-z0-9._:/@%+=,-]*")

_SCRIPT = """\
#!/bin/bash
# Fetches this node's code and its wheels, checks both digests, and runs the code's own boot.sh.
set -Eeuo pipefail
export AWS_REGION="${{AWS_REGION:-{region}}}"
export AWS_DEFAULT_REGION="$AWS_REGION" # what version 1 of the AWS CLI reads
ROOT="${{ISOMORPH_ROOT:-}}"  # empty on EC2; elsewhere the folder that stands for the machine
HOME_DIR="$ROOT/opt/isomorph"
POINTER='{pointer}'

instance_id() {{
  python3 - <<'PYTHON'
import os, urllib.request as http
base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
def ask(path, method, name, value):
    url = base.rstrip("/") + "/latest/" + path
    request = http.Request(url, method=method, headers={{name: value}})
    return http.urlopen(request, timeout=5).read().decode()
token = ask("api/token", "PUT", "X-aws-ec2-metadata-token-ttl-seconds", "60")
print(ask("meta-data/instance-id", "GET", "X-aws-ec2-metadata-token", token))
PYTHON
}}

fail() {{
  trap - ERR
  echo "isomorph: $1" >&2
  aws cloudformation signal-resource --stack-name '{stack}' --logical-resource-id '{resource}' \\
    --unique-id "$(instance_id || hostname)" --status FAILURE || true
  exit 1
}}
trap 'fail "line $LINENO of the user data failed"' ERR

fetch() {{  # URL, sha256, name
  local zip="$HOME_DIR/$3.zip" try
  for try in 1 2 3 4 5; do
    aws s3 cp --only-show-errors "$1" "$zip" && break
    [ "$try" -lt 5 ] || fail "cannot fetch $1 after $try tries"
    sleep $((2 ** try))
  done
  echo "$2  $zip" | sha256sum --check --status || fail "$1 does not have the sha256 $2"
  rm -rf "${{HOME_DIR:?}}/$3"
  python3 -m zipfile -e "$zip" "$HOME_DIR/$3"
  rm "$zip"
}}

case "$POINTER" in
  s3://*/'#sha256='*) ;;
  *) fail "the weights pointer is '$POINTER'; it must be s3://BUCKET/PREFIX/#sha256=DIGEST" ;;
esac
mkdir -p "$HOME_DIR" "$ROOT/etc/isomorph"
fetch '{code_url}' {code_sha256} code
fetch '{wheelhouse_url}' {wheelhouse_sha256} wheelhouse
cat > "$ROOT/etc/isomorph/fleet.env" <<ENV
AWS_REGION=$AWS_REGION
ISOMORPH_WEIGHTS=${{POINTER%%#*}}
ISOMORPH_WEIGHTS_SHA256=${{POINTER##*=}}
{settings}
ENV
exec bash "$HOME_DIR/code/model_code/common/node/boot.sh"
"""


def render_user_data(
    *,
    region: str,
    pointer: str,
    stack: str,
    resource: str,
    code: tuple[str, str],
    wheelhouse: tuple[str, str],
    settings: Mapping[str, str | int],
) -> str:
    """Return the script.

    Args:
        region: Used unless AWS_REGION is in the node's environment.
        pointer: Where the weights are: s3://bucket/prefix/#sha256=DIGEST.
        stack: Hears a FAILURE signal if the script fails.
        resource: Logical id, in that stack, of the group that waits for the signal.
        code: URL and sha256 of the zip with boot.sh.
        wheelhouse: URL and sha256 of the zip with the wheels.
        settings: The lines of fleet.env, such as ISOMORPH_SLOTS.
    """
    for name, value in settings.items():
        if not Token.is_unresolved(value) and not _SAFE.fullmatch(str(value)):
            raise ValueError(f"{name} cannot be {value!r}; allowed: letters, digits and ._:/@%+=,-")
    return _SCRIPT.format(
        region=region,
        pointer=pointer,
        stack=stack,
        resource=resource,
        code_url=code[0],
        code_sha256=code[1],
        wheelhouse_url=wheelhouse[0],
        wheelhouse_sha256=wheelhouse[1],
        settings="\n".join(f"{name}={value}" for name, value in settings.items()),
    )
