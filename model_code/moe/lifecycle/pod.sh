#!/bin/bash
# The ranks of one pod of an EKS-orchestrated cluster. The training operator's PET_ variables tell
# torchrun how many pods there are and where they meet. The first pod makes the shards.
set -Eeuo pipefail
DATA="$ISOMORPH_SHARED/data/$JOB_DATA"
# Until the ranks run. This shell is the container's first process, which no signal ends by itself.
trap 'kill $(jobs -p) 2>/dev/null || true; exit 143' TERM

if ! compgen -G "$DATA/*.tokens" >/dev/null && [[ "$HOSTNAME" == *-0 ]]; then
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
  done
  words=(--out "$DATA.new" --vocabulary "$JOB_VOCABULARY" --held-out "$JOB_HELD_OUT")
  [ ! -f "$DATA/tokenizer.given" ] || words=(--out "$DATA.new" --tokenizer "$DATA/tokenizer.given" --held-out "$JOB_HELD_OUT")
  rm -rf "$DATA.new"
  # In the background: a shell hears no signal while it waits for what is before it.
  python3 -m model_code.moe.train.shards "${texts[@]}" "${words[@]}" &
  wait $!
  mkdir -p "$DATA"
  mv "$DATA.new"/* "$DATA"
fi
for ((waited = 0; waited < 600; waited++)); do
  if compgen -G "$DATA/*.tokens" >/dev/null; then break; fi
  sleep 1
done

words=(--config "$JOB_CONFIG" --data "$DATA" --checkpoints "$ISOMORPH_SHARED/checkpoints/$JOB_NAME"
  --steps "$JOB_STEPS" --checkpoint-every "$JOB_CHECKPOINT_EVERY" --seed "$JOB_SEED")
[[ "$JOB_CONFIG" != *.json ]] || words[1]="$ISOMORPH_SHARED/data/$JOB_CONFIG"
[ "$JOB_EXPERT_PARALLEL" = 0 ] || words+=(--expert-parallel "$JOB_EXPERT_PARALLEL")
[ "$JOB_BATCH" = 0 ] || words+=(--batch "$JOB_BATCH")
[ "$JOB_PEAK_TFLOPS" = 0 ] || words+=(--peak-tflops "$JOB_PEAK_TFLOPS")
# Said here as well: of the operator only newer versions tell torchrun how many ranks a pod has.
# torchrun sorts pods by this address: rank 0, whose log `isomorph logs` shows, is in the first.
python3 -m torch.distributed.run --local-addr "${ISOMORPH_POD_ADDRESS:-$HOSTNAME}" --nproc-per-node "$JOB_RANKS" -m model_code.moe.train "${words[@]}" &
run=$!
# Kubernetes tells this shell alone. It tells the ranks, and torchrun ends when they have: older than 2.12, or not told
# otherwise, torchrun kills ranks 30 s after a signal of its own. Again and again, since ranks may just have begun.
# shellcheck disable=SC2329  # the trap calls it
stop() {
  TOLD=1
  while kill -0 "$run" 2>/dev/null; do
    read -r -a ranks <"/proc/$run/task/$run/children" || true
    kill -TERM "${ranks[@]:-$run}" 2>/dev/null || true
    sleep 1
  done
}
trap stop TERM
status=0
wait "$run" || status=$?
# Who was told is not done, whatever the ranks say: the operator makes the pod anew if nobody stopped the run.
[ -z "${TOLD:-}" ] || exit 143
exit "$status"
