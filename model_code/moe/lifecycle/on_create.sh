#!/bin/bash
# HyperPod runs this as root on every node of the cluster when the node is new, in the folder with
# the other files of its prefix in S3. May run again: each phase leaves alone what is done already.
# A phase is tried several times; what cannot be mended by trying again ends with code 3.
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}" # empty on HyperPod; elsewhere the folder that stands for the node
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
LOG="$ROOT/var/log/provision/provisioning.log"
ETC="$ROOT/etc/isomorph"
CONFIG="${SAGEMAKER_RESOURCE_CONFIG_PATH:-$ROOT/opt/ml/config/resource_config.json}"
TRIES="${ISOMORPH_TRIES:-5}"
BACKOFF="${ISOMORPH_BACKOFF_S:-2}" # seconds before the second try, doubled before each further one
FINAL=3

fail() {
  trap - ERR
  marker "${PHASE:-settings}" failed "$1" || true
  send_markers || true
  echo "isomorph: $1"
  exit 1
}
trap 'fail "line $LINENO of on_create.sh failed: $BASH_COMMAND"' ERR

# From settings.json, which the stack puts beside this script, and the parameter that it names, to
# lines NAME=VALUE for the scripts. A shell reads them, so values are held to harmless characters.
write_settings() { # FILE of JSON, what it is called in a message, FILE of lines to add to
  python3 -IS - "$1" "$2" <<'PYTHON' >>"$3" 2>"$ETC/error" || fail "$(tail -n 1 "$ETC/error")"
import json, re, sys
path, called = sys.argv[1:]
try:
    with open(path, encoding="utf-8") as file:
        given = json.load(file)
    lustre = given.get("lustre") or {}
except (OSError, ValueError, AttributeError) as error:
    sys.exit(f"{called} cannot be read: {error}")
names = {
    "region": "AWS_REGION", "environment": "ISOMORPH_ENVIRONMENT", "cluster": "ISOMORPH_CLUSTER", "model": "ISOMORPH_MODEL",
    "metric_namespace": "ISOMORPH_METRIC_NAMESPACE", "parameter": "ISOMORPH_PARAMETER", "code": "ISOMORPH_CODE_URL",
    "code_sha256": "ISOMORPH_CODE_SHA256", "wheelhouse": "ISOMORPH_WHEELHOUSE_URL",
    "wheelhouse_sha256": "ISOMORPH_WHEELHOUSE_SHA256", "python": "ISOMORPH_PYTHON", "user": "ISOMORPH_USER",
    "orchestrator": "ISOMORPH_ORCHESTRATOR",
    "srun_options": "ISOMORPH_SRUN_OPTIONS", "accounting": "ISOMORPH_ACCOUNTING", "mlflow": "MLFLOW_TRACKING_URI",
    "data_bucket": "ISOMORPH_DATA_BUCKET", "log_group": "ISOMORPH_LOG_GROUP",
}
found = {variable: given[name] for name, variable in names.items() if given.get(name) is not None}
for name, variable in (("dns_name", "DNS"), ("mount_name", "MOUNT"), ("mount_path", "PATH")):
    if name in lustre:
        found[f"ISOMORPH_FSX_{variable}"] = lustre[name]
for variable, value in found.items():
    if not re.fullmatch(r"[A-Za-z0-9._:/@%+=,-]*", str(value)):
        sys.exit(f"{called} has {value!r} for {variable}; allowed are letters, digits and ._:/@%+=,-")
    print(f"{variable}={value}")
PYTHON
}

read_settings() {
  local try name
  mkdir -p "$ETC"
  : >"$ETC/cluster.env.new"
  write_settings "$HERE/settings.json" settings.json "$ETC/cluster.env.new"
  load "$ETC/cluster.env.new"
  export AWS_DEFAULT_REGION="${AWS_REGION:-}" # what version 1 of the AWS CLI reads
  for ((try = 1; ; try++)); do
    aws ssm get-parameter --name "${ISOMORPH_PARAMETER:-}" --query Parameter.Value --output text \
      >"$ETC/parameter.json" && break
    [ "$try" -lt "$TRIES" ] || fail "cannot read the parameter '${ISOMORPH_PARAMETER:-}' after $try tries"
    sleep $((BACKOFF * 2 ** (try - 1)))
  done
  write_settings "$ETC/parameter.json" "the parameter $ISOMORPH_PARAMETER" "$ETC/cluster.env.new"
  load "$ETC/cluster.env.new"
  for name in ISOMORPH_CLUSTER ISOMORPH_LOG_GROUP ISOMORPH_CODE_URL ISOMORPH_CODE_SHA256 ISOMORPH_PYTHON \
    ISOMORPH_FSX_PATH; do
    [ -n "${!name:-}" ] || fail "$name is neither in settings.json nor in the parameter $ISOMORPH_PARAMETER"
  done
  mv "$ETC/cluster.env.new" "$ETC/cluster.env"
}

load() { # FILE
  set -a
  # shellcheck source=/dev/null
  . "$1"
  set +a
}

