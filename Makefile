# make run   installs into .venv and runs the default preset on Complete Journey
# make test  installs into .venv and runs lint, types, import rules and tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= default

.PHONY: run test install lint clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "couponlab needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,test]'
	touch $@

install: $(VENV)/.installed

run: install
	$(BIN)/couponlab run --preset $(PRESET)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -q

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
