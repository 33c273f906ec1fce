# `make demo` and `make test` are all a fresh machine needs; `make help` lists the rest.
SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
PYTEST := $(PYTHON) -m pytest
LOCKED := $(VENV)/locked.stamp
INSTALLED := $(VENV)/installed.stamp
PEERS := $(VENV)/peers.stamp
PIP_INSTALL := $(PYTHON) -m pip install --quiet --disable-pip-version-check
UV ?= uv
ROUNDS ?= 20
SEEDS ?= 200

# Exit status 5 means that pytest found no test for this layer yet.
NONE_YET := || test $$? -eq 5

.PHONY: help setup demo test test-fast test-ray test-slow lint chaos sim bench bench-long lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED)  ## make .venv from the lock, unless it is there

# Every dependency by its hash; the build backend first, because one of them comes as source.
$(LOCKED): requirements.lock
	@found=; for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	    2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "setup: needs Python 3.11 or newer with its venv module (python3.11 … python3.14 or python3 on the PATH)" >&2; \
	  exit 1; \
	fi; \
	if $(PYTHON) -c 'import pip' 2>/dev/null; then \
	  echo "setup: bringing $(VENV) up to requirements.lock"; \
	else \
	  echo "setup: making $(VENV) with $$found from requirements.lock (a minute or two)"; \
	  $$found -m venv --clear $(VENV); \
	fi
	@sed -n '/^setuptools==/,/# via/p' requirements.lock > $(VENV)/backend.lock
	@$(PIP_INSTALL) --require-hashes -r $(VENV)/backend.lock
	@$(PIP_INSTALL) --require-hashes --no-build-isolation -r requirements.lock
	@touch $@

$(INSTALLED): $(LOCKED) pyproject.toml
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "setup: $(VENV) is ready"

demo: setup  ## the main job on real data, on a Ray of its own (ARGS=… go to the demo)
	@$(PYTHON) -m ray_stream.demo $(ARGS)

# Lint has one thread and takes as long as the fast layer, which has two.
test: setup  ## lint and every layer but the slow ones: what CI runs
	@$(MAKE) --jobs=2 lint test-fast
	@$(MAKE) test-ray

test-fast: setup
	$(PYTEST) -n 2 --dist worksteal -m "not ray and not chaos" $(NONE_YET)

# One Ray cluster for the whole run, so no xdist here.
test-ray: setup
	$(PYTEST) -m "ray and not chaos and not slow" $(NONE_YET)

test-slow: setup  ## what takes too long for `make test`: the demo, notebooks, nodes that fail
	$(PYTEST) -m "slow and not chaos"

lint: setup  ## format, lint, types, layers
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

chaos: setup  ## kill things (ROUNDS=20), and look for bad examples for long
	RAY_STREAM_CHAOS_ROUNDS=$(ROUNDS) $(PYTEST) -m chaos
	HYPOTHESIS_PROFILE=deep $(PYTEST) -n 2 --dist worksteal -m "not ray and not chaos" tests/property

sim: setup  ## seeded simulation (SEEDS=200)
	@$(VENV)/bin/ray-stream sim --seeds $(SEEDS) $(ARGS)

# Kafka's client and matplotlib: without them there is less to show, and nothing to stop for.
$(PEERS): $(LOCKED) benchmarks/requirements.lock
	@$(PIP_INSTALL) --require-hashes -r benchmarks/requirements.lock && touch $@ || \
	  echo "bench: benchmarks/requirements.lock could not be installed: no Kafka, no plots" >&2

bench: setup $(PEERS)  ## measure beside Kafka, < 20 minutes (ARGS="--quick" …); docs/performance.md
	@$(PYTHON) benchmarks/compare.py $(ARGS)
	@$(PYTHON) benchmarks/report.py

bench-long: setup $(PEERS)  ## a 10 GB log, 10 minutes at full load (ARGS="--minutes 3" …), groups
	@$(PYTHON) benchmarks/long_run.py $(ARGS)
	@$(PYTHON) benchmarks/compare.py --stages fresh --many-fsync --cases "many partitions, fsync" \
	  --out benchmarks/results/many_fsync.json
	@$(PYTHON) benchmarks/many_partitions.py
	@$(PYTHON) benchmarks/groups.py
	@$(PYTHON) benchmarks/rebalance.py
	@$(PYTHON) benchmarks/report.py

lock:  ## resolve requirements.lock anew (needs uv)
	@command -v $(UV) >/dev/null || { echo "lock: needs uv (or UV=/path/to/uv)" >&2; exit 1; }
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	  --no-emit-index-url --no-emit-find-links --extra dev --output-file requirements.lock \
	  --custom-compile-command "make lock" pyproject.toml
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	  --no-emit-index-url --no-emit-find-links --constraint requirements.lock \
	  --output-file benchmarks/requirements.lock --custom-compile-command "make lock" \
	  benchmarks/requirements.in

clean:  ## remove .venv and every cache
	rm -rf $(VENV) build *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache \
	  .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
