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
    VAEBOOK_ALONE=yes exec "$python" book/_tools/run.py book/_tools/alone.py . sh book/_tools/setup.sh "$@"
fi

# What was killed left no stamp: pip takes a package for installed once it has a few of its files.
if [ -x "$venv/bin/python" ] && [ -f "$venv/bin/pip" ] && grep -qsF " in $PWD" "$stamp"; then
    kept=yes
    [ -z "${PYTHON:-}" ] || say "PYTHON is not used: $venv has its interpreter already (make clean removes it)."
    say "Bringing $venv up to date with requirements.txt and pyproject.toml."
else
    kept=
    python=$(find_python)
    say "Setting up $venv with $python: once, a few minutes and a few gigabytes."
fi

# After an interruption the group of processes that run.py made is ended, and then $venv, half changed, is removed.
ended() {
    status=$?
    trap '' INT TERM HUP
    [ $status -ne 0 ] || return 0
    # Of a full disk Python's own installer of pip does not speak.
    [ ! -d "$TMPDIR" ] || full=$(head -c 100000000 /dev/zero 2>&1 >"$TMPDIR/full") || say "$full"
    if [ -n "$kept" ] && [ $status -ne 130 ] && echo "failed in $PWD" >"$stamp"; then
        say "$venv could not be brought up to date. Run the command again to retry."
    else
        kill -TERM 0
        wait
        rm -rf "$venv"
        [ $status -eq 130 ] || say "Set-up failed; $venv was removed. Run the command again to retry."
    fi
}
trap ended EXIT
trap 'exit 130' INT TERM HUP
run() { "$@" & wait $!; } # an interruption does not wait for it

export PIP_DISABLE_PIP_VERSION_CHECK=1 TMPDIR="$PWD/$venv/tmp" # what is left there goes with the rest
if [ -n "$kept" ]; then
    rm -rf "$stamp" "$TMPDIR"
    mkdir "$TMPDIR"
else
    rm -rf "$venv"
    mkdir -p "$TMPDIR"
    run "$python" -m venv "$venv"
fi
pip() { run "$venv/bin/python" -m pip --quiet "$@"; }

# torch first and at its exact version: without one, the other requirements could bring a different build.
torch=$(grep -E '^torch==' requirements.txt)
say "  $torch"
pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
say "  the other packages of requirements.txt"
pip install -r requirements.txt
pip install --no-deps --no-build-isolation --editable .
rmdir "$TMPDIR"
echo "$wanted" >"$stamp"
