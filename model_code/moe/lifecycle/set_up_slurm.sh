#!/bin/bash
# Starts this node's Slurm daemon and gives the cluster our prolog. HyperPod's image brings Slurm;
# HyperPod itself writes slurm.conf on the controller, with the nodes and partitions that the
# cluster's SlurmConfig names. The other nodes get theirs from the controller (--conf-server).
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}"
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ETC="$ROOT/opt/slurm/etc"
UNITS="$ROOT/etc/systemd/system"
PATIENCE="${ISOMORPH_SLURM_CONF_S:-60}"

fail() {
  echo "isomorph: $1" >&2
  exit "${2:-1}"
}

put() { # FILE, its new content on standard input; untouched if it has that already
  local new
  new="$(cat)"
  [ "$new" = "$(cat "$1" 2>/dev/null)" ] || printf '%s\n' "$new" >"$1"
}

# On one node only one of the daemons may run; the image has the units of both.
leave_out() { # unit
  [ -f "$UNITS/$1.service" ] || return 0
  systemctl stop "$1" || true
  mv "$UNITS/$1.service" "$UNITS/$1.service.left-out"
}

mkdir -p "$ETC"
sed "s#^ROOT=.*#ROOT='$ROOT'#" "$HERE/prolog.sh" | put "$ETC/prolog.sh"
chmod 0755 "$ETC/prolog.sh"

if [ "$ISOMORPH_NODE_TYPE" = controller ]; then
  for ((waited = 0; ; waited++)); do
    grep -qsF "$ISOMORPH_CONTROLLER_ADDRESS" "$ETC/slurm.conf" && break
    [ "$waited" -lt "$PATIENCE" ] ||
      fail "$ETC/slurm.conf does not name this controller, $ISOMORPH_CONTROLLER_ADDRESS, after $PATIENCE s"
    sleep 1
  done
  # Of a key that is there twice the last one counts, so what slurm.conf has is said again.
  scheduler="$(grep -iE '^SchedulerParameters=' "$ETC/slurm.conf" | tail -n 1 | cut -d= -f2-)" || scheduler=""
  # ETC, not its path on this host: the daemons of the other nodes read it too.
  put "$ETC/isomorph.conf" <<CONF
# Written by on_create.sh: a job starts on a node only after this script has ended with 0 there.
Prolog=$ETC/prolog.sh
PrologFlags=Alloc
# Else a job whose prolog failed is held until somebody releases it, and does not go to other nodes.
SchedulerParameters=${scheduler:+$scheduler,}nohold_on_prolog_fail
# Else a job for more nodes than there are waits for ever.
EnforcePartLimits=ALL
CONF
  include="Include $ETC/isomorph.conf"
  grep -qxF "$include" "$ETC/slurm.conf" || echo "$include" >>"$ETC/slurm.conf"
  if [ "${ISOMORPH_ACCOUNTING:-0}" = 1 ]; then
    bash "$HERE/accounting.sh"
  fi
  leave_out slurmd
  daemon=slurmctld
else
  unit="$UNITS/slurmd.service"
  [ -f "$unit" ] || fail "this image has no $unit; take one of HyperPod's Slurm images" 3
  # Login nodes are not in slurm.conf, and slurmd there only fetches it; the commands read that copy.
  sed -i -E "s#(\\\$SLURMD_OPTIONS|--conf-server [^ ]+)#--conf-server $ISOMORPH_CONTROLLER_ADDRESS#" "$unit"
  leave_out slurmctld
  daemon=slurmd
fi
systemctl daemon-reload || fail "systemctl cannot read the units"
systemctl enable --now "$daemon" || fail "systemctl cannot start $daemon"
[ "$ISOMORPH_NODE_TYPE" = login ] || systemctl is-active --quiet "$daemon" || fail "$daemon ended at once"
