#!/bin/bash
# The ranks of one node; train.sh lets srun start this on each node of its job. One torchrun a node:
# they meet at the job's first node.
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}"
set -a
# shellcheck source=/dev/null
. "$ROOT/etc/isomorph/cluster.env"
# shellcheck source=/dev/null
. "$ROOT/etc/isomorph/node.env"
set +a
SHARED="$ROOT$ISOMORPH_FSX_PATH"
# One torchrun has the threads of a node for as many ranks; on GPUs they only feed them.
threads=$(($(nproc) / JOB_RANKS))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"

words=(--config "$JOB_CONFIG" --data "$SHARED/data/$JOB_DATA" --checkpoints "$SHARED/checkpoints/$JOB_NAME"
  --steps "$JOB_STEPS" --checkpoint-every "$JOB_CHECKPOINT_EVERY" --seed "$JOB_SEED")
[[ "$JOB_CONFIG" != *.json ]] || words[1]="$SHARED/data/$JOB_CONFIG"
[ "$JOB_EXPERT_PARALLEL" = 0 ] || words+=(--expert-parallel "$JOB_EXPERT_PARALLEL")
[ "$JOB_BATCH" = 0 ] || words+=(--batch "$JOB_BATCH")
[ "$JOB_PEAK_TFLOPS" = 0 ] || words+=(--peak-tflops "$JOB_PEAK_TFLOPS")

cd "$ROOT/opt/isomorph/code"
# Slurm tells all processes of a step: the ranks save, and this waits for them.
trap 'STOPPED=1' TERM
# Who stopped the run before its ranks began could tell nobody but the batch script.
[ ! -e "$SHARED/jobs/$SLURM_JOB_ID.stop" ] || exit 0
"$ROOT/opt/isomorph/venv/bin/python" -m torch.distributed.run --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "$JOB_RANKS" --max-restarts "$JOB_RESTARTS" --local-addr "$ISOMORPH_NODE_ADDRESS" \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv-endpoint "$1" \
  -m model_code.moe.train "${words[@]}" &
run=$!
[ -z "${STOPPED:-}" ] || kill -TERM "$run" 2>/dev/null || true # told before there was a rank
status=0
wait "$run" || status=$? # a signal ends it early
while kill -0 "$run" 2>/dev/null; do
  status=0
  wait "$run" || status=$?
done
# srun ends a step when it hears of a failed rank, and drops what that rank said last if it comes later.
[ "$status" = 0 ] || sleep 2
exit "$status"
