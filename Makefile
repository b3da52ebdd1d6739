# Everything runs in .venv, which the first target that needs it creates with the versions in constraints.txt.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The pins are made for Python 3.11; without it, whichever `python3` is there.
PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || echo python3)

.DELETE_ON_ERROR:
.PHONY: help install quickstart test lint format dist clean

help:
	@echo 'make quickstart  demonstrations, pre-training and fine-tuning on the embedded task'
	@echo 'make test        the tests; ARGS="-k name" is handed to pytest'
	@echo 'make lint        ruff and mypy'
	@echo 'make format      let ruff rewrite what it can'
	@echo 'make dist        wheel and sdist in dist/'
	@echo 'make install     only create .venv'
	@echo 'make clean       remove .venv, dist/ and the caches'

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The pins need Python 3.11 or newer.")'
	$(BIN)/python -m pip install --quiet -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt --build-constraint constraints.txt -e '.[dev]'
	touch $@

quickstart: $(STAMP)
	$(BIN)/python examples/quickstart.py $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

dist: $(STAMP)
	$(BIN)/hatchling build

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache
