#!/bin/bash
# Looks whether the node has what its type promises: network cards with EFA, accelerators, disk. A
# node without them would take part in a job and hold up all others.
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}"
LEAST_GIB=2 # what code, wheels and their unpacked files take of the disk under /opt, at the least

fail() {
  echo "isomorph: $1" >&2
  exit "${2:-1}"
}

free_kib="$(df -Pk "$ROOT/opt" | awk 'NR == 2 { print $4 }')"
[ "$free_kib" -ge $((LEAST_GIB * 1024 * 1024)) ] ||
  fail "$ROOT/opt has $((free_kib / 1024)) MiB free, it needs $LEAST_GIB GiB: give the group a larger volume" 3
[ "$ISOMORPH_NODE_TYPE" = compute ] || exit 0

case "$ISOMORPH_NODE_INSTANCE_TYPE" in
  ml.p4d.* | ml.p4de.* | ml.p5.48xlarge | ml.p5e.* | ml.p5en.* | ml.p6* | ml.trn1.32xlarge | ml.trn1n.* | ml.trn2.*)
    cards=("$ROOT"/sys/class/infiniband/*)
    [ -e "${cards[0]}" ] ||
      fail "no network card with EFA in $ROOT/sys/class/infiniband, and $ISOMORPH_NODE_INSTANCE_TYPE has some"
    echo "${#cards[@]} network cards with EFA"
    ;;
esac
case "$ISOMORPH_NODE_INSTANCE_TYPE" in
  ml.p* | ml.g*)
    count="$(nvidia-smi --list-gpus | wc -l)" || count=0
    [ "$count" -gt 0 ] || fail "nvidia-smi lists no GPU, and $ISOMORPH_NODE_INSTANCE_TYPE has some"
    echo "$count GPUs"
    ;;
  ml.trn*)
    neuron-ls >/dev/null || fail "neuron-ls finds no Trainium, and $ISOMORPH_NODE_INSTANCE_TYPE has some"
    ;;
esac
