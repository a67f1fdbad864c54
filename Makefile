# Letterbook: one verb a command. PYTHON names the interpreter that .venv is made with (3.11 or later).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIG ?= config.ini
PYTEST_ARGS ?=
# Processes that the test suite is spread over, a test file to each. One more than the smallest machine has cores:
# much of the suite waits for processes of its own.
WORKERS ?= 3
# How many random seeds the simulation tries.
test: SEEDS ?= 10
sim: SEEDS ?= 200

.DEFAULT_GOAL := help
.PHONY: help demo run test check bench sim clean

help: ## say what each target does
	@grep -hE '^[a-z.]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z.]+):.*## /\1|/' | awk -F'|' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(STAMP) ## a service and a capture relay on this machine: mail in over HTTP, delivered, shown live (DEMO_EXIT=1: then end)
	$(BIN)/letterbook demo $(if $(DEMO_EXIT),--exit)

run: $(STAMP) ## the service itself, by CONFIG=config.ini
	$(BIN)/letterbook serve --config $(CONFIG)

test: $(STAMP) ## the whole test suite (SEEDS=n, PYTEST_ARGS=..)
	SEEDS=$(SEEDS) $(BIN)/pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

check: $(STAMP) ## ruff, types, and the rules of the house
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/house

bench: $(STAMP) ## measure, and print one line a bench
	$(BIN)/python -m bench

sim: $(STAMP) ## the simulation alone, over SEEDS=n seeds; SEED=n runs that one and tells its story
	SEEDS=$(SEEDS) SEED=$(SEED) $(BIN)/pytest tests/simulation $(if $(SEED),-s -v) $(PYTEST_ARGS)

clean: ## remove .venv and what builds and tools left
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv: $(STAMP) ## make the environment alone

# The stamp is younger than what it was made from only when the whole install went through.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or later, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V): Letterbook needs Python 3.11 or later; name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install the package python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv (on Debian and Ubuntu also python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
