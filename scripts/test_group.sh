#!/usr/bin/env bash
# Run a group of tests: `scripts/test_group.sh MARKER [pytest options]`. A group may have no tests yet.
set -euo pipefail
cd "$(dirname "$0")/.."

group=${1:?usage: scripts/test_group.sh MARKER [pytest options]}
shift
wanted=$group
if [ "$group" = soak ]; then
    # What make test runs with short loops is run again with the full ones.
    wanted="soak or loops"
    export SOAK=${SOAK:-1}
    set -- -o timeout=$((240 * SOAK)) "$@"
fi
if ! grep -rqE "mark\.(${wanted// or /|})\b" tests --include='*.py'; then
    echo "test-$group: no test has the marker '$group' yet"
    exit 0
fi
exec "${VENV:-.venv}/bin/python" -m pytest -m "$wanted" "$@"
