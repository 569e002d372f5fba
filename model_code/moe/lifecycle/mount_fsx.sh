#!/bin/bash
# Sees to it that the FSx for Lustre file system is at its path. Where the group's
# InstanceStorageConfigs name it, HyperPod has mounted it; else it is mounted here.
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}"
WHERE="$ROOT$ISOMORPH_FSX_PATH"
WHAT="${ISOMORPH_FSX_DNS:-}@tcp:/${ISOMORPH_FSX_MOUNT:-}"

fail() {
  echo "isomorph: $1" >&2
  exit "${2:-1}"
}

if [ -n "${ISOMORPH_FSX_DNS:-}" ]; then
  mounted="$(awk -v where="$WHERE" '$2 == where { print $1 }' "$ROOT/proc/mounts" | tail -n 1)"
  if [ -z "$mounted" ]; then
    mkdir -p "$WHERE"
    modprobe --all lnet lustre || fail "the kernel has no Lustre client"
    # noatime: reading a shard must not write; flock: checkpoints are renamed under a lock.
    mount -t lustre -o noatime,flock,_netdev "$WHAT" "$WHERE" ||
      fail "cannot mount $WHAT at $WHERE; its security group must let ports 988 and 1018-1023 in"
    entry="$WHAT $WHERE lustre noatime,flock,_netdev 0 0"
    grep -qxF "$entry" "$ROOT/etc/fstab" 2>/dev/null || echo "$entry" >>"$ROOT/etc/fstab"
  elif [ "${mounted##*@tcp}" != ":/$ISOMORPH_FSX_MOUNT" ]; then
    fail "$WHERE holds $mounted, and should hold $WHAT" 3
  fi
fi
for folder in data checkpoints jobs logs; do
  mkdir -p "$WHERE/$folder" || fail "cannot write to $WHERE"
  [ -z "${ISOMORPH_USER:-}" ] || chown "$ISOMORPH_USER" "$WHERE/$folder"
done
