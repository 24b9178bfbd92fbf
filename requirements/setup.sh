#!/usr/bin/env bash
# Fill the virtual environment from the lock files.
#
#   requirements/setup.sh server   what serving needs, and this project in editable form
#   requirements/setup.sh test     the same, and what the tests need
#   requirements/setup.sh engine   the locked packages alone, without this project (for images)
#
#   PYTHON             the interpreter to use; else the first of python3.11 .. python3.13 that works
#   VENV               the environment; else .venv
#   PILOTHOUSE_DEVICE  cpu or cuda; else cuda where nvidia-smi lists a GPU, and cpu elsewhere
#
# A second run with nothing changed does nothing: each level leaves a stamp named by a hash of what went in.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

level=${1:?usage: requirements/setup.sh server|test|engine}
venv=${VENV:-.venv}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

detect() {
    if [[ -n ${PILOTHOUSE_DEVICE:-} ]]; then
        echo "$PILOTHOUSE_DEVICE"
    elif nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
        echo cuda
    else
        echo cpu
    fi
}

suits() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1
}

interpreter() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        suits "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 to 3.13 with venv"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3; do
        if suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 to 3.13 with venv was found; name one with PYTHON=..."
}

digest() { cat "$@" | sha256sum | cut -c1-16; }

install() { "$venv/bin/python" -m pip install --quiet --no-deps "$@"; }

# On the CPU torch must be the CPU build. Some package sources carry it as 2.13.0+cpu; elsewhere a plain 2.13.0 is the
# CUDA build, and uv knows by itself where the CPU builds are published.
install_cpu_torch() {
    local version
    version=$(sed -n 's/^torch==//p' "$lock")
    say "torch $version for the CPU"
    if install "torch==$version+cpu" 2>/dev/null; then
        return
    fi
    say "pip finds no torch $version+cpu; asking uv for it"
    install uv
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --torch-backend=cpu "torch==$version" \
        || fail "no CPU build of torch $version could be installed"
}

device=$(detect)
lock=requirements/$device.lock
[[ -f $lock && $device != test ]] || fail "PILOTHOUSE_DEVICE is cpu or cuda, not '$device'"

case $level in
    server | engine) inputs=("$lock") ;;
    test) inputs=("$lock" requirements/test.lock) ;;
    *) fail "unknown level '$level': server, test or engine" ;;
esac
[[ $level == engine ]] || inputs+=(pyproject.toml)
stamp=$venv/.setup-$level-$(digest "${inputs[@]}" requirements/setup.sh)
[[ -e $stamp && -x $venv/bin/python ]] && exit 0

made_for=$(cat "$venv/.setup-device" 2>/dev/null || echo "$device")
[[ $made_for == "$device" ]] || fail "$venv was made for $made_for, not $device: remove it, or name another with VENV=..."

if [[ ! -x $venv/bin/python ]]; then
    python=$(interpreter)
    say "creating $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi
echo "$device" >"$venv/.setup-device"

# The test level stands on the server level: do not repeat it.
if [[ $level == test ]]; then
    requirements/setup.sh server
    say "test packages from requirements/test.lock"
    install -r requirements/test.lock
else
    if [[ $device == cpu ]]; then
        install_cpu_torch
    fi
    say "packages from $lock (the first time this takes a few minutes)"
    install -r "$lock"
    if [[ $level == server ]]; then
        say "pilothouse itself"
        install --no-build-isolation -e .
    fi
fi

rm -f "$venv/.setup-$level-"*
touch "$stamp"
say "$level: ready in $venv"
