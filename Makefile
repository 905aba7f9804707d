# Two commands matter: `make search` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: search test test-slow test-soak setup setup-dev clean

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

setup: .venv/ready
setup-dev: .venv/ready-dev

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "stage-nas needs Python 3.11 or newer, found %d.%d; use make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	@touch $@

.venv/ready-dev: .venv/ready
	$(INSTALL) '.[dev,bench,dashboard,docs,pandas,tensorboard]'
	@touch $@

search: setup
	$(BIN)/nas search --space tocsr_unet --eps 0.005 --workers 2

test: setup-dev
	$(BIN)/ruff check .
	$(BIN)/mypy -p nas
	$(BIN)/python -m pytest -n auto -m 'not slow and not gpu and not soak'

test-slow: setup-dev
	$(BIN)/python -m pytest -n auto -m 'slow and not gpu and not soak'

test-soak: setup-dev
	$(BIN)/python benchmarks/soak.py

clean:
	rm -rf .venv build dist *.egg-info
