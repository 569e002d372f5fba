#!/bin/bash
# Fetches the code and, for nodes that compute, the wheels; checks their digests; makes the Python
# that training runs in. Private nodes reach no package index: every wheel is in the wheelhouse.
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}"
HOME_DIR="$ROOT/opt/isomorph"
VENV="$HOME_DIR/venv"

fail() {
  echo "isomorph: $1 ($(df -Ph "$HOME_DIR" | awk 'NR == 2 { print $4 }') free in $HOME_DIR)" >&2
  exit "${2:-1}"
}

fetch() { # URL, sha256, name
  local zip="$HOME_DIR/$3.zip"
  if [ "$(cat "$HOME_DIR/$3.sha256" 2>/dev/null)" = "$2" ] && [ -d "$HOME_DIR/$3" ]; then
    echo "$3 is there already"
    return
  fi
  aws s3 cp --only-show-errors "$1" "$zip" || fail "cannot fetch $1"
  echo "$2  $zip" | sha256sum --check --status || fail "$1 does not have the sha256 $2" 3
  rm -rf "${HOME_DIR:?}/$3.new"
  python3 -IS -m zipfile -e "$zip" "$HOME_DIR/$3.new" || fail "cannot unpack $1"
  rm -rf "${HOME_DIR:?}/$3"
  mv "$HOME_DIR/$3.new" "$HOME_DIR/$3"
  echo "$2" >"$HOME_DIR/$3.sha256"
  rm "$zip"
}

mkdir -p "$HOME_DIR"
fetch "$ISOMORPH_CODE_URL" "$ISOMORPH_CODE_SHA256" code
[ "$ISOMORPH_NODE_TYPE" = compute ] || exit 0
[ -n "${ISOMORPH_WHEELHOUSE_URL:-}" ] || fail "ISOMORPH_WHEELHOUSE_URL is missing in cluster.env" 3
fetch "$ISOMORPH_WHEELHOUSE_URL" "$ISOMORPH_WHEELHOUSE_SHA256" wheelhouse

lists=("$HOME_DIR/code/model_code/moe/train/requirements.txt")
[ ! -f "$HOME_DIR/wheelhouse/requirements-native.txt" ] || lists+=("$HOME_DIR/wheelhouse/requirements-native.txt")
made_of="$(cat "${lists[@]}" "$HOME_DIR/wheelhouse.sha256" | sha256sum)"
if [ "$(cat "$VENV/made-of" 2>/dev/null)" != "$made_of" ]; then
  command -v "$ISOMORPH_PYTHON" >/dev/null || fail "there is no $ISOMORPH_PYTHON on this image; set innovations.moe.training.python" 3
  rm -rf "$VENV"
  # Without a list of its own for torch the wheelhouse leaves it to the image: it must fit the drivers.
  inherit=()
  [ "${#lists[@]}" -gt 1 ] || inherit=(--system-site-packages)
  "$ISOMORPH_PYTHON" -m venv --without-pip "${inherit[@]}" "$VENV"
  bash "$HOME_DIR/code/model_code/common/node/install_wheels.sh" "$VENV" "$HOME_DIR/wheelhouse" "${lists[@]}" ||
    fail "the wheels in $HOME_DIR/wheelhouse cannot be installed"
  [ "${#lists[@]}" -gt 1 ] || "$VENV/bin/python" -c 'import torch, numpy, safetensors, tokenizers' ||
    fail "$ISOMORPH_PYTHON of this image lacks torch, numpy, safetensors or tokenizers; take an image that has them" 3
  echo "$made_of" >"$VENV/made-of"
fi
