# Two commands to know: `make demo` and `make test`. Both do the set-up themselves, once.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
HARDWARE := $(shell if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then echo gpu; else echo cpu; fi)
STAMP := $(VENV)/.installed-$(HARDWARE)
PEERS := $(VENV)/.installed-peers
AVALANCHE := $(VENV)/avalanche/.installed
DEMO_FLAGS := $(if $(SOURCE),--source "$(SOURCE)") $(if $(ONCE),--once)
export RAY_AUTH_MODE := token

.PHONY: help setup demo check test bench lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## virtual environment with the pinned packages of this machine's kind

$(STAMP): requirements/cpu.txt requirements/gpu.txt requirements/dev.txt pyproject.toml requirements/install.sh
	bash requirements/install.sh $(HARDWARE) $(VENV)
	touch $@

demo: setup  ## the guided run; SOURCE=folder takes other documents, ONCE=1 ends the system afterwards
	$(VENV)/bin/autonomous demo $(DEMO_FLAGS)

check: setup  ## formatting, types, layers, quick unit tests: under 3 minutes
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile -m "not slow" tests/unit

test: check  ## everything: check, slow unit tests, parity with other implementations, PostgreSQL, Ray, the whole system over HTTP
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile -m slow tests/unit
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile tests/parity
	MEMORY_BACKEND=postgres OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile tests/unit/memory
	$(PYTHON) -m pytest tests/ray
	$(PYTHON) -m pytest tests/e2e

$(PEERS): requirements/bench.txt $(STAMP)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/bench.txt
	touch $@

$(AVALANCHE): requirements/avalanche.txt $(STAMP)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/avalanche -r requirements/avalanche.txt
	touch $@

bench: $(PEERS) $(AVALANCHE)  ## the table of targets, measured on this machine beside the peers
	$(VENV)/bin/autonomous bench $(NAME)

lock: ## resolve requirements/*.in again (needs uv)
	cd requirements && bash lock.sh

clean:  ## remove the environment and caches; state under ~/.autonomous stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
