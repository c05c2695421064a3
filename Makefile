# Names that people and CI call alike. `make help` lists them.
PYTHON ?= python3
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --no-input
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

SHELL := bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := help
.PHONY: help setup serve test check fmt docs bench up down

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(VENV)/.installed ## create .venv and install the pinned packages (nothing to do when they are)

# torch goes first and alone: an open requirement resolved together with others may pick another build of it.
COUNT := awk '/^Collecting/ { n++; if (n % 10 == 0) { printf "  %d packages looked at\n", n; fflush() } }'
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$($(PYTHON) --version) is too old: make PYTHON=python3.11 (or newer)" >&2; exit 1; }
	@echo "[1/3] $(VENV) with $$($(PYTHON) --version)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] installing $(TORCH) (the largest package)"
	@$(PIP) '$(TORCH)' -c constraints.txt | $(COUNT)
	@echo "[3/3] installing everything else"
	@$(PIP) -c constraints.txt -e '.[dev]' | $(COUNT)
	@touch $@
	@echo "ready: $(VENV)"

serve: setup ## start everything: ARGS="--port 31000 --num-tokenizers 2 ..."
	@exec $(PY) -m rhizome.launch_server $(ARGS)

# Two processes, each with a share of the files (tests/shares.py); ARGS="-n 0" for one.
test: setup ## run the tests: ARGS="tests/unit -k radix"
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## lint, format, types, generated pages
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m docs.generate --check

fmt: setup ## format the code and fix what the linter can
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

docs: setup ## write the generated pages in docs/
	@$(PY) -m docs.generate

bench: setup ## run the benchmarks: ARGS="bus --quick" for one, and quickly
	@$(PY) -m benchmarks.all $(ARGS)

up: ## start the containers (profile cpu unless COMPOSE_PROFILES says otherwise): ARGS="--scale tokenizer=2"
	docker compose up --build --detach $(ARGS)

down: ## stop the containers
	docker compose down
