#!/bin/sh
# Compiles requirements.txt from pyproject.toml, in an environment of its own. Needs the network. Versions stay as they
# are where pyproject.toml allows it, since a new one makes every chapter stale; UPGRADE=1 takes the newest of all.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
.venv/bin/python -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet pip-tools
cp requirements.txt "$work"
"$work/venv/bin/pip-compile" --quiet ${UPGRADE:+--upgrade} --all-extras --strip-extras --allow-unsafe --no-header \
    --no-emit-index-url --no-emit-find-links --output-file "$work/requirements.txt" pyproject.toml
# A build such as 2.13.0+cpu is on no public index; its plain version is. What torch needs for CUDA comes with the
# builds that use it, and must not be forced on those that do not.
awk '/^[^ #]/ { keep = !/^(nvidia-|cuda-|triton)/ } keep' "$work/requirements.txt" |
    sed 's/^\(torch==[0-9.]*\)+.*/\1/' >"$work/lock"
.venv/bin/python -c 'import pathlib, sys; from vaebook.storage import write_atomically
write_atomically(pathlib.Path("requirements.txt"), pathlib.Path(sys.argv[1]).read_bytes())' "$work/lock"
echo "requirements.txt is new; run make test before you commit it." >&2
