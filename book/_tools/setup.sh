#!/bin/sh
# Makes .venv (or the folder named) from the lock, once: the stamp in it holds a checksum of what it was made from.
# PYTHON names the interpreter to use, TORCH_INDEX the package index that torch is taken from.
set -eu
cd "$(dirname "$0")/../.."
venv=${1:-.venv}
stamp=$venv/.made-from
wanted="$(cat requirements.txt pyproject.toml | cksum) in $PWD" # an environment does not survive a move
if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

say() { printf '%s\n' "$*" >&2; }

# Prints the first interpreter that is new enough and can make environments.
find_python() {
    problem="No Python found. Install Python 3.11 or newer with its venv module (Debian, Ubuntu: apt install python3-venv)."
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.14 python3.13 python3.12 python3.11 python
    fi
    for candidate in "$@"; do
        found=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            problem="Python $found ($candidate) is too old. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3."
        elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            problem="Python $found ($candidate) has no venv module. Install it (Debian, Ubuntu: apt install python3-venv or python$found-venv)."
        else
            echo "$candidate"
            return 0
        fi
    done
    say "$problem"
    return 1
}

if [ -z "${VAEBOOK_ALONE:-}" ]; then # two at once would build on each other's half; the second waits, and finds all done
    python=$venv/bin/python
    [ -x "$python" ] || python=$(find_python)
    VAEBOOK_ALONE=yes exec "$python" book/_tools/alone.py . sh book/_tools/setup.sh "$@"
fi

moved=
[ ! -f "$stamp" ] || grep -q " in $PWD\$" "$stamp" || moved=yes
if [ ! -x "$venv/bin/python" ] || [ ! -f "$venv/bin/pip" ] || [ -n "$moved" ]; then
    python=$(find_python)
    # A half-made environment is worse than none: later runs would trust it.
    trap 'status=$?; [ $status -eq 0 ] || { rm -rf "$venv"; say "Set-up failed; $venv was removed. Run the command again to retry."; }' EXIT
    trap 'exit 130' INT TERM HUP
    say "Setting up $venv with $python: once, a few minutes and a few gigabytes."
    rm -rf "$venv"
    "$python" -m venv "$venv"
else
    [ -z "${PYTHON:-}" ] || say "PYTHON is not used: $venv has its interpreter already (make clean removes it)."
    say "Bringing $venv up to date with requirements.txt and pyproject.toml."
fi
rm -f "$stamp"
export PIP_DISABLE_PIP_VERSION_CHECK=1
pip() { "$venv/bin/python" -m pip --quiet "$@"; }

# torch first and at its exact version: without one, the other requirements could bring a different build.
torch=$(grep -E '^torch==' requirements.txt)
say "  $torch"
pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
say "  the other packages of requirements.txt"
pip install -r requirements.txt
pip install --no-deps --no-build-isolation --editable .
echo "$wanted" >"$stamp"
