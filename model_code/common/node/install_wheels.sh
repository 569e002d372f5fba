#!/bin/bash
# install_wheels.sh VENV WHEELHOUSE LIST...: installs what the lists lock, from the wheelhouse alone, and
# nothing else. uv runs from its own wheel: a node's Python needs no pip, and 250 MB of wheels are unpacked
# on all cores.
set -Eeuo pipefail
venv="$1" wheelhouse="$2"
shift 2
wheels=("$wheelhouse"/uv-*.whl)
# Beside the venv: nothing runs in the /tmp of a hardened image, and only one disk's files can be links.
tools="$(mktemp -d "$(dirname "$venv")/uv.XXXXXX")"
trap 'rm -rf "$tools"' EXIT
python3 -IS -m zipfile -e "${wheels[0]}" "$tools"
uv=("$tools"/uv-*.data/scripts/uv)
chmod +x "${uv[0]}"
lists=()
for list in "$@"; do lists+=(-r "$list"); done
# The venv links to what is unpacked, which goes with the tools; or stays in UV_CACHE_DIR, where machines
# share a disk. uv knows a wheel again by its path, so such machines share a folder of wheels, too.
shared="${UV_CACHE_DIR:+$UV_CACHE_DIR/wheelhouse}"
if [ -n "$shared" ]; then
  mkdir -p "$shared"
  for wheel in "$wheelhouse"/*.whl; do
    [ -e "$shared/${wheel##*/}" ] || ln "$wheel" "$shared/" 2>/dev/null || true # another was first
  done
fi
# The lists have what their wheels need, so --no-deps loses nothing: a node's image may bring the rest.
install() { # FOLDER
  UV_CACHE_DIR="${UV_CACHE_DIR:-$tools/unpacked}" "${uv[0]}" pip install --quiet --no-config --offline \
    --no-index --find-links "$1" --no-deps --require-hashes --python "$venv/bin/python" "${lists[@]}"
}
# A shared wheel of the same name may be another build, whose hash is not in this node's list.
if [ -z "$shared" ] || ! install "$shared" 2>/dev/null; then install "$wheelhouse"; fi
# Nor need each compile what it links to. Python finds what it compiled by the path of the source; that of
# these packages is a link, for all machines with the same lists. It looks at a source's time and size itself.
if [ -n "$shared" ]; then
  packages="$("$venv/bin/python" -Ic 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  compiled="$UV_CACHE_DIR/compiled/$(cat "$@" | sha256sum | cut -d ' ' -f 1)"
  mkdir -p "$compiled" "$venv/compiled${packages%/*}"
  ln -sfn "$compiled" "$venv/compiled$packages"
  echo 'import sys; sys.pycache_prefix = sys.pycache_prefix or sys.prefix + "/compiled"' >"$packages/compiled.pth"
fi
