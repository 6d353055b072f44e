# Two commands do everything: `make demo` and `make test`. Both create the environment first, once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(shell command -v python3.11 python3 2>/dev/null))
VENV ?= .venv
CORES ?= all
CONFIG ?= config/config.yaml
BIN := $(VENV)/bin
LOCKS := envs/lock.txt envs/lock-nodeps.txt
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
RESULTS = $(shell sed -n 's/^results: *//p' $(CONFIG) | head -n 1 | grep . || echo results)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Held by this command and inherited by every job it starts: a run that was killed frees it as soon as its last job is
# gone, so the next run neither meets a stale lock nor writes beside an orphan. It stands in for Snakemake's own lock.
ALONE := flock --nonblock --conflict-exit-code 75 .run.lock
SNAKEMAKE := $(ALONE) $(BIN)/snakemake --nolock --configfile $(CONFIG)
BUSY = rc=$$?; if [ $$rc = 75 ]; then echo "error: another run, or a job of a killed one, is still at work in this folder; wait, or stop it (pgrep -af scripts/)" >&2; fi; exit $$rc

.PHONY: help env env-dev demo test check tables partial report prefetch doctor format docs clean

help:
	@echo "make demo      the benchmark on MovieLens-100K: tables, plots and results/report.html"
	@echo "make test      all tests"
	@echo "make check     formatting and lint only"
	@echo "make doctor    what this machine offers and what is missing for CONFIG"
	@echo "make prefetch  bring the models of CONFIG to local folders"
	@echo "make partial   tables of what exists so far"
	@echo "make report    the HTML report of CONFIG's results"
	@echo "Settings: CONFIG=$(CONFIG) CORES=$(CORES) PYTHON=$(PYTHON) VENV=$(VENV)"

env: $(READY)
env-dev: $(READY_DEV)

$(READY): $(LOCKS) pyproject.toml
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
	  echo "error: Python 3.11 is needed, found '$(PYTHON)'; install it or set PYTHON=/path/to/python3.11" >&2; exit 2
	fi
	if [ ! -x $(BIN)/python ] && ! "$(PYTHON)" -m venv $(VENV); then
	  echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3.11-venv" >&2; exit 2
	fi
	echo "installing the locked environment into $(VENV) (once)"
	# torch first and alone: a CPU build where the package index or PIP_FIND_LINKS offers one.
	$(PIP) torch==2.13.0
	$(PIP) -r envs/lock.txt
	$(PIP) --no-deps -r envs/lock-nodeps.txt
	$(PIP) --no-deps --editable .
	touch $@

$(READY_DEV): $(READY) envs/lock-dev.txt
	@$(PIP) -r envs/lock-dev.txt
	touch $@

demo: env
	@$(SNAKEMAKE) --cores $(CORES) --quiet rules || { $(BUSY); }
	$(MAKE) --no-print-directory report CONFIG=$(CONFIG)
	cat $(RESULTS)/*/comparison/table.md
	echo
	echo "tables and figures: $(RESULTS)/*/comparison/   report: $(RESULTS)/report.html"

report: env
	@newest=$$(ls -t $(RESULTS)/*/comparison/* $(RESULTS)/report.html 2>/dev/null | head -n 1 || true)
	if [ "$$newest" != "$(RESULTS)/report.html" ]; then
	  $(SNAKEMAKE) --cores 1 --quiet all --report $(RESULTS)/report.html || { $(BUSY); }
	fi

tables: env
	@$(SNAKEMAKE) --cores $(CORES) tables || { $(BUSY); }

partial: env
	@$(SNAKEMAKE) --cores 1 --quiet all --forcerun compare_partial -- partial || { $(BUSY); }
	cat $(RESULTS)/*/partial/table.md

prefetch: env
	@$(SNAKEMAKE) --cores 1 prefetch || { $(BUSY); }

doctor: env
	@$(BIN)/python scripts/doctor.py --config $(CONFIG)

test: env-dev check
	@$(BIN)/python -m pytest

check: env-dev
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check --line-length 120 Snakefile workflow
	$(BIN)/snakemake --lint >/dev/null

format: env-dev
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt --line-length 120 Snakefile workflow

docs: env
	@$(BIN)/python -m langptune.config.document > config/README.md

clean:
	rm -rf $(RESULTS)/*/comparison $(RESULTS)/*/partial $(RESULTS)/report.html
