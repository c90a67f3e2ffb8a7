# Everything a fresh machine with Python 3.11 or newer and make needs. `make quickstart` and `make test` set up .venv themselves.
VENV ?= .venv
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
BIN := $(VENV)/bin
LATEST := .venv-latest
LOWEST := .venv-lowest
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt
# One core per process: tests start processes of their own, and small tensors gain nothing from threads.
TEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
# The fast tests run in this many processes, each file in one of them; more need about 2 GiB each.
WORKERS ?= 2
FAST := -q -m "not slow and not gpu" -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help quickstart install install-dev test test-slow test-latest test-lowest test-gpu coverage check format bench \
	docs docs-site docs-pictures clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1|/' | awk -F'|' '{printf "  %-14s %s\n", $$1, $$2}'

quickstart: install  ## set up, train on rendered shapes, show the results (about two minutes)
	$(BIN)/vlkd train recipes/quickstart.yaml

install: $(VENV)/.installed  ## create .venv and install vlkd with the pinned versions

install-dev: $(VENV)/.installed-dev  ## the same with every extra and the tools of development

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No python3 found. Install Python 3.11 or newer, or run make PYTHON=/path/to/python." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11. Run make PYTHON=/path/to/a/newer/python." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The stamps make a second `make` quick; they are older than what they were made from as soon as that changes.
$(VENV)/.installed: pyproject.toml requirements/constraints.txt | $(BIN)/python
	@echo "Installing vlkd and its libraries into $(VENV); the first time this takes some minutes."
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml requirements/constraints.txt | $(BIN)/python
	@echo "Installing vlkd, every extra and the tools of development into $(VENV); the first time this takes some minutes."
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

test: install-dev  ## set up and run the fast tests
	$(TEST) $(FAST)

test-slow: install-dev  ## the tests that take over 5 seconds each
	$(TEST) -q -m "slow and not gpu" --timeout 1200

test-latest: $(LATEST)/.installed  ## the fast tests with transformers 5 and sentence-transformers 6, without adapters
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(LATEST)/bin/python -m pytest $(FAST)

# Pinned as everywhere, but for the libraries around transformers.
$(LATEST)/.installed: pyproject.toml requirements/constraints.txt requirements/latest.txt | $(BIN)/python
	$(BIN)/python -m venv $(LATEST)
	grep -v -i -E '^(accelerate|adapters|huggingface-hub|peft|safetensors|sentence-transformers|tokenizers|transformers)==' \
		requirements/constraints.txt > $(LATEST)/constraints.txt
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LATEST)/constraints.txt \
		-r requirements/latest.txt -e '.[tensorboard,wandb,fast,onnx,parquet,mesh,metric]'
	@touch $@

test-lowest: $(LOWEST)/.installed  ## the fast tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(LOWEST)/bin/python -m pytest $(FAST)

# uv resolves to the lowest versions of what vlkd itself asks for; the tools of the tests are the usual ones.
$(LOWEST)/.installed: pyproject.toml requirements/constraints.txt | $(BIN)/python
	$(BIN)/python -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[tests,tensorboard,wandb,fast,onnx,parquet,mesh,metric]'
	@touch $@

test-gpu: install-dev  ## the tests that need CUDA devices
	$(TEST) -q -m gpu --timeout 1200

coverage: install-dev  ## the fast tests with their line coverage, workers and commands included
	COVERAGE_PROCESS_START=pyproject.toml $(TEST) $(FAST) --cov --cov-report=term --cov-report=html

check: install-dev  ## lint, format, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: install-dev  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## how quick the command line starts; the other scripts under benchmarks/ document what they need
	$(BIN)/python benchmarks/startup.py

docs: install  ## write the generated parts of README.md and docs/
	$(BIN)/python docs/generate.py

docs-pictures: install-dev  ## take the pictures of README and docs again (trains the quickstart; needs Chromium)
	$(BIN)/python -m docs.take_pictures

docs-site: install-dev  ## build the documentation as a site into site/, strictly
	$(BIN)/python docs/build_site.py

clean:  ## remove caches and builds, never runs or .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find vlkd_cli tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
