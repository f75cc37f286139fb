#!/bin/sh
# The tests once more on Python 3.13 and Django 6.1. Without such a Python: a line that says so, exit 0.
#
#   tools/lane2.sh FOLDER 'tests' 'tests/unit tests/broker' [PYTEST ARGUMENT...]
set -eu

folder=$1
shift

runs() {
    [ -n "$1" ] && "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 13))' >/dev/null 2>&1
}

find_python() {
    # A pyenv shim named python3.13 may exist and refuse to run, so each candidate is tried.
    pyenv=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "${HOME:-/nowhere}/.pyenv")}
    for candidate in python3.13 "$pyenv"/versions/3.13*/bin/python ~root/.pyenv/versions/3.13*/bin/python \
        /opt/python/cp313*/bin/python /usr/local/bin/python3.13; do
        if runs "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

python=$(find_python)
if [ -z "$python" ]; then
    echo "Second lane skipped: no working Python 3.13 found (looked for python3.13 on PATH and among pyenv's versions)."
    exit 0
fi

stamp=$folder/.installed-lane2
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    PYTHON=$python tools/venv.sh "$folder" dev 'django>=6.1,<6.2'
    touch "$stamp"
fi
printf '\n=== Second lane: '
"$folder/bin/python" -c 'import django, platform; print("Python", platform.python_version(), "· Django", django.__version__, "===")'
PYTHON_OF_TESTS=$folder/bin/python exec tools/test.sh "$@"
