# make demo       installs minip2p, edits pictures with the model that ships, writes them to out/
# make test       installs the development tools, then runs lint, types and tests
# make test-full  runs the tests at the official sizes (15 GB of memory, some minutes)
# make test-web   runs the tests of the page of minip2p app in Chromium, which must be installed
# make test-ray   runs the tests of --ray, on a Ray cluster of two nodes on this machine
# make test-device runs the tests of the model on DEVICE: cuda, mps, or fake, on which misplaced tensors are errors
# make docs       builds the documentation into docs/_build/html; lessons that have changed run
# make lessons    writes the notebooks of examples/lessons from their Python files
#
# Variables: PYTHON (the interpreter), WORKERS (test processes), DEVICE (of test-device), TORCH_INDEX (the package index of torch's CPU build; empty: off)
PYTHON ?= python3
WORKERS ?= 2
DEVICE ?= fake
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
START := $(shell date +%s)
TIME = echo "make $@: $$(($$(date +%s) - $(START))) s"

.PHONY: demo test test-full test-web test-ray test-device lint docs lessons

demo: $(VENV)/core
	$(BIN)/python -m minip2p demo -o out --overwrite
	@$(TIME)
	@$(NEXT)

# One thread for each test process: more threads than cores slow each other down.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
	@$(TIME)

test-full: $(VENV)/dev
	$(BIN)/python -m pytest -m full -s
	@$(TIME)

test-web: $(VENV)/browser
	$(BIN)/python -m pytest -m browser tests/browser
	@$(TIME)

test-ray: $(VENV)/ray
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray tests/sweeps
	@$(TIME)

test-device: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --device $(DEVICE) -n $(if $(filter fake,$(DEVICE)),$(WORKERS),0) --dist worksteal
	@$(TIME)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/docs docs/_build/extra/page
	$(BIN)/sphinx-build -W -b html docs docs/_build/html
	@$(TIME)

# The page of minip2p app with precomputed examples, which the site embeds.
docs/_build/extra/page: $(VENV)/docs $(wildcard minip2p/web/static/* weights/tiny/*/*)
	rm -rf $@
	$(BIN)/python -m minip2p app --export $@

lessons: $(VENV)/dev
	$(BIN)/python docs/make_notebooks.py

# Each stamp is renewed when a file that it was installed from changes.
$(VENV)/core: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@$(CPU_TORCH)
	$(PIP) -e .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/browser: $(VENV)/dev
	$(PIP) -e ".[browser]"
	@touch $@

$(VENV)/ray: $(VENV)/dev
	$(PIP) -e ".[ray]"
	@touch $@

$(VENV)/docs: $(VENV)/core
	$(PIP) -e ".[docs]"
	@touch $@

# What to try after the demo, as it works in this shell: with the path of the command unless the environment is active.
define NEXT
case "$$(command -v minip2p)" in "$(abspath $(BIN))"/*) run=minip2p ;; *) run=$(BIN)/minip2p ;; esac; \
printf '%s\n' "Next, try:" \
    "  $$run words" \
    "  $$run generate \"a cat on the beach\" --seed 1" \
    "  $$run edit \"a cat on the beach\" \"a tiger on the beach\" --seed 1" \
    "  $$run maps \"a cat on the beach\" --seed 1 -o out/maps" \
    "  $$run --help"
endef

# On Linux the default build of torch brings gigabytes of CUDA. Where there is no NVIDIA driver and no torch yet, the CPU
# build is installed first. --no-deps: what torch needs comes from the default index, with the versions of constraints.txt.
define CPU_TORCH
if [ -n "$(TORCH_INDEX)" ] && [ "$$(uname -s)" = Linux ] \
    && [ ! -e /proc/driver/nvidia ] && ! command -v nvidia-smi > /dev/null \
    && $(BIN)/python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"; then \
  if timeout 3 $(BIN)/python -c "from urllib.request import urlopen; urlopen('$(TORCH_INDEX)/torch/')" 2> /dev/null \
      && $(PIP) --no-deps --index-url $(TORCH_INDEX) torch; then \
    echo "No NVIDIA driver: installed the CPU build of torch from $(TORCH_INDEX)"; \
  else \
    echo "Cannot install the CPU build of torch from $(TORCH_INDEX): using the default index"; \
  fi; \
fi
endef
