#!/bin/sh
# Compiles requirements.txt from pyproject.toml, in an environment of its own. Needs the network. Versions stay as they
# are where pyproject.toml allows it, since a new one makes every chapter stale; UPGRADE=1 takes the newest of all.
set -eu
cd "$(dirname "$0")/../.."
work=$PWD/_build/lock # what one that was killed left there goes
rm -rf "$work"
mkdir -p "$work/tmp"
export TMPDIR="$work/tmp"
# It runs under run.py, in a group of processes of its own, which is ended with it.
trap 'trap "" INT TERM HUP; kill -TERM 0; wait; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
run() { "$@" & wait $!; } # an interruption does not wait for it
run .venv/bin/python -m venv "$work/venv"
run "$work/venv/bin/python" -m pip install --quiet pip-tools
cp requirements.txt "$work"
run "$work/venv/bin/pip-compile" --quiet ${UPGRADE:+--upgrade} --all-extras --strip-extras --allow-unsafe --no-header \
    --no-emit-index-url --no-emit-find-links --output-file "$work/requirements.txt" pyproject.toml
# A build such as 2.13.0+cpu is on no public index; its plain version is. What torch needs for CUDA comes with the
# builds that use it, and must not be forced on those that do not.
awk '/^[^ #]/ { keep = !/^(nvidia-|cuda-|triton)/ } keep' "$work/requirements.txt" |
    sed 's/^\(torch==[0-9.]*\)+.*/\1/' >"$work/lock"
.venv/bin/python -c 'import pathlib, sys; from vaebook.storage import write_atomically
write_atomically(pathlib.Path("requirements.txt"), pathlib.Path(sys.argv[1]).read_bytes())' "$work/lock"
echo "requirements.txt is new; run make test before you commit it." >&2
