# `make demo` and `make test` each work as the only command typed on a fresh machine with Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lint format constraints clean

help:
	@echo "make demo         set up and train a small model on text this computer already has (about four minutes)"
	@echo "make test         set up and run the whole test suite"
	@echo "make lint         ruff, mypy and the import floors"
	@echo "make format       let ruff rewrite what it can"
	@echo "make constraints  pin the newest versions that pyproject.toml allows (torch stays)"
	@echo "make clean        remove the environment and caches"

demo: $(VENV)/.installed
	$(VENV)/bin/owngpt demo

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n logical --dist worksteal

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

constraints:
	./scripts/pin-constraints

clean:
	rm -rf $(VENV) build dist src/owngpt/kernels/compiled .pytest_cache .ruff_cache .mypy_cache .import_linter_cache src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "OwnGPT needs Python 3.11 or newer, and $(PYTHON) is older; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "could not make $(VENV); on Debian and Ubuntu run: apt install python3-venv"; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml setup.py constraints.txt
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[test,dev]'
	touch $@
