#!/bin/sh
# Make a virtual environment and install this project into it.
#
#   tools/venv.sh FOLDER EXTRA [REQUIREMENT...]       e.g. tools/venv.sh .venv dev
#
# PYTHON=/path/to/python chooses the interpreter; else the first of python3, python3.14 ... python3.11
# that really runs (a pyenv shim may exist and still fail), is 3.11 or newer, and can make environments.
set -eu

folder=$1
extra=$2
shift 2

fail() {
    printf '\njetbridge: %s\n' "$1" >&2
    exit 1
}

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

can_make_environments() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

no_venv() {
    fail "$1 (Python $(version_of "$1")) cannot make virtual environments: its venv module is missing or incomplete.
  Install it (Debian, Ubuntu: apt install python3-venv) or choose another Python: make venv PYTHON=/path/to/python3"
}

if [ -n "${PYTHON:-}" ]; then
    [ -n "$(version_of "$PYTHON")" ] || fail "PYTHON=$PYTHON does not run. Expected the path of a Python 3.11 or newer."
    new_enough "$PYTHON" || fail "PYTHON=$PYTHON is Python $(version_of "$PYTHON"). Expected 3.11 or newer."
    can_make_environments "$PYTHON" || no_venv "$PYTHON"
    python=$PYTHON
else
    python=
    seen=
    without_venv=
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        version=$(version_of "$name") || continue
        seen="$seen $name=$version"
        new_enough "$name" || continue
        if can_make_environments "$name"; then
            python=$name
            break
        fi
        without_venv=${without_venv:-$name}
    done
    if [ -z "$python" ]; then
        [ -z "$without_venv" ] || no_venv "$without_venv"
        fail "no Python 3.11 or newer found (found:${seen:- none}).
  Install one, or name it: make venv PYTHON=/path/to/python3"
    fi
fi

# An environment of a Python that is gone, or half made by an interrupted run, is made again.
if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "Making $folder with Python $(version_of "$python") ..."
    "$python" -m venv --clear "$folder"
fi
echo "Installing jetbridge[$extra] into $folder ..."
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -e ".[$extra]" "$@" ||
    fail "pip could not install the packages (its message is above). Is the package index reachable?"
