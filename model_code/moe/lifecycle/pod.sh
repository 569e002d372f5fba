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
exec python3 -m torch.distributed.run --nproc-per-node "$JOB_RANKS" -m model_code.moe.train "${words[@]}"
