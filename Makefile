# Everything here needs nothing but Python 3.11 or later (with venv and pip) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export DO_NOT_TRACK = 1

.DEFAULT_GOAL := help
.PHONY: help setup packages test quick thorough faults fuzz demo screenshots lint types format wheel-check clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## a .venv with everything; does nothing when it is up to date
	@echo '$(VENV) is ready; $(BIN)/xmerge --help says what it does.'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'xmerge needs Python 3.11 or later: make setup PYTHON=/path/to/python3.11'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { echo 'No virtual environment could be made: install the venv module of $(PYTHON).'; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[check,dev]'
	@touch $@

packages:  ## Debian's chromium and PostgreSQL, for the tests that drive them; says so where it cannot install them
	@.ci/packages

test: quick  ## all tests: the quick ones, then the slow ones
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

quick: $(STAMP)  ## the quick tests only
	$(BIN)/python -m pytest -m 'not slow' -n auto

faults: $(STAMP)  ## fail, kill or cut the power at every call that a small merge makes to the disk
	$(BIN)/python -m tests.reliability.every_call
	$(BIN)/python -m tests.reliability.every_crash

fuzz: $(STAMP)  ## read a million damaged and hostile headers, indexes, config.json and recipes
	$(BIN)/python -m tests.reliability.fuzz

thorough: $(STAMP)  ## the quick tests with a thousand examples of each law, drawn anew
	$(BIN)/python -m pytest -m 'not slow' -n auto --hypothesis-profile thorough

demo: $(STAMP)  ## merge two small models of different families, and resume a killed merge
	$(BIN)/python -m deployments.demo

screenshots: $(STAMP)  ## take the pictures of Prefect's pages in docs/images anew; makes and removes /srv/models
	XMERGE_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/browser

lint: $(STAMP)  ## style of the code, and its format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## the type checker
	$(BIN)/mypy

format: $(STAMP)  ## mend what lint can mend by itself
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

wheel-check: $(STAMP)  ## build the wheel, install it elsewhere, merge with it
	$(BIN)/python .ci/wheel_check.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
