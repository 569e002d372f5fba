#!/bin/bash
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# The batch script of a training run; job.sh submits it. On the job's first node it makes the shards
# if there are none, and starts ranks.sh on every node. torchrun starts ranks again that died, and the
# trainer goes on from the last whole checkpoint; so it does when Slurm requeues the job.
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}"
set -a
# shellcheck source=/dev/null
. "$ROOT/etc/isomorph/cluster.env"
# shellcheck source=/dev/null
. "$ROOT/etc/isomorph/node.env"
set +a
export AWS_DEFAULT_REGION="$AWS_REGION"
SHARED="$ROOT$ISOMORPH_FSX_PATH"
PYTHON="$ROOT/opt/isomorph/venv/bin/python"
DATA="$SHARED/data/$JOB_DATA"
STATE="$SHARED/jobs/$SLURM_JOB_ID.state"

note() { # state, exit code
  printf '{"state": "%s", "exit": %s, "time": "%s"}\n' "$1" "$2" "$(date -u +%FT%TZ)" >"$STATE.new"
  mv "$STATE.new" "$STATE"
}

# shellcheck disable=SC2329  # the trap calls it
end() {
  local code=$?
  if [ -n "${STOPPED:-}" ]; then
    note stopped "$code"
  elif [ "$code" -eq 0 ]; then
    note "done" 0
  else
    note failed "$code"
  fi
}
trap end EXIT
trap 'STOPPED=1; [ -z "${MAKER:-}" ] || kill "$MAKER" 2>/dev/null || true' TERM INT
rm -f "$SHARED/jobs/$SLURM_JOB_ID.stop" # of an older job of that number; what stops this one comes by signal too
note running 0

cd "$ROOT/opt/isomorph/code"
if ! compgen -G "$DATA/*.tokens" >/dev/null; then
  # What was put into the bucket just now comes through the file system's link to it.
  for ((waited = 0; ; waited++)); do
    texts=()
    if compgen -G "$DATA/text/*" >/dev/null; then texts=("$DATA"/text/*); fi
    [ "${#texts[@]}" -lt "$JOB_TEXTS" ] || break
    if [ "$waited" -ge 120 ]; then
      echo "isomorph: $DATA/text has ${#texts[@]} of $JOB_TEXTS texts after $waited s"
      exit 1
    fi
    sleep 1
    [ -z "${STOPPED:-}" ] || exit 0
  done
  words=(--out "$DATA.new" --vocabulary "$JOB_VOCABULARY" --held-out "$JOB_HELD_OUT")
  [ ! -f "$DATA/tokenizer.given" ] || words=(--out "$DATA.new" --tokenizer "$DATA/tokenizer.given" --held-out "$JOB_HELD_OUT")
  rm -rf "$DATA.new"
  # In the background: a shell hears no signal while it waits for what is before it.
  "$PYTHON" -m model_code.moe.train.shards "${texts[@]}" "${words[@]}" &
  MAKER=$!
  made=0
  wait "$MAKER" || made=$?
  MAKER=""
  [ -z "${STOPPED:-}" ] || exit 0
  [ "$made" -eq 0 ] || exit "$made"
  mkdir -p "$DATA"
  mv "$DATA.new"/* "$DATA"
  rmdir "$DATA.new"
fi

head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
address="$(scontrol --oneliner show node "$head" | grep -oE 'NodeAddr=[^ ]+' | cut -d= -f2)"
read -r -a options <<<"${ISOMORPH_SRUN_OPTIONS:-}"
[ -z "${STOPPED:-}" ] || exit 0
# The port is the job's own, should two jobs share a node.
srun "${options[@]}" --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
  bash "$ROOT/opt/isomorph/code/model_code/moe/lifecycle/ranks.sh" "$address:$((20000 + SLURM_JOB_ID % 10000))" &
steps=$!
# A signal of scancel ends the first wait; it has told the ranks too: they save a checkpoint and end.
code=0
wait "$steps" || code=$?
while kill -0 "$steps" 2>/dev/null; do
  code=0
  wait "$steps" || code=$?
done
exit "$code"