# Which node this is: the one of resource_config.json whose address is one of ours.
find_node() {
  [ -f "$CONFIG" ] || fail "$CONFIG does not exist; HyperPod writes it before it runs this script"
  python3 -IS - "$CONFIG" "$HERE/settings.json" "$(hostname -I)" >"$ETC/node.env.new" 2>"$ETC/error" <<'PYTHON' ||
import json, re, sys
path, settings, mine = sys.argv[1], sys.argv[2], sys.argv[3].split()
kinds = {"controller": "controller", "login": "login"}
try:
    with open(settings, encoding="utf-8") as file:
        told = json.load(file)
    about = told["groups"]
    with open(path, encoding="utf-8") as file:
        groups = json.load(file)["InstanceGroups"]
    nodes = [(about[group["Name"]], group, node) for group in groups for node in group["Instances"]]
    own = [each for each in nodes if each[2]["CustomerIpAddress"] in mine]
    heads = [node["CustomerIpAddress"] for said, _, node in nodes if said["role"] == "controller"]
except (KeyError, TypeError, ValueError) as error:
    sys.exit(f"{path} does not fit settings.json: {type(error).__name__}: {error}")
if not own:
    sys.exit(f"none of this node's addresses, {', '.join(mine)}, is in {path}")
if not heads and told.get("orchestrator") != "eks":
    sys.exit(f"{path} has no instance group whose role in settings.json is controller")
said, group, node = own[0]
found = {
    "NODE_TYPE": kinds.get(said["role"], "compute"),
    "NODE_GROUP": group["Name"],
    "NODE_ID": node["InstanceId"],
    "NODE_ADDRESS": node["CustomerIpAddress"],
    "NODE_INSTANCE_TYPE": group["InstanceType"],
    "DEVICES": str(said.get("devices", 1)),
    "CONTROLLER_ADDRESS": heads[0] if heads else "none",
}
for name, value in found.items():
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", value):
        sys.exit(f"{path} has {value!r} where the {name.lower()} should be")
    print(f"ISOMORPH_{name}={value}")
PYTHON
    fail "$(tail -n 1 "$ETC/error")"
  mv "$ETC/node.env.new" "$ETC/node.env"
  load "$ETC/node.env"
}

# Markers go to the log on the node at once and to CloudWatch in the background, several in one call:
# each call of the AWS CLI takes a second. CloudWatch being away must not keep a node from coming up.
PENDING="$ROOT/var/log/provision/markers"
SENT=0
marker() { # phase, state, what was said
  echo "phase $1: $2${3:+: $3}"
  [ -n "${ISOMORPH_NODE_ID:-}" ] || return 0
  printf '%s\0' "$(date +%s%3N)" "$1" "$2" "${3:-}" >>"$PENDING"
  if [ $((SECONDS - SENT)) -ge 15 ]; then
    SENT=$SECONDS
    send_markers >/dev/null 2>&1 &
  fi
}

send_markers() {
  [ -n "${ISOMORPH_NODE_ID:-}" ] || return 0
  (
    flock 9
    [ -s "$PENDING" ] || exit 0
    mv "$PENDING" "$PENDING.sent" # what is marked from now on goes with the next call
    python3 -IS - "$PENDING.sent" >"$PENDING.json" <<'PYTHON'
import json, os, sys
with open(sys.argv[1], encoding="utf-8", errors="replace") as file:
    words = file.read().split("\0")[:-1]
node = {name.lower(): os.environ[f"ISOMORPH_{name}"] for name in ("CLUSTER", "NODE_GROUP", "NODE_ID", "NODE_TYPE")}
rows = []
for now, phase, state, said in zip(*[iter(words)] * 4):
    told = {"event": "phase", "phase": phase, "state": state, "said": said}
    rows.append({"timestamp": int(now), "message": json.dumps(told | node)})
print(json.dumps(rows))
PYTHON
    stream="lifecycle/$ISOMORPH_NODE_GROUP/$ISOMORPH_NODE_ID"
    [ -f "$PENDING.stream" ] ||
      aws logs create-log-stream --log-group-name "$ISOMORPH_LOG_GROUP" --log-stream-name "$stream" 2>/dev/null || true
    touch "$PENDING.stream"
    aws logs put-log-events --log-group-name "$ISOMORPH_LOG_GROUP" --log-stream-name "$stream" \
      --log-events "file://$PENDING.json" >/dev/null ||
      echo "phase markers did not reach $ISOMORPH_LOG_GROUP; they are in $LOG"
  ) 9>"$PENDING.lock"
}

phase() { # name, script, its arguments
  PHASE="$1"
  local script="$HERE/$2" try code begun=$SECONDS said
  shift 2
  marker "$PHASE" start
  for ((try = 1; ; try++)); do
    code=0
    bash "$script" "$@" 2>&1 | tee "$ETC/phase.log" || code="${PIPESTATUS[0]}"
    [ "$code" -ne 0 ] || break
    said="$(grep '^isomorph: ' "$ETC/phase.log" | tail -n 1)" || said="exit code $code"
    [ "$code" -ne "$FINAL" ] || fail "$PHASE: ${said#isomorph: }"
    [ "$try" -lt "$TRIES" ] || fail "$PHASE, after $try tries: ${said#isomorph: }"
    echo "phase $PHASE: try $try failed, next in $((BACKOFF * 2 ** (try - 1))) s"
    sleep $((BACKOFF * 2 ** (try - 1)))
  done
  marker "$PHASE" "done" "$((SECONDS - begun)) s, try $try"
}

main() {
  echo "$(date -u +%FT%TZ) on_create.sh begins"
  read_settings
  find_node
  echo "this node is $ISOMORPH_NODE_ID, $ISOMORPH_NODE_TYPE, in group $ISOMORPH_NODE_GROUP of $ISOMORPH_CLUSTER"
  phase check check_node.sh
  if [ "${ISOMORPH_ORCHESTRATOR:-slurm}" = slurm ]; then # pods bring their code and mount by themselves
    phase file-system mount_fsx.sh
    phase code install_code.sh
    phase slurm set_up_slurm.sh
  fi
  PHASE=all
  marker all "done"
  wait
  send_markers
}

mkdir -p "$ROOT/var/log/provision"
code=0
main 2>&1 | tee -a "$LOG" || code="${PIPESTATUS[0]}"
exit "$code"
