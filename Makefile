# Lorry. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
# cpu, or gpu on a machine with an NVIDIA card: make setup EXTRA=gpu, once
MADE_FOR := $(patsubst $(VENV)/.installed-%,%,$(wildcard $(VENV)/.installed-*))
EXTRA ?= $(or $(MADE_FOR),cpu)
BIN := $(VENV)/bin
LOCK := requirements/$(EXTRA).txt
STAMP := $(VENV)/.installed-$(EXTRA)
OVERRIDES := $(wildcard requirements/overrides-$(EXTRA).txt)

# The CPU build of torch: from where pip's find-links point, else from PyTorch's own index.
ifeq ($(EXTRA),cpu)
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
else
TORCH := --torch-backend=cpu
endif
endif
UV := $(BIN)/uv pip
COMPILE := $(UV) compile pyproject.toml --extra $(EXTRA) --extra dev --generate-hashes --no-header \
    --no-emit-index-url --no-emit-find-links --python-version 3.11 $(TORCH) \
    $(OVERRIDES:%=--overrides %)
INSTALL := $(UV) install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
PYTEST := $(BIN)/python -m pytest --durations=15
KERNELS := $(wildcard server/kernels/native/*) $(addprefix server/kernels/,operators.py plan.py stamp.py)

.PHONY: help setup demo serve test test-all loadtest bench check format lint types docs lock clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## The environment only: .venv from the hashed lock
	@$(BIN)/python -m server.kernels.stamp || $(INSTALL)

$(STAMP): $(LOCK) pyproject.toml setup.py $(KERNELS) | $(BIN)/uv
	@test -z "$(filter-out $(EXTRA),$(MADE_FOR))" || \
	    { echo "error: $(VENV) was made for $(MADE_FOR): use a clone of its own for $(EXTRA), or remove $(VENV)"; exit 1; }
	$(UV) install --python $(BIN)/python --quiet --no-deps --require-hashes $(TORCH) -r $(LOCK)
	$(INSTALL)
	@touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	    { echo "error: Lorry needs Python 3.11 as $(PYTHON) (or: make PYTHON=/path/to/python3.11)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv

demo: setup  ## Train three adapters, serve them, call each, print which one answered
	$(BIN)/python examples/shop/demo.py

serve: setup  ## The demo's set-up, served until Ctrl-C
	$(BIN)/python examples/shop/demo.py --stay

test: setup  ## The truths that matter, in ten minutes: unit tests, then three real engines
	$(PYTEST) -n auto -m "not engine"
	$(PYTEST) -m engine

test-all: setup  ## Everything: adapters trained from scratch, every engine, a real Prometheus (an hour)
	$(PYTEST) --all -n auto -m "not engine"
	$(PYTEST) --all -m engine

loadtest: setup  ## A server with 32 adapters under load for three minutes: figures per adapter, a verdict
	$(BIN)/lorry loadtest default --serve examples/shop/base

bench: setup  ## Measure the engine beside plain vLLM (half an hour or more), into docs/benchmarks.md
	$(BIN)/python -m bench --write-docs

check: format lint types test  ## What CI runs: format, lint, types, `make test`

format: setup
	$(BIN)/ruff format --check .

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

docs: setup  ## Regenerate docs/configuration.md from the settings
	$(BIN)/python -m server.manual > docs/configuration.md

lock: $(BIN)/uv  ## Refresh the lock of EXTRA (installs nothing)
	$(COMPILE) --upgrade --quiet --output-file $(LOCK)

clean:  ## Forget what was trained, published and cached (not the environment)
	rm -rf .lorry examples/shop/data
