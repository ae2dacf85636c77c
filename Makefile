# Every target sets up what it needs: a virtualenv with this project and its development extras.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-vm bench bench-vm lint types check clean

demo: $(READY)
	$(BIN)/python -m apps.cities.demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not vm"

# Boots real kernels under emulation; two machines at a time, however many workers.
test-vm: $(READY)
	$(BIN)/python -m pytest tests/vm -m vm

bench: $(VENV)/.bench-ready
	$(BIN)/python -m tests.bench

# What a kexec costs, in the same virtual machines.
bench-vm: $(READY)
	$(BIN)/python -m tests.vm.measure

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test test-vm

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/.bench-ready: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
