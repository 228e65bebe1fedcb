# Everything here needs make and Python >= 3.11; uv is used where it is.
# PYTHON=... chooses the interpreter, VENV=... the environment's folder.

VENV ?= .venv
BIN := $(VENV)/bin
export VENV

LOCKED := pyproject.toml uv.lock scripts/setup.sh scripts/constraints.py
SOURCES := src tests benchmarks scripts

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench docs build clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.ready-dev ## install the package and the development tools into .venv

# The stamps make setup a matter of once: with them nothing below needs a network.
$(VENV)/.ready-base: $(LOCKED)
	@bash scripts/setup.sh base

$(VENV)/.ready-dev: $(LOCKED)
	@bash scripts/setup.sh dev

demo: $(VENV)/.ready-base ## the main job, with the server killed in the middle (AGENT=claude for a real agent)
	@$(BIN)/sandbox-agent demo $(if $(AGENT),--agent '$(AGENT)')

test: $(VENV)/.ready-dev ## all tests (ARGS="-k name" for some)
	@$(BIN)/python -m pytest $(ARGS)

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
	@$(BIN)/python -m pytest tests/docs $(ARGS)

build: $(VENV)/.ready-dev ## the sdist and the wheel, into dist/
	$(BIN)/hatchling build

clean: ## remove the environment and everything that was made here
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
