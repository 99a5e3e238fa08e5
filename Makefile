# New users need only `make repro` and `make test`; both install what they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup repro sweep test test-slow lint bench docs ui serve lock clean

PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := $(shell sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements.lock)

help: ## list every target
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

# An environment contains its path: after the project folder was moved, the environment is created again.
ifneq ($(shell cat .venv/.installed 2>/dev/null),$(CURDIR))
.PHONY: .venv/.installed
endif

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"error: $(PYTHON) is Python {v[0]}.{v[1]}: simtrail needs 3.11 to 3.13; choose one with make PYTHON=/path/to/python3.12")'
	@echo "installing into .venv (about 6 GB on disk)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@# compiled once: where PYTHONDONTWRITEBYTECODE is set, each stage and test process would compile torch again, 10 s
	@VIRTUAL_ENV=.venv $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --editable .
	@$(BIN)/python -m simtrail.pipeline.project
	@echo "$(CURDIR)" > $@

setup: .venv/.installed ## only install, for instance to begin with your own images

repro: .venv/.installed ## install if needed, bring the data, run the pipeline, print the result
	@$(BIN)/simtrail data fetch
	@$(BIN)/dvc repro
	@$(BIN)/simtrail summary

test: .venv/.installed ## install if needed, run the tests (2 to 7 minutes)
	@$(BIN)/python -m pytest

test-slow: .venv/.installed ## run all tests, also slow, browser and GPU tests if the machine has what they need
	@$(BIN)/python -m pytest -m ""

lint: .venv/.installed ## check formatting, style, types and import contracts
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: .venv/.installed ## compare the speed of this machine's simtrail with its ceilings and with peers (10 minutes)
	@$(BIN)/python benchmarks/bench.py
	@$(BIN)/python docs/tables.py

docs: .venv/.installed ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

sweep: .venv/.installed ## search for better parameters: make sweep [NAME=default] [TRIALS=20] [WORKERS=2]
	@$(BIN)/dvc repro --quiet plan
	@$(BIN)/simtrail sweep $(or $(NAME),default) $(if $(TRIALS),--trials $(TRIALS)) $(if $(WORKERS),--workers $(WORKERS))

ui: .venv/.installed ## open the MLflow UI on 127.0.0.1
	@$(BIN)/simtrail ui

serve: .venv/.installed ## serve a registered model on 127.0.0.1: make serve URI=models:/simtrail-encoder@champion
	@$(BIN)/simtrail serve $(or $(URI),models:/simtrail-encoder@champion)

lock: .venv/.installed ## write requirements.lock again from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --all-extras pyproject.toml -o requirements.lock

clean: ## remove the outputs of the pipeline (keeps data, MLflow runs and the environment)
	@rm -rf artifacts .simtrail
