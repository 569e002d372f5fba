#!/bin/bash
# Slurm runs this as root on each node of a job before the job begins. Any other end than 0 drains
# the node and puts the job back into the queue, so a node without its file system harms no job.
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}" # set_up_slurm.sh writes it in: Slurm hands a prolog no variable of ours
set -a
# shellcheck source=/dev/null
. "$ROOT/etc/isomorph/cluster.env"
# shellcheck source=/dev/null
. "$ROOT/etc/isomorph/node.env"
set +a

if [ -n "${ISOMORPH_FSX_DNS:-}" ]; then
  awk -v where="$ROOT$ISOMORPH_FSX_PATH" '$2 == where { found = 1 } END { exit !found }' "$ROOT/proc/mounts" || exit 1
fi
[ -x "$ROOT/opt/isomorph/venv/bin/python" ] || exit 1
case "$ISOMORPH_NODE_INSTANCE_TYPE" in
  ml.p* | ml.g*) [ "$(nvidia-smi --list-gpus | wc -l)" -gt 0 ] || exit 1 ;;
esac
