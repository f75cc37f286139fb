# Everything a contributor runs. `make help` lists the targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
VENV2 ?= .venv-py313
BIN := $(VENV)/bin
# Which tests: make test TESTS=tests/db ARGS="-k publish -x"
TESTS ?= tests
ARGS ?=
# Tests in these folders touch no database, so one run is enough.
NO_DATABASE := tests/unit tests/broker

DB ?= sqlite
ORDERS ?= 300
SEED ?= 1
TIMES ?= 20
JSON ?=
DIR ?=

EVENTS ?= 50000
FAULTS ?= 300
CLUSTER ?= 1
# Not the demo's default: what crashes and restarts is a server.
CHAOS_DB = $(if $(filter command line environment,$(origin DB)),$(DB),postgres)

OF ?= nats
MINUTES ?= 10

EXAMPLES ?= 1000
# "chaos" has a default for EVENTS that would be no poison among 10,000.
POISON_EVENTS = $(if $(filter command line environment,$(origin EVENTS)),$(EVENTS),10000)

MEASURE ?= relay
BENCH_DB ?= postgres

# An empty environment has no PATH, and the tools below need one.
PATH ?= /usr/local/bin:/usr/bin:/bin
export PATH PYTHON

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z0-9_-]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(VENV)/.installed-dev ## Make .venv with everything for development (PYTHON=/path/to/python3 chooses the Python)

$(VENV)/.installed-dev: pyproject.toml tools/venv.sh
	@tools/venv.sh $(VENV) dev
	@touch $(VENV)/.installed-demo $@

# The demo needs a third of the packages; a development environment has them already.
$(VENV)/.installed-demo: pyproject.toml tools/venv.sh
	@tools/venv.sh $(VENV) demo
	@touch $@

.PHONY: demo
demo: $(VENV)/.installed-demo ## Two services, real servers, crashes in the middle, a verdict (DB=sqlite|postgres ORDERS SEED JSON DIR)
	@$(BIN)/python -m testproject.demo --db '$(DB)' --orders '$(ORDERS)' --seed '$(SEED)' --timeout 120 \
		$(if $(JSON),--json '$(JSON)') $(if $(DIR),--dir '$(DIR)')

.PHONY: test
test: venv ## All tests on real servers, with SQLite and with PostgreSQL side by side (TESTS=... ARGS=...)
	@PYTHON_OF_TESTS=$(BIN)/python tools/test.sh '$(TESTS)' '$(NO_DATABASE)' $(ARGS)

.PHONY: chaos
chaos: venv ## Writers, relays and consumers under random faults, and a count (EVENTS FAULTS SEED DB CLUSTER=1|3 JSON)
	@$(BIN)/python -m tests.chaos --events '$(EVENTS)' --faults '$(FAULTS)' --seed '$(SEED)' --db '$(CHAOS_DB)' \
		--cluster '$(CLUSTER)' $(if $(JSON),--json '$(JSON)') $(if $(DIR),--dir '$(DIR)') $(ARGS)

.PHONY: matrix
matrix: venv ## Kill, stop and delay every process at every step, and count (TIMES=20 SEED ARGS="--db sqlite --step ...")
	@$(BIN)/python -m tests.matrix --times '$(TIMES)' --seed '$(SEED)' $(ARGS)

.PHONY: model
model: venv ## Sending and receiving side against their reference models, with so many new examples each (EXAMPLES=1000)
	@JETBRIDGE_MODEL_EXAMPLES='$(EXAMPLES)' PYTHON_OF_TESTS=$(BIN)/python tools/test.sh tests/model '' $(ARGS)

.PHONY: poison
poison: venv ## Handlers that kill their process, a few among thousands; only those may die (EVENTS=10000 SEED JSON ARGS)
	@$(BIN)/python -m tests.poison --events '$(POISON_EVENTS)' --seed '$(SEED)' --db '$(CHAOS_DB)' \
		$(if $(JSON),--json '$(JSON)') $(ARGS)

.PHONY: check
check: venv ## Lint, format, types, import contracts, missing migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run --settings testproject.settings.tests

.PHONY: format
format: venv ## Sort imports and format the code
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

.PHONY: bench
bench: venv ## Measure on PostgreSQL with a real disk (MEASURE=relay|publish|publish-many|consume BENCH_DB ARGS)
	@$(BIN)/python -m testproject.bench --db '$(BENCH_DB)' $(MEASURE) $(ARGS)

.PHONY: outage
outage: venv ## A server goes away for minutes under writers, then a verdict (OF=nats|postgres MINUTES DB JSON)
	@$(BIN)/python -m tests.outage --of '$(OF)' --minutes '$(MINUTES)' \
		--db '$(if $(filter postgres,$(OF)),postgres,$(DB))' $(if $(JSON),--json '$(JSON)')

.PHONY: lane2
lane2: ## The tests once more on Python 3.13 and Django 6.1, where such a Python is found
	@tools/lane2.sh $(VENV2) '$(TESTS)' '$(NO_DATABASE)' $(ARGS)

.PHONY: clean
clean: ## Remove environments, caches and what the test project left
	rm -rf $(VENV) $(VENV2) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .testproject
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
