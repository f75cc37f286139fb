#!/bin/sh
# Run the tests on SQLite and on PostgreSQL, side by side; fails when either run fails.
#
#   PYTHON_OF_TESTS=.venv/bin/python tools/test.sh 'tests' 'tests/unit tests/broker' [PYTEST ARGUMENT...]
#
# The second argument names folders that touch no database: the run on PostgreSQL leaves them out.
# Most tests wait for servers, so two runs at once take little longer than one, and each has WORKERS processes
# (2 unless told) with servers and databases of their own. What PostgreSQL's run prints is kept back until SQLite's
# has ended: two dotted lines in one terminal tell nobody anything.
set -u

tests=$1
no_database=$2
shift 2
ignored=
for folder in $no_database; do ignored="$ignored --ignore=$folder"; done

said=$(mktemp)
trap 'rm -f "$said"' EXIT
trap 'kill "$beside" 2>/dev/null; wait "$beside" 2>/dev/null; exit 130' INT TERM

run() {
    database=$1
    shift
    # A cache of its own: "--last-failed" of one database would else be that of the other.
    JETBRIDGE_TEST_DB=$database exec "$PYTHON_OF_TESTS" -m pytest -o cache_dir=".pytest_cache/$database" \
        -n "${WORKERS:-2}" --dist worksteal "$@" </dev/null
}

run postgres $tests $ignored "$@" >"$said" 2>&1 &
beside=$!
printf '\n=== Tests on SQLite (those on PostgreSQL run beside and report after) ===\n'
(run sqlite $tests "$@")
sqlite=$?
printf '\n=== Tests on PostgreSQL ===\n'
# Until it ends, what it says; then the rest.
tail -n +1 -f --pid="$beside" "$said" 2>/dev/null || { wait "$beside"; cat "$said"; }
wait "$beside"
postgres=$?
# Nothing left to run on PostgreSQL is fine for a chosen part of the tests, never for all of them.
if [ "$postgres" = 5 ] && [ "$tests" != tests ] && [ "$sqlite" = 0 ]; then postgres=0; fi

printf '\nTests: SQLite %s, PostgreSQL %s\n' \
    "$([ $sqlite = 0 ] && echo passed || echo "FAILED ($sqlite)")" \
    "$([ $postgres = 0 ] && echo passed || echo "FAILED ($postgres)")"
[ $sqlite = 0 ] && [ $postgres = 0 ]
