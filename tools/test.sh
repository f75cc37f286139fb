#!/bin/sh
# Run the tests twice, on SQLite and on PostgreSQL; fails when either run fails.
#
#   PYTHON_OF_TESTS=.venv/bin/python tools/test.sh 'tests' 'tests/unit tests/broker' [PYTEST ARGUMENT...]
#
# The second argument names folders that touch no database: the second run leaves them out.
set -u

tests=$1
no_database=$2
shift 2
ignored=
for folder in $no_database; do ignored="$ignored --ignore=$folder"; done

run() {
    printf '\n=== %s ===\n' "$1"
    database=$2
    shift 2
    JETBRIDGE_TEST_DB=$database "$PYTHON_OF_TESTS" -m pytest "$@" </dev/null
}

run "Tests on SQLite" sqlite $tests "$@"
sqlite=$?
run "Tests on PostgreSQL" postgres $tests $ignored "$@"
postgres=$?
# Nothing left to run on PostgreSQL is fine for a chosen part of the tests, never for all of them.
if [ "$postgres" = 5 ] && [ "$tests" != tests ] && [ "$sqlite" = 0 ]; then postgres=0; fi

printf '\nTests: SQLite %s, PostgreSQL %s\n' \
    "$([ $sqlite = 0 ] && echo passed || echo "FAILED ($sqlite)")" \
    "$([ $postgres = 0 ] && echo passed || echo "FAILED ($postgres)")"
[ $sqlite = 0 ] && [ $postgres = 0 ]
