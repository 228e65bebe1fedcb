# Everything here needs make and Python >= 3.11; uv is used if it is installed.
# PYTHON=... selects the interpreter, VENV=... the folder of the environment.

VENV ?= .venv
BIN := $(VENV)/bin
export VENV
# With bytecode files, the hundreds of Python processes that tests start don't compile the package each.
unexport PYTHONDONTWRITEBYTECODE

LOCKED := pyproject.toml uv.lock scripts/setup.sh scripts/constraints.py
SOURCES := src tests benchmarks scripts examples

# Number of test processes; 0 runs the tests in pytest's own process (for --pdb).
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n $(WORKERS) --dist worksteal
# Groups of tests with a pytest marker and a target of their own.
GROUPS := agents sandboxes browser scale soak
# Tests that need no server, npm or database.
QUICK := tests/engine tests/wire tests/test_errors.py tests/test_public_api.py \
	tests/agents/test_info.py tests/agents/test_launch.py tests/agents/test_quirks.py \
	tests/persist/test_conformance.py tests/persist/test_memory.py tests/persist/test_open.py \
	tests/server/recorder tests/server/transcripts tests/server/inbox/test_policies.py

.DEFAULT_GOAL := help
.PHONY: help setup demo quick test $(GROUPS:%=test-%) soak check bench docs site build clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.ready-dev ## install the package and the development tools into .venv

# With these stamps, setup runs once, and the targets below need no network.
$(VENV)/.ready-base: $(LOCKED)
	@bash scripts/setup.sh base

$(VENV)/.ready-dev: $(LOCKED)
	@bash scripts/setup.sh dev

demo: $(VENV)/.ready-base ## the main job, with the server killed in the middle (AGENT=claude for a real agent)
	@$(BIN)/sandbox-agent demo $(if $(AGENT),--agent '$(AGENT)')

quick: $(VENV)/.ready-dev ## the tests that need no server, npm or database: run them while you work
	@$(PYTEST) $(PARALLEL) -q $(QUICK) $(ARGS)

test: $(VENV)/.ready-dev ## all tests but the groups below (ARGS="-k name" for some, WORKERS=0 for one process)
	@$(BIN)/python -m tests.support.npm test
	@$(PYTEST) $(PARALLEL) $(ARGS)

test-agents: $(VENV)/.ready-dev ## real agents behind the server, with a scripted model (npm)
	@$(BIN)/python -m tests.support.npm agents
	@scripts/test_group.sh agents $(PARALLEL) $(ARGS)

test-sandboxes: $(VENV)/.ready-dev ## sandbox providers against the real thing
	@scripts/test_group.sh sandboxes $(PARALLEL) --dist loadgroup $(ARGS)

test-browser: $(VENV)/.ready-dev ## the web UI in a browser
	@scripts/test_group.sh browser $(PARALLEL) $(ARGS)

test-scale: $(VENV)/.ready-dev ## many servers, many sessions
	@scripts/test_group.sh scale $(PARALLEL) $(ARGS)

test-soak: $(VENV)/.ready-dev ## killed servers, databases and agents; the client tests behind a faulty gateway
	@scripts/test_group.sh soak $(PARALLEL) $(ARGS)

soak: $(VENV)/.ready-dev ## the loops of test-soak, SOAK=10 times as long, with their figures
	@SOAK=$(or $(SOAK),10) scripts/test_group.sh soak $(PARALLEL) -rP $(ARGS)

check: $(VENV)/.ready-dev ## lint, format, types, import rules, dependencies, newsfragments
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/towncrier build --draft --version draft > /dev/null 2>&1 || $(BIN)/towncrier build --draft --version draft
	$(BIN)/pyright

bench: $(VENV)/.ready-dev ## the benchmarks, beside the published server where npm is
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.ready-dev ## run the snippets of the README and docs, and look for what they leave out
	@$(PYTEST) $(PARALLEL) tests/docs $(ARGS)

site: $(VENV)/.ready-dev ## the documentation as a site, into build/site; a warning is an error
	@$(BIN)/python scripts/build_site.py

build: $(VENV)/.ready-dev ## the sdist and the wheel, into dist/
	$(BIN)/hatchling build

clean: ## remove the environment and everything that was made here
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
