# Two commands: `make study` (STUDY=organisms by default) and `make test`. Both set up everything on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
STUDY ?= organisms
CORES ?= all
VENV := .venv
BIN := $(VENV)/bin
CONFIG = $(firstword $(wildcard config/$(STUDY).yaml config/examples/$(STUDY).yaml $(STUDY)))

.PHONY: help env named latex study plan test oracles lint format schema lock

help: ## these lines
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

env: $(VENV)/.ready ## the virtual environment, from requirements.lock

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "levelt needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

latex: env ## LaTeX: checked, and installed where that needs no question
	@$(BIN)/levelt latex --install

named: # before anything is installed
	@test -n "$(CONFIG)" || { echo "no config for study '$(STUDY)': expected config/$(STUDY).yaml" >&2; exit 2; }

study: named env latex ## every table, figure and the PDF of a study: STUDY=smoke make study
	$(BIN)/snakemake --cores $(CORES) --configfile $(CONFIG)

plan: named env ## what `make study` would run
	$(BIN)/snakemake --cores $(CORES) --configfile $(CONFIG) --dry-run

test: env latex lint ## all checks and tests, the smoke study included
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 8

ORACLES := .venv-oracles

$(ORACLES)/.ready: $(VENV)/.ready requirements-oracles.lock
	$(PYTHON) -m venv --without-pip --clear $(ORACLES)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(ORACLES)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/levelt-env.pth"
	$(BIN)/python -m pip --python $(ORACLES)/bin/python install --quiet --disable-pip-version-check --no-deps \
	  -r requirements-oracles.lock
	@touch $@

oracles: $(ORACLES)/.ready ## against TransformerLens, nnsight and roc-validator, in an environment over .venv; nothing is skipped
	@$(ORACLES)/bin/python -c 'import torch, transformer_lens, nnsight, rocrate_validator; print("torch", torch.__version__)'
	$(ORACLES)/bin/python -m pytest -q -p no:cacheprovider -n 2 tests/test_oracles.py tests/test_crate_oracle.py

lint: env ## formatting, lint, types, workflow lint, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile rules

format: env ## put everything in the house format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

schema: env ## regenerate config/schema.json and docs/config.md
	$(BIN)/levelt config schema --out config/schema.json
	$(BIN)/levelt config reference --out docs/config.md

lock: ## rewrite requirements.lock from the environment
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' | grep -v ' @ ' > requirements.lock
