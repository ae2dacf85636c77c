# Every target sets up what it needs: a virtualenv with this project and its development extras.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-fleet test test-pure test-vm bench bench-servers bench-vm lint types check clean

demo: $(READY)
	$(BIN)/python -m apps.cities.demo

demo-fleet: $(READY)
	$(BIN)/python -m apps.memcached.fleet

# Three at a time on two cores: many tests wait for others.
test: $(READY)
	$(BIN)/python -m pytest -n 3 -m "not vm"

# The cache again, with nothing of it compiled.
test-pure: $(READY)
	PERSISTMEM_COMPILED=0 $(BIN)/python -m pytest -n 2 tests/cache tests/adapters

# Boots real kernels under emulation; two machines at a time, however many workers.
test-vm: $(READY)
	$(BIN)/python -m pytest tests/vm -m vm

bench: $(VENV)/.bench-ready bench-servers
	$(BIN)/python -m tests.bench

# What the cache is measured beside, where it can be had: on Debian, by root, if no service manager would start it.
bench-servers:
	@command -v redis-server >/dev/null && command -v memcached >/dev/null && exit; \
	if [ "$$(id -u)" = 0 ] && [ -e /etc/debian_version ] && [ ! -e /run/systemd/system ]; then \
		apt-get update -qq && apt-get install -qq --no-install-recommends redis-server memcached; \
	else echo "redis-server or memcached is not installed: what is missing is not measured" >&2; fi

# What a kexec costs, in the same virtual machines.
bench-vm: $(READY)
	$(BIN)/python -m tests.vm.measure

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test-pure test-vm test

$(READY): pyproject.toml $(wildcard persistmem/cache/native/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/.bench-ready: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
