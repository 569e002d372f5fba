#!/bin/bash
# What `isomorph start`, `status`, `logs` and `stop` run on the controller. Says what it found as
# JSON, one object a line; a mistake is one line `isomorph: ...` and another exit code than 0.
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}"
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
MOST_BYTES=24000 # of a log in one answer: Session Manager cuts what is much longer

exec 3>&1 # what a $(...) around a function must not swallow
fail() {
  echo "isomorph: $1" >&3
  exit 1
}

[ -f "$ROOT/etc/isomorph/cluster.env" ] || fail "on_create.sh has not run on this node"
set -a
# shellcheck source=/dev/null
. "$ROOT/etc/isomorph/cluster.env"
set +a
SHARED="$ROOT$ISOMORPH_FSX_PATH"
JOBS="$SHARED/jobs"
export PATH="$PATH:/opt/slurm/bin"

# Sessions come as root; jobs belong to the cluster's user, where it names one.
as_user() {
  if [ -n "${ISOMORPH_USER:-}" ]; then runuser -u "$ISOMORPH_USER" -- "$@"; else "$@"; fi
}

known() { # job id
  [[ "$1" =~ ^[0-9]+$ ]] || fail "'$1' is no job's number; isomorph status shows the jobs"
  [ -f "$JOBS/$1.json" ] || fail "there is no job $1 on $ISOMORPH_CLUSTER; isomorph status shows the jobs"
}

# What Slurm says of jobs that it still knows, else what each has noted at its end. While one is
# COMPLETING nobody knows whether it has ended or goes back into the queue.
tell() { # the row of each, or its state alone; files of jobs
  local what="$1" queue
  shift
  # Slurm is asked once for all: a cluster may have seen thousands of jobs.
  queue="$(squeue --noheader --format '%i %T' 2>&1)" || fail "Slurm does not answer: $(tail -n 1 <<<"$queue")"
  python3 -IS - "$what" "$@" 4<<<"$queue" <<'PYTHON'
import json, pathlib, sys
what, *files = sys.argv[1:]
with open(4, encoding="utf-8") as file:
    queue = {words[0]: words[-1] for words in map(str.split, file) if words}
for path in map(pathlib.Path, files):
    slurms = queue.get(path.stem)
    if slurms in ("PENDING", "CONFIGURING"):
        state = "pending"
    elif slurms:
        state = "running"
    else:
        try:
            noted = json.loads(path.with_suffix(".state").read_text("utf-8"))["state"]
        except (OSError, ValueError, KeyError):
            noted = "stopped"  # Slurm has let it go before it began
        state = "lost" if noted == "running" else noted
    print(state if what == "state" else json.dumps(json.loads(path.read_text("utf-8")) | {"state": state}))
PYTHON
}

start() { # name nodes, then NAME=VALUE for train.sh
  local name="$1" nodes="$2" id other
  shift 2
  for each in "$@" "JOB_NAME=$name" "nodes=$nodes"; do
    [[ "$each" =~ ^[A-Za-z_]+=[A-Za-z0-9._/-]+$ ]] || fail "'$each' is not NAME=VALUE of letters, digits and ._/-"
  done
  other="$(squeue --noheader --name "$name" --format %i 2>&1)" || fail "Slurm does not answer: $(tail -n 1 <<<"$other")"
  other="$(head -n 1 <<<"$other")"
  [ -z "$other" ] || fail "job $other, $name, runs already: isomorph logs moe --job $other, or isomorph stop moe --job $other"
  for each in "$@" "JOB_NAME=$name"; do export "${each?}"; done
  id="$(as_user sbatch --parsable --export=ALL --job-name "$name" --nodes "$nodes" --chdir "$SHARED" \
    --output "$SHARED/logs/%j.log" "$HERE/train.sh" 2>&1)" || fail "Slurm refuses the job: $(tail -n 1 <<<"$id")"
  id="$(tail -n 1 <<<"$id")"
  [[ "$id" =~ ^[0-9]+$ ]] || fail "Slurm answered '$id' instead of a job's number"
  SLURM_VERSION="$(sbatch --version)" python3 -IS - "$id" "$name" "$nodes" "$@" >"$JOBS/$id.json" <<'PYTHON'
import datetime, json, os, sys
job, name, nodes, *settings = sys.argv[1:]
told = {"job": int(job), "name": name, "nodes": int(nodes), "slurm": os.environ["SLURM_VERSION"], "begun": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
print(json.dumps(told | {part.partition("=")[0].removeprefix("JOB_").lower(): part.partition("=")[2] for part in settings}))
PYTHON
  cat "$JOBS/$id.json"
}

status() {
  local files=("$JOBS"/*.json) # before Slurm is asked: it knows all of these
  [ -f "${files[0]}" ] || return 0
  tell row "${files[@]}"
}

# Part of a job's log from a byte on, with its state: {"state", "next", "text"}.
logs() { # job id, first byte
  local now
  known "$1"
  now="$(tell state "$JOBS/$1.json")" # before the log is read: when it has ended, the log is whole
  python3 -IS - "$SHARED/logs/$1.log" "$2" "$MOST_BYTES" "$now" <<'PYTHON'
import json, sys
path, first, most, state = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
try:
    with open(path, "rb") as file:
        file.seek(first)
        read = file.read(most)
except FileNotFoundError:
    read = b""
cut = len(read) if len(read) < most else read.rfind(b"\n") + 1 or len(read)
print(json.dumps({"state": state, "next": first + cut, "text": read[:cut].decode("utf-8", "replace")}))
PYTHON
}

stop() { # job id
  known "$1"
  local now
  now="$(tell state "$JOBS/$1.json")"
  case "$now" in
    pending) as_user scancel "$1" ;;
    running)
      # Ranks that start after this find it, and end: no signal would reach them.
      as_user touch "$JOBS/$1.stop"
      # The script is told, then its ranks, which save a checkpoint, however long that takes. Not with
      # --full: it tells srun too, and srun kills the ranks then.
      as_user scancel --signal=TERM --batch "$1" || fail "Slurm does not stop job $1"
      as_user scancel --signal=TERM "$1" 2>/dev/null || true # before srun nobody; the job may have ended
      ;;
    *) fail "job $1 does not run: it is $now" ;;
  esac
  echo "{\"job\": $1}"
}

case "${1:-}" in
  start | status | logs | stop) "$@" ;;
  *) fail "'${1:-}' is not a word of job.sh; there are start, status, logs, stop" ;;
esac
