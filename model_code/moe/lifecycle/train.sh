#!/bin/bash
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# The batch script of a training run; job.sh submits it. On the job's first node it makes the shards
# if there are none, and starts torchrun on every node. torchrun starts ranks again that died, and
# the trainer goes on from the last whole checkpoint; so it does when Slurm requeues the job.
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
trap 'STOPPED=1' TERM INT
note running 0

cd "$ROOT/opt/isomorph/code"
if ! compgen -G "$DATA/*.tokens" >/dev/null; then
  texts=()
  if compgen -G "$DATA/text/*" >/dev/null; then texts=("$DATA"/text/*); fi
  words=(--out "$DATA.new" --vocabulary "$JOB_VOCABULARY")
  [ ! -f "$DATA/text-tokenizer.json" ] || words=(--out "$DATA.new" --tokenizer "$DATA/text-tokenizer.json")
  rm -rf "$DATA.new"
  "$PYTHON" -m model_code.moe.train.shards "${texts[@]}" "${words[@]}"
  mkdir -p "$DATA"
  mv "$DATA.new"/* "$DATA"
  rmdir "$DATA.new"
fi

head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
address="$(scontrol --oneliner show node "$head" | grep -oE 'NodeAddr=[^ ]+' | cut -d= -f2)"
read -r -a options <<<"${ISOMORPH_SRUN_OPTIONS:-}"
# One torchrun a node; they meet at the first one. Ports are the job's own, should two share a node.
srun "${options[@]}" --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
  "$PYTHON" -m torch.distributed.run \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$JOB_RANKS" --max-restarts "$JOB_RESTARTS" \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$address:$((20000 + SLURM_JOB_ID % 10000))" \
  -m model_code.moe.train --config "$JOB_CONFIG" --data "$DATA" --checkpoints "$SHARED/checkpoints/$JOB_NAME" \
  --steps "$JOB_STEPS" --checkpoint-every "$JOB_CHECKPOINT_EVERY" --expert-parallel "$JOB_EXPERT_PARALLEL" &
# `wait` is ended by the signal of scancel, which has told the ranks too: they save and end.
wait $! || { code=$?; wait $! || code=$?; exit "$code"; }
