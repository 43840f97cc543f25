PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= bench-output
DATA ?= $(or $(SAMREG_DATA),../shared/data)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads that wait let go of a processor that others want too (SAMRegistrationLib/shared_processors.py).
export GOMP_SPINCOUNT ?= 3000

.PHONY: venv demo test test-fast lint bench clean

# The environment that everything else stands on.
venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

# Register two CTs of different patients, print the table, write a picture.
demo: venv
	$(BIN)/samreg demo -o demo-output

test: lint
	$(BIN)/python -m pytest

# Everything that takes no more than seconds.
test-fast: venv
	$(BIN)/python -m pytest -m "not slow"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Seconds and memory per stage, and the peers; needs the real data (SAMREG_DATA).
bench: venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[bench]"
	$(BIN)/python -m Testing.benchmarks.stages
	$(BIN)/samreg benchmark all -o $(OUTPUT) --data $(DATA)

clean:
	rm -rf $(VENV) build demo-output
