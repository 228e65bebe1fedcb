#!/usr/bin/env bash
# Make the environment: `scripts/setup.sh base` (to run the package) or `dev` (to work on it).
# With uv from the lock; without it by venv and pip, which get the lock's versions as constraints.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:?usage: scripts/setup.sh base|dev}
venv=${VENV:-.venv}

fail() {
    echo "setup: $*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python >= 3.11 found${PYTHON:+ at '$PYTHON'}: install one, or name it: make PYTHON=/path/to/python3.12"
}

with_uv() {
    local arguments=(--locked --inexact --quiet --extra server --extra cli)
    export UV_PROJECT_ENVIRONMENT=$venv
    if [ -n "${PYTHON:-}" ]; then
        arguments+=(--python "$(find_python)")
    fi
    if [ "$what" = base ]; then
        arguments+=(--no-default-groups)
    elif ! command -v node >/dev/null; then
        arguments+=(--group node)
    fi
    uv sync "${arguments[@]}"
}

with_pip() {
    local python=$venv/bin/python
    if ! is_new_enough "$python"; then
        local base
        base=$(find_python)
        "$base" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$base can't make environments (no venv or ensurepip): install python3-venv, or uv"
        "$base" -m venv --clear "$venv"
    fi
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade >/dev/null
    # 25.1 is the first that reads dependency groups.
    pip() { "$python" -m pip -qq --disable-pip-version-check "$@"; }
    pip install 'pip>=25.1'
    "$python" scripts/constraints.py uv.lock >"$venv/constraints.txt"
    local wanted=(--editable '.[server,cli]')
    if [ "$what" = dev ]; then
        wanted+=(--group dev)
        command -v node >/dev/null || wanted+=(--group node)
    fi
    pip install --constraint "$venv/constraints.txt" "${wanted[@]}"
}

echo "setup: installing into $venv ($what); once" >&2
if command -v uv >/dev/null; then
    with_uv
else
    with_pip
fi
touch "$venv/.ready-base"
if [ "$what" = dev ]; then
    touch "$venv/.ready-dev"
fi
