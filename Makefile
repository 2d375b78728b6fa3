# make demo: install, edit pictures with the embedded model, write them into out/.   make test: install, lint, types, tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e
START := $(shell date +%s)
TIME = echo "make $@: $$(($$(date +%s) - $(START))) s"

.PHONY: demo test test-full lint

demo: $(VENV)/core
	$(BIN)/python -m minip2p.demo -o out
	@$(TIME)

test: lint
	$(BIN)/python -m pytest
	@$(TIME)

# The official configurations at full size: 15 GB of memory, and some minutes.
test-full: $(VENV)/dev
	$(BIN)/python -m pytest -m full -s
	@$(TIME)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A stamp is made anew where what it was installed from has changed.
$(VENV)/core: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(INSTALL) ".[dev]"
	@touch $@
