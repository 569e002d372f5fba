#!/bin/bash
# Turns a machine that has its code and its wheels into one that serves. The user data unpacked both
# and wrote fleet.env; nothing here needs a network but AWS's own endpoints. May run again.
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}" # empty on EC2; elsewhere the folder that stands for the machine
HOME_DIR="$ROOT/opt/isomorph"
CODE="$HOME_DIR/code"
FLEET_ENV="$ROOT/etc/isomorph/fleet.env"
UNITS="$ROOT/etc/systemd/system"

fail() {
  trap - ERR
  echo "isomorph: $1" >&2
  if [ -n "${ISOMORPH_STACK:-}" ]; then
    local machine
    machine="$(PYTHONPATH="$CODE" python3 -m model_code.common.node.imds)" || machine="$(hostname)"
    aws cloudformation signal-resource --stack-name "$ISOMORPH_STACK" \
      --logical-resource-id "$ISOMORPH_SIGNAL_RESOURCE" --unique-id "$machine" \
      --status FAILURE || true
  fi
  exit 1
}
trap 'fail "line $LINENO of boot.sh failed: $BASH_COMMAND"' ERR

[ -f "$FLEET_ENV" ] || fail "$FLEET_ENV does not exist; the user data writes it"
region="${AWS_REGION:-}"
set -a
# shellcheck source=/dev/null
. "$FLEET_ENV"
AWS_REGION="${region:-${AWS_REGION:-}}"
set +a
export AWS_DEFAULT_REGION="$AWS_REGION" # what version 1 of the AWS CLI reads
for name in SLUG PYTHON ENGINE PORT DEADLINE_S STACK SIGNAL_RESOURCE; do
  variable="ISOMORPH_$name"
  [ -n "${!variable:-}" ] || fail "$variable is missing in $FLEET_ENV"
done
SERVE="$CODE/model_code/$ISOMORPH_SLUG/serve"
[ -f "$SERVE/requirements.txt" ] || fail "ISOMORPH_SLUG is $ISOMORPH_SLUG, but there is no $SERVE"

if [ -n "${ISOMORPH_NEURON_VENV:-}" ]; then # Neuron's image brings torch; its Python goes with it
  ISOMORPH_PYTHON="$ISOMORPH_NEURON_VENV/bin/python"
  [ -x "$ISOMORPH_PYTHON" ] || fail "ISOMORPH_NEURON_VENV is $ISOMORPH_NEURON_VENV, which has no Python"
fi
if ! command -v "$ISOMORPH_PYTHON" >/dev/null; then
  # Amazon Linux keeps its packages in S3, which the VPC's gateway endpoint reaches.
  dnf install -y -q "$ISOMORPH_PYTHON" ||
    fail "ISOMORPH_PYTHON is $ISOMORPH_PYTHON, which is not here, and dnf cannot install it"
fi
"$ISOMORPH_PYTHON" -m venv --without-pip "$HOME_DIR/venv"
PYTHON="$HOME_DIR/venv/bin/python"
requirements=("$SERVE/requirements.txt")
devices=yes
if [ -n "${ISOMORPH_NEURON_VENV:-}" ]; then
  devices=no # the service needs /dev/neuron*
  where='import sysconfig; print(sysconfig.get_path("purelib"))'
  "$ISOMORPH_PYTHON" -c "$where" >"$("$PYTHON" -c "$where")/neuron.pth"
elif [ "$ISOMORPH_ENGINE" = native ]; then
  # The kernels are compiled where they run. Without a compiler torch does the same, more slowly.
  command -v c++ >/dev/null || dnf install -y -q gcc-c++ ||
    echo "isomorph: no C++ compiler is here, and dnf cannot install one: torch's own operations serve" >&2
  requirements+=("$HOME_DIR/wheelhouse/requirements-native.txt")
fi
bash "$CODE/model_code/common/node/install_wheels.sh" "$HOME_DIR/venv" "$HOME_DIR/wheelhouse" "${requirements[@]}" ||
  fail "the wheels in $HOME_DIR/wheelhouse cannot be installed"
BYTECODE="$ROOT/var/lib/isomorph/bytecode"
if [ -d "$HOME_DIR/venv/compiled" ]; then # what machines share, see install_wheels.sh
  mkdir -p "$BYTECODE$HOME_DIR"
  ln -sfn "$HOME_DIR/venv/compiled$HOME_DIR/venv" "$BYTECODE$HOME_DIR/venv"
fi
if [ "$ISOMORPH_ENGINE" = llama.cpp ]; then # its wheel brings everything but the OpenMP runtime
  "$PYTHON" -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null ||
    dnf install -y -q libgomp || fail "libgomp.so.1 is not here, and dnf cannot install it"
fi

# Decoding reads all weights for each token. Huge pages save lookups; pages spread over the sockets of
# a large machine let every core read from all of its memory channels.
pages="$ROOT/sys/kernel/mm/transparent_hugepage/enabled"
if [ -n "${ISOMORPH_HUGE_PAGES:-}" ] && [ -w "$pages" ]; then
  echo "$ISOMORPH_HUGE_PAGES" >"$pages"
fi
numa=""
if [ -n "${ISOMORPH_NUMA:-}" ]; then
  numa="NUMAPolicy=$ISOMORPH_NUMA
NUMAMask=all"
fi

mkdir -p "$UNITS"
cat >"$UNITS/isomorph.service" <<UNIT
[Unit]
Description=Isomorph model server
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=$PYTHON -m model_code.$ISOMORPH_SLUG.serve
WorkingDirectory=$CODE
EnvironmentFile=$FLEET_ENV
# The service may not write beside its code, and compiling torch's at each start takes seconds.
Environment=PYTHONPYCACHEPREFIX=$BYTECODE
Restart=always
RestartSec=2
# A second longer than the longest request that the server waits for when it drains.
KillSignal=SIGTERM
TimeoutStopSec=$((ISOMORPH_DEADLINE_S + 15))
DynamicUser=yes
StateDirectory=isomorph
LimitNOFILE=65536
$numa
CapabilityBoundingSet=
LockPersonality=yes
NoNewPrivileges=yes
PrivateDevices=$devices
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
UNIT

# A machine from the warm pool boots again without its user data: then this unit says it is ready.
cat >"$UNITS/isomorph-ready.service" <<UNIT
[Unit]
Description=Tells Auto Scaling when the Isomorph model server answers
After=isomorph.service

[Service]
Type=oneshot
ExecStart=$PYTHON -m model_code.common.node ready
WorkingDirectory=$CODE
EnvironmentFile=$FLEET_ENV

[Install]
WantedBy=multi-user.target
UNIT

cat >"$UNITS/isomorph-drain.service" <<UNIT
[Unit]
Description=Drains the Isomorph model server before Auto Scaling ends this machine
After=isomorph.service

[Service]
ExecStart=$PYTHON -m model_code.common.node drain
WorkingDirectory=$CODE
EnvironmentFile=$FLEET_ENV
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
UNIT

systemctl daemon-reload
systemctl enable --now isomorph.service isomorph-drain.service
systemctl enable isomorph-ready.service
cd "$CODE"
"$PYTHON" -m model_code.common.node ready || exit 1 # it has signalled by itself
